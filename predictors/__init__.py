"""What a subnetwork costs: measurement on a device, and latency predictors fitted on what was measured."""

from predictors.accuracy import Errors
from predictors.analytic import AnalyticCosts
from predictors.latency import LatencyPredictor
from predictors.measure import measure
from predictors.models import MODELS, PRIOR_MODELS
from predictors.onnx_export import write_onnx
from predictors.predictor_report import PredictorReport
from predictors.regressions import LatencyModel
from predictors.roofline import Ceilings, roofline_ms
from predictors.runtimes import RUNTIMES, prepared
from predictors.store import Measurement, MeasurementStore, Stage
from predictors.subnet_latency import SubnetPredictor
from predictors.timing import Timing
from predictors.workload import Workload, device_name

__all__ = [
    "MODELS",
    "PRIOR_MODELS",
    "RUNTIMES",
    "AnalyticCosts",
    "Ceilings",
    "Errors",
    "LatencyModel",
    "LatencyPredictor",
    "Measurement",
    "MeasurementStore",
    "PredictorReport",
    "Stage",
    "SubnetPredictor",
    "Timing",
    "Workload",
    "device_name",
    "measure",
    "prepared",
    "roofline_ms",
    "write_onnx",
]
