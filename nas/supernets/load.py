"""Loads the supernet and the search space of a run, and calibrates them on training data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nas.runs.files import read_json
from nas.runs.run import Run
from nas.supernets.calibration import calibrate
from nas.supernets.device import training_device
from nas.supernets.importance import ImportanceOrder, permute
from nas.supernets.low_rank import CalibrationStatistics
from nas.supernets.space import search_space, vocabulary_sizes
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import EvaluationSet
from nas.tasks.types import TaskType
from nas.tasks.vocabulary import Vocabulary
from search_spaces import SearchSpace

CALIBRATION_EXAMPLES, CALIBRATION_BATCH = 512, 32
CALIBRATION_TOKENS = 2**16
"""Of long texts fewer examples tell as much: a layer has a few thousand inputs."""
MAX_CALIBRATION_LOGITS = 2**24
"""Most logits over the vocabulary in one calibration batch: 64 MB in float32."""
ORDER = "importance.json"
"""File with the order of importance, in the folder of a supernet."""


def calibration_set(context: TaskContext) -> EvaluationSet:
    """Returns a few hundred training examples, or fewer long ones, for importance scores and calibration."""
    train, size = context.splits.train, calibration_batch(context.splits.task)
    few = train.select(range(min(CALIBRATION_EXAMPLES, len(train))))
    if "input_ids" in few.column_names:
        within = int((np.cumsum([len(ids) for ids in few["input_ids"]]) <= CALIBRATION_TOKENS).sum())
        few = few.select(range(min(len(few), max(size, within))))
    return EvaluationSet.from_dataset(few, context.splits.task, size)


def calibration_batch(task: TaskType) -> int:
    """Examples of a calibration batch; fewer where these have many logits, as gradients need those of all layers."""
    if not task.has_vocabulary_logits:
        return CALIBRATION_BATCH
    return min(CALIBRATION_BATCH, task.examples_within(MAX_CALIBRATION_LOGITS))


def save_calibration(supernet: Supernet, context: TaskContext, folder: Path) -> None:
    """Stores the calibration statistics, if the space has low ranks or slices compensate.

    What slices compensate stays as it was while they train on: their weights have adapted to it.
    """
    if supernet.calibration is not None and supernet.calibration.compensates:
        return supernet.calibration.save(folder)
    ranks, compensates = search_space(context).needs_calibration, not context.recipe.supernet.is_trained
    if ranks or compensates:
        batches = calibration_set(context).batches
        calibrate(supernet, batches, ranks=ranks, compensates=compensates).save(folder)


def vocabulary_of(context: TaskContext) -> Vocabulary | None:
    """Returns the pieces of the tokenizer by their use; None where the space keeps all of them."""
    return context.vocabulary if vocabulary_sizes(search_space(context)) else None


def load_supernet(run: Run, context: TaskContext, folder: Path | None = None) -> tuple[Supernet, SearchSpace]:
    """Loads the trained supernet of a run on the training device, and its space with layers by importance.

    Args:
        run: The run.
        context: The context of its recipe.
        folder: Of a supernet that was trained further; default: that of the supernet stage.
    """
    folder, vocabulary = folder or run.supernet, Vocabulary.load(run.supernet)
    if vocabulary is not None:
        context.vocabulary = vocabulary
    model, calibration = context.load_model(folder), CalibrationStatistics.load(folder)
    supernet = Supernet(model, calibration, vocabulary, context.dtype).to(training_device())
    supernet.model.eval()
    return supernet, search_space(context, run.layer_order)


def load_ordered_parent(
    run: Run, context: TaskContext, folder: Path | None = None
) -> tuple[Supernet, ImportanceOrder]:
    """Loads the parent of a run as a supernet that is not trained, in the order of importance, and the order.

    Args:
        run: The run.
        context: The context of its recipe.
        folder: With the order; default: that of the supernet stage.
    """
    folder = folder or run.supernet
    order = read_json(folder / ORDER, parse=ImportanceOrder.from_dict)
    model, vocabulary = context.load_model(run.parent), Vocabulary.load(folder)
    supernet = Supernet(model, vocabulary=vocabulary, dtype=context.dtype).to(training_device())
    permute(supernet, order.units, order.hidden)
    supernet.calibration = CalibrationStatistics.load(folder)
    return supernet, order
