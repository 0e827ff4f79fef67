"""What a subnetwork costs: measurement on a device, and latency predictors fitted on what was measured."""

from predictors.latency import BASELINES, MODELS, Errors, LatencyModel, LatencyPredictor, PredictorReport
from predictors.measure import Measurement, MeasurementStore, Timing, device_name, measure
from predictors.workload import Workload

__all__ = [
    "BASELINES",
    "MODELS",
    "Errors",
    "LatencyModel",
    "LatencyPredictor",
    "Measurement",
    "MeasurementStore",
    "PredictorReport",
    "Timing",
    "Workload",
    "device_name",
    "measure",
]
