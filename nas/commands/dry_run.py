"""`nas search --dry-run`: the size of the space, the time, memory and disk of each stage; loads no weights."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

from nas.commands.step_time import StepTime, costs_of
from nas.pipeline import STAGES
from nas.recipe.schema import Recipe
from nas.runs.progress import quiet_libraries, waiting
from nas.stages.check import check_recipe
from nas.stages.needs import available_gb, holder, meta_model, stage_needs
from nas.stages.parent_runtimes import LARGEST_MB, runtimes_beside
from nas.stages.supernet import LAYER_EXAMPLES
from nas.studies.budget import evaluation_budget
from nas.supernets.load import CALIBRATION_EXAMPLES, CALIBRATION_TOKENS
from nas.supernets.space import search_space
from nas.supernets.strategies import STRATEGIES
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts
from predictors.measurement.workload import RuntimeName

SAMPLE = 256
"""Examples of each split that are processed; the others are counted."""
STEP_OVERHEAD = 0.3
SUBNET_SHARE = 0.55
"""A supernet step takes the teacher's pass, and for each subnetwork about this share of a step of the parent."""
LOAD_S, EXPORT_S = 0.1, 0.5
"""Seconds to extract and prepare a subnetwork, and to write, reload and compare one, besides its forward passes."""
PROCESS_S = 12.0
"""Seconds that a new process takes to import the libraries: it checks the export."""
SAMPLER_S = 0.04
"""Seconds per evaluation that the sampler takes."""
ROUNDS, CALLS = 9, 8
"""Rounds after which measuring usually ends, and calls of one sample, those of the reference included."""
N_VERIFIED = 25
"""Typical number of subnetworks on the fronts of the three studies; each is exported, reloaded and measured."""
RUNTIME_S = 4.0
"""Seconds to write the parent for another runtime and to load it there, besides its forward passes."""


def estimate(recipe: Recipe) -> dict[str, Any]:
    """Estimates a run from its config, a sample of its data, and a timed layer of the model's shape.

    Returns:
        ``recipe``: with its space resolved; ``subnetworks``: the size of the space; ``minutes``: stage -> estimated
        minutes on this machine, in order; stages that take seconds are left out; ``work``: stage -> what was counted;
        ``needs``: stage -> memory and disk. ``available_gb``: memory of what holds the weights.

    Raises:
        InputError: If the recipe does not fit the model, the data or this device.
    """
    quiet_libraries()
    with waiting("dry run"):
        context = check_recipe(recipe, sample=SAMPLE)
        minutes, empty = estimated_minutes(context), meta_model(context)
    return {
        "recipe": context.recipe,
        "subnetworks": search_space(context).size,
        "minutes": minutes,
        "work": counted_work(context),
        "needs": stage_needs(context, empty),
        "available_gb": available_gb(holder(context, empty)),
    }


def estimated_minutes(context: TaskContext) -> dict[str, float]:
    """Stage -> estimated minutes on this machine, in order; stages that take seconds are left out."""
    seconds = _seconds(context, StepTime.measure(context))
    return {stage.name: seconds[stage.name] / 60 for stage in STAGES if stage.name in seconds}


def counted_work(context: TaskContext) -> dict[str, str]:
    """Stage -> what its models are scored on, and in which other runtimes the parent is measured."""
    examples, beside = context.num_examples, context.num_beside
    scored = {
        split: f"{examples[split]:,.0f} examples"
        + (f" and {beside[split]:,} passes over what is beside them" if beside[split] else "")
        for split in ("search", "test")
    }
    runtimes = list(dict.fromkeys(_parent_runtimes(context)))
    also = f"; the parent also in {', '.join(runtimes)}" if runtimes else ""
    return {"search": f"{scored['search']} an evaluation", "verify": f"{scored['test']} a model{also}"}


def _parent_runtimes(context: TaskContext) -> list[RuntimeName]:
    """The other runtimes that the parent is measured in, for each workload."""
    recipe = context.recipe
    costs = AnalyticCosts.from_model(meta_model(context), context.layout, recipe.task.type, context.dtype)
    if costs_of(costs, context, "size_mb") > LARGEST_MB:
        return []
    return [name for workload in recipe.named_workloads.values() for name in runtimes_beside(recipe, workload)]


def _seconds(context: TaskContext, time: StepTime) -> dict[str, float]:
    """Stage -> estimated seconds."""
    recipe, settings = context.recipe, context.recipe.supernet
    train, search, test = (
        context.num_examples[name] + context.num_beside.get(name, 0) for name in ("train", "search", "test")
    )
    space = search_space(context)
    passes = STEP_OVERHEAD
    if settings.is_trained:
        strategy = STRATEGIES[settings.strategy](space, space.sample_mixed, settings.sampled_subnets)
        passes += SUBNET_SHARE * len(strategy.passes(0.0, Random(0)))
    score_s = time.score_s * SUBNET_SHARE
    latency_s = time.workload_s * (1 + SUBNET_SHARE) / 2
    sample_s = ROUNDS * CALLS * latency_s
    samples, finish = min(recipe.profile.samples, space.size), recipe.finish
    supernet_s = time.training_s(settings, train, passes) if settings.is_trained else 0.0
    finish_s = finish.models * time.training_s(finish, train, SUBNET_SHARE + STEP_OVERHEAD)
    if finish.models and "layer-drop" in recipe.baselines:  # as long as one model, with its share of the supernet
        finish_s += (supernet_s + finish_s) / finish.models
    pass_s = time.workload_s / len(recipe.named_workloads)
    runtimes_s = len(_parent_runtimes(context)) * (RUNTIME_S + ROUNDS * CALLS * pass_s)
    return {
        "parent": time.training_s(recipe.parent, train) if context.should_finetune else 0.0,
        "supernet": _ordering_s(context, time, train) + supernet_s,
        "profile": _within(recipe.profile.minutes, samples * (LOAD_S + sample_s)),
        "search": min(
            (1 + recipe.search.seeds) * evaluation_budget(recipe, space) * (search * score_s + SAMPLER_S),
            recipe.search.seconds,
        ),
        "finish": finish_s,
        "verify": _within(
            recipe.verify.minutes, N_VERIFIED * (test * score_s + 3 * EXPORT_S + 2 * sample_s) + runtimes_s
        ),
        "export": PROCESS_S,
    }


def _ordering_s(context: TaskContext, time: StepTime, train: float) -> float:
    """Seconds to order weights by importance, to try the parent without each layer, and to calibrate."""
    settings, space, columns = context.recipe.supernet, search_space(context), context.splits.train.column_names
    tokens = float(np.mean([len(ids) for ids in context.splits.train["input_ids"]])) if "input_ids" in columns else 1.0
    examples = min(CALIBRATION_EXAMPLES, train, CALIBRATION_TOKENS / tokens)
    seconds = 0.0
    if settings.order != "none":
        seconds += examples * ((time.train_s if settings.order == "gradient" else time.score_s) + time.score_s)
        layers = sum(map(len, space.stacks))
        if sum(space.fewest_layers) < layers:
            seconds += (1 + 2 * layers) * min(LAYER_EXAMPLES, examples) * time.score_s
    if space.needs_calibration or not settings.is_trained:
        seconds += examples * time.score_s
    return seconds


def _within(minutes: float | None, seconds: float) -> float:
    """Seconds, at most those of a budget."""
    return seconds if minutes is None else min(seconds, 60 * minutes)
