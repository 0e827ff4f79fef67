"""What a subnetwork costs: measurement on a device, and latency predictors fitted on what was measured."""

from predictors.analytic import AnalyticCosts
from predictors.latency import LatencyPredictor, PredictorReport
from predictors.measure import Timing, device_name, measure
from predictors.models import BASELINES, MODELS, Errors, LatencyModel
from predictors.onnx_export import write_onnx
from predictors.runtimes import RUNTIMES, prepared
from predictors.store import Measurement, MeasurementStore, Stage
from predictors.workload import Workload

__all__ = [
    "BASELINES",
    "MODELS",
    "RUNTIMES",
    "AnalyticCosts",
    "Errors",
    "LatencyModel",
    "LatencyPredictor",
    "Measurement",
    "MeasurementStore",
    "PredictorReport",
    "Stage",
    "Timing",
    "Workload",
    "device_name",
    "measure",
    "prepared",
    "write_onnx",
]
