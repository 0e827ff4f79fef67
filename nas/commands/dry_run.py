"""`nas search --dry-run`: the size of the space and the estimated time of each stage; writes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from typing import Any

from nas.pipeline import STAGES
from nas.recipe.schema import Recipe
from nas.runs.progress import quiet_libraries
from nas.stages.check import check_recipe
from nas.supernets.space import search_space
from nas.supernets.strategies import STRATEGIES
from nas.tasks.batches import model_inputs
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import evaluation_mode

STEP_OVERHEAD = 0.3
SUBNET_SHARE = 0.55
"""A supernet step takes the teacher's pass, and for each subnetwork about this share of a step of the parent."""
MEASUREMENT_SECONDS = 1.5
N_VERIFIED = 30
"""Typical number of subnetworks on the fronts of the three studies; each is exported, reloaded and measured."""


def estimate(recipe: Recipe) -> dict[str, Any]:
    """Estimates a run from a few timed steps of the parent; writes nothing.

    Returns:
        ``recipe``: with its space resolved; ``subnetworks``: the size of the space; ``minutes``: stage -> estimated
        minutes on this machine, in order; stages that take seconds are left out.

    Raises:
        InputError: If the recipe does not fit the model, the data or this device.
    """
    quiet_libraries()
    context = check_recipe(recipe)
    splits = context.splits
    examples = [len(context.training_set(training)) for training in (recipe.parent, recipe.supernet)]
    train_s, score_s = _seconds_per_example(context)
    settings, space = recipe.supernet, search_space(context)
    strategy = STRATEGIES[settings.strategy](space, space.sample_mixed, settings.sampled_subnets)
    subnets = len(strategy.passes(0.0, Random(0)))
    seconds = {
        "parent": recipe.parent.num_train_epochs * examples[0] * train_s if context.should_finetune else 0.0,
        "supernet": recipe.supernet.epochs * examples[1] * train_s * (STEP_OVERHEAD + SUBNET_SHARE * subnets),
        "profile": recipe.profile.samples * MEASUREMENT_SECONDS,
        "search": 2 * recipe.search.evaluations * len(splits.search) * score_s * SUBNET_SHARE,
        "finish": recipe.finish.models * recipe.finish.num_train_epochs * examples[1] * train_s * SUBNET_SHARE,
        "verify": N_VERIFIED * (len(splits.test) * score_s * SUBNET_SHARE + 3 * MEASUREMENT_SECONDS),
    }
    return {
        "recipe": context.recipe,
        "subnetworks": space.size,
        "minutes": {stage.name: seconds[stage.name] / 60 for stage in STAGES if stage.name in seconds},
    }


def _seconds_per_example(context: TaskContext) -> tuple[float, float]:
    """Seconds per example of a training step and of a forward pass of the parent, on one batch."""
    splits, model = context.splits, context.load_model()
    (batch,) = splits.search.labelled_batches(1)
    examples = len(splits.search.take(1))
    inputs = model_inputs(batch)

    def step() -> None:
        model(**batch).loss.backward()
        model.zero_grad()

    train_s = _seconds(step) / examples
    with evaluation_mode(model):
        return train_s, _seconds(lambda: model(**inputs)) / examples


def _seconds(call: Callable[[], object], repeats: int = 3) -> float:
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
