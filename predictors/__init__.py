"""Costs of subnetworks: analytic counts, measurement on a device, and latency predictors fitted on measurements."""

from predictors.costs.analytic import AnalyticCosts
from predictors.costs.roofline import DevicePeak, roofline_ms
from predictors.latency.errors import Errors
from predictors.latency.models import MODELS, PRIOR_MODELS
from predictors.latency.predictor import LatencyPredictor
from predictors.latency.regressions import LatencyModel
from predictors.latency.report import PredictorReport
from predictors.latency.subnet_predictor import SubnetPredictor
from predictors.measurement.measure import measure
from predictors.measurement.onnx_export import write_onnx
from predictors.measurement.prepare import prepare
from predictors.measurement.runtimes import RUNTIMES
from predictors.measurement.timing import Timing
from predictors.measurement.workload import Workload, device_name
from predictors.store import Measurement, MeasurementStage, MeasurementStore

__all__ = [
    "MODELS",
    "PRIOR_MODELS",
    "RUNTIMES",
    "AnalyticCosts",
    "DevicePeak",
    "Errors",
    "LatencyModel",
    "LatencyPredictor",
    "Measurement",
    "MeasurementStage",
    "MeasurementStore",
    "PredictorReport",
    "SubnetPredictor",
    "Timing",
    "Workload",
    "device_name",
    "measure",
    "prepare",
    "roofline_ms",
    "write_onnx",
]
