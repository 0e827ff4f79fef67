"""A run's supernet and space; calibration set."""

from __future__ import annotations

from pathlib import Path

from nas.runs.run import Run
from nas.supernets.calibration import calibrate
from nas.supernets.low_rank import CalibrationStatistics
from nas.supernets.space import search_space
from nas.supernets.supernet import Supernet
from nas.supernets.training import training_device
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import EvaluationSet
from search_spaces import SearchSpace

CALIBRATION_EXAMPLES = 512


def calibration_set(context: TaskContext) -> EvaluationSet:
    """A few hundred examples of the training data, to see what matters in the parent."""
    train = context.splits.train
    return EvaluationSet.from_dataset(
        train.select(range(min(CALIBRATION_EXAMPLES, len(train)))), context.splits.task, 32
    )


def save_calibration(supernet: Supernet, context: TaskContext, folder: Path) -> None:
    """Stores what bases of low ranks are made from, where a rank is open."""
    if search_space(context).needs_calibration:
        calibrate(supernet, calibration_set(context).batches).save(folder)


def load_supernet(run: Run, context: TaskContext) -> tuple[Supernet, SearchSpace]:
    """The trained supernet of a run on the training device, and its space with the layers in importance order."""
    supernet = Supernet(
        context.load_model(run.supernet).to(training_device()), CalibrationStatistics.load(run.supernet)
    )
    supernet.model.eval()
    return supernet, search_space(context, run.layer_order)
