"""What the untrained parent tells before anything is trained: its weights, bounds, metrics, memory, disk."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from nas.modeling.known_layouts import small_model
from nas.recipe.objectives import base_name
from nas.runs import processes
from nas.stages.layout_proof import alike_text, proposed_space, prove_layout
from nas.stages.needs import available_gb, holder, stage_needs
from nas.supernets.counted_costs import count_costs
from nas.supernets.device import moved, training_device
from nas.supernets.space import search_space
from nas.tasks.batches import model_inputs
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import EvaluationSet, collect_stats, evaluation_mode, on_model
from nas.tasks.loading import is_filled_up
from nas.tasks.overview import data_lines
from nas.tasks.token_table import text_tokenizer
from predictors import AnalyticCosts
from search_spaces import InputError
from search_spaces.errors import short_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel

METRIC_EXAMPLES, GENERATED_EXAMPLES = 64, 4
"""Training examples on which metrics are tried; fewer where the model has logits over a vocabulary."""
BATCH_SIZE = 32
OF_BOTH_TOWERS = {"num_parameters", "size_mb"}
"""Costs of a model with two towers that a smaller text tower reduces."""
MOST_PROVED = 500_000_000
"""Parameters up to which a model itself is proved; of a larger one, a tiny random model with every dimension open."""
RUN_BYTES, LEAST_BYTES = 80, 8
"""Bytes a weight on disk: parent, supernet, two checkpoints of a training and some 25 exports of half the size; parent
and supernet alone."""


def check_parent(context: TaskContext, folder: str | Path) -> list[str]:
    """Loads the recipe's model and checks what can be known of the run; writes nothing.

    Args:
        context: A context that passed `check_recipe`.
        folder: The run.

    Returns:
        Lines that say what was read and found.

    Raises:
        InputError: If the weights are not whole or not finite, a bound cannot be met, a metric cannot be computed, or
            the disk is too small.
    """
    model = context.load_model()
    check_exact_constraints(context, model)
    lines = [
        _model_line(context, model),
        *_layout_line(context, model),
        *_towers_line(context),
        *_tokenizer_line(context),
        *data_lines(context),
    ]
    lines.append(f"metrics    {_metrics_text(context, model)}")
    return [*lines, _memory_line(context, model), _disk_line(model, Path(folder))]


def check_exact_constraints(context: TaskContext, model: PreTrainedModel) -> None:
    """Raises InputError for a bound on an exact cost that neither the smallest nor the largest subnetwork meets."""
    counts = AnalyticCosts.from_model(model, context.layout, context.recipe.task.type, context.dtype)
    space = search_space(context)
    subnets = [space.smallest, space.largest, context.layout.parent]
    costs = count_costs(counts, context.recipe, subnets)
    parent = {name: float(column[-1]) for name, column in costs.items()}
    for name, bound in context.recipe.with_parent(parent).bounds.items():
        if name in costs:
            ends = costs[name][:2].tolist()
            if all(bound.violation(value) > 0 for value in ends):
                raise InputError(
                    f"`constraints.{name}` must be reachable in the space, {ends[0]:.4g} to {ends[1]:.4g}, "
                    f"but got `{bound}`; loosen it or widen `space`."
                )


def _model_line(context: TaskContext, model: PreTrainedModel) -> str:
    if context.has_no_weights:
        weights = "no weights: they start at random"
    else:
        weights = (
            "all weights found and finite" if context.has_head else "all weights found and finite, the head is new"
        )
    if is_filled_up(context.recipe.model):
        weights += "; an export, filled up with zeros to layers of equal size"
    stored = str(context.dtype).removeprefix("torch.")
    trains = context.memory_dtype == torch.float32 or context.should_finetune or context.recipe.finish.models
    how = "trained in float32" if trains else "and kept so"
    cast = "" if stored == "float32" else f"; in {stored}, {how}"
    return f"model      {context.layout.family.model_type}, {model.num_parameters():,} parameters; {weights}{cast}"


def _layout_line(context: TaskContext, model: PreTrainedModel) -> list[str]:
    """For a type without a table of its own, whose it has, and what was proved of it.

    Raises:
        InputError: If the model does not keep the laws of slicing.
    """
    family, task, space = context.layout.family, context.recipe.task.type, search_space(context)
    if not family.alike:
        return []
    if model.num_parameters() > MOST_PROVED:
        model = small_model(family, task)
        space = proposed_space(model)
    return [f"layout     {alike_text(family)}; {prove_layout(model, task, space)}"]


def _towers_line(context: TaskContext) -> list[str]:
    """What is measured of a model with two towers."""
    if not context.layout.family.has_towers:
        return []
    named = {base_name(name) for name in context.recipe.value_names}
    hint = (
        "" if named & OF_BOTH_TOWERS else f"; a smaller text tower saves only {' and '.join(sorted(OF_BOTH_TOWERS))}"
    )
    return [f"towers     a pass is that of the image tower, as texts are read beforehand{hint}"]


def _tokenizer_line(context: TaskContext) -> list[str]:
    tokenizer, rows = text_tokenizer(context), getattr(context.config, "vocab_size", None)
    if tokenizer is None or rows is None:
        return []
    return [f"tokenizer  {len(tokenizer):,} tokens for the {rows:,} rows of the model's table"]


def _metrics_text(context: TaskContext, model: PreTrainedModel) -> str:
    """Computes every metric with the untrained parent; on the whole search slice if a few examples are not enough.

    Raises:
        InputError: If a metric fails or is not finite.
    """
    task, names, splits = context.splits.task, context.recipe.metric_names, context.splits
    count = min(GENERATED_EXAMPLES if task.has_vocabulary_logits else METRIC_EXAMPLES, len(splits.train))
    few = EvaluationSet.from_dataset(splits.train.select(range(count)), task, BATCH_SIZE)
    few = replace(few, beside=tuple(part.take(BATCH_SIZE) for part in splits.search.beside))
    moved(model, training_device())
    _require_running(model, few)
    try:
        values = _values(model, few, names)
    except InputError:
        count, values = len(splits.search), _values(model, splits.search, names)
    shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    return f"{shown} of the model as it is on {count:,} examples"


def _require_running(model: PreTrainedModel, examples: EvaluationSet) -> None:
    """Raises InputError if the model fails on a batch, as some values of a config let it."""
    batch = model_inputs(on_model(examples.batches[0], model))
    try:
        with evaluation_mode(model):
            model(**batch)
    except Exception as error:
        raise InputError(
            f"the model must run on the data, but fails with {type(error).__name__}: {short_error(error)}; check its "
            "config.json."
        ) from error


def _values(model: PreTrainedModel, examples: EvaluationSet, names: list[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for part, own in examples.parts(names):
        stats = part.task.compare_examples(collect_stats(model, part, own), own)
        if not np.isfinite(stats.get("loss", 0.0)).all():
            raise InputError(
                f"the loss of the model as it is must be finite, but is {stats['loss'].sum():g}; check its weights, "
                "which may be too large for their dtype."
            )
        values |= {name: part.task.metric(name)(stats) for name in own}
    for name, value in values.items():
        if not math.isfinite(value):
            raise InputError(
                f"metrics must be finite numbers, but `{name}` of the untrained model is {value}; check its weights "
                "and "
                "the labels."
            )
    return values


def _memory_line(context: TaskContext, model: PreTrainedModel) -> str:
    """The memory of the stage that takes most, against that of the device, and every stage that does not fit.

    Raises:
        InputError: If not even the weights fit, see `holder`.
    """
    needs, device = stage_needs(context, model), holder(context, model)
    available = available_gb(device)
    most = max(needs, key=lambda name: needs[name].memory_gb)
    large = [name for name, need in needs.items() if need.memory_gb > available]
    way_out = "lower `batch_size`, set `activation_checkpointing`, or `supernet.strategy` to `none`"
    way_out += "" if device == "cpu" else ", or take the machine's own memory (`CUDA_VISIBLE_DEVICES=`)"
    hint = f"; {', '.join(large)} will not fit: {way_out}" if large else ""
    if device != training_device():
        hint += f"; weights exceed the {training_device()}, and are copied to it while they are multiplied"
    return (
        f"memory     {most} takes about {needs[most].memory_gb:.3g} GB of the {available:.1f} GB of the {device}{hint}"
    )


def _disk_line(model: PreTrainedModel, folder: Path) -> str:
    """The space that a run takes, against what is free.

    Raises:
        InputError: If not even parent and supernet fit.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free, weights = shutil.disk_usage(place).free / 1e9, model.num_parameters() / 1e9
    if processes.is_main() and free < LEAST_BYTES * weights:
        raise InputError(
            f"the disk of `{place}` must have {LEAST_BYTES * weights:.2f} GB for the parent and the supernet, but "
            f"{free:.2f} GB are free; free some space, or choose another place with --run."
        )
    hint = "; free some space" if free < RUN_BYTES * weights else ""
    return f"disk       a run takes at most about {RUN_BYTES * weights:.2g} GB; {free:.1f} GB are free{hint}"
