"""Checks a recipe and opens its run."""

from __future__ import annotations

from pathlib import Path

from nas.recipe.schema import Recipe
from nas.runs.progress import print_line
from nas.runs.run import Run
from nas.studies.sampler import check_sampler
from nas.supernets.space import recipe_choices, search_space
from nas.supernets.trackers import check_trackers
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts, device_name
from predictors.costs.analytic import COST_NAMES
from predictors.measurement.memory import memory_mb
from predictors.measurement.runtimes import check_runtime
from predictors.measurement.workload import device_errors_as_input_errors
from search_spaces import InputError


def open_run(recipe: Recipe, folder: str | Path, *, remote: bool = False) -> tuple[TaskContext, Run]:
    """Checks a recipe and opens its run; a new one is made only if the model's weights can be read as well.

    Args:
        recipe: Of the run.
        folder: The run.
        remote: Whether a new run's latencies are measured on another device; an old one knows.
    """
    found = Run(folder) if Path(folder, "recipe.yaml").exists() else None
    remote = found.is_remote if found else remote
    context = check_recipe(recipe, remote=remote)
    if found is None:
        _check_exact_constraints(context, AnalyticCosts.from_model(context.load_model(), context.layout))
    run = Run.open(folder, recipe, remote=remote)
    here = run.device if remote else device_name(recipe.workload)
    if here != run.device:
        raise InputError(f"`{folder}` was begun on {run.device}, but this is {here}; give another folder with --run.")
    return context, run


def _check_exact_constraints(context: TaskContext, counts: AnalyticCosts) -> None:
    """Refuses a bound on an exact cost that neither end of the space meets, before anything is trained."""
    space = search_space(context)
    found = counts.count(COST_NAMES, [space.smallest, space.largest], context.recipe.workload)
    for name, bound in context.recipe.bounds.items():
        if name in COST_NAMES:
            ends = found[name].tolist()
            if all(bound.violation(value) > 0 for value in ends):
                raise InputError(
                    f"`constraints.{name}` is `{bound}`, but the space reaches from {ends[0]:.4g} to {ends[1]:.4g}; "
                    "loosen it or widen `space`."
                )


def check_recipe(recipe: Recipe, *, remote: bool = False) -> TaskContext:
    """Loads what a recipe names and checks it against each other, before anything is written.

    The workload is not looked for on this machine if its device is remote.

    Raises:
        InputError: With the first thing that does not fit.
    """
    if not remote:
        recipe.workload.check_available()
        check_runtime(recipe.workload)
    check_sampler(recipe)
    context = TaskContext(recipe)
    if context.extends_positions:
        print_line(
            f"positions  copied until there are {context.layout.inputs.max_sequence_length}, "
            "as the recipe's texts need"
        )
    for reason in recipe_choices(context)[1]:
        print_line(f"space      {reason}")
    space = search_space(context)
    if space.size < 10:
        raise InputError(f"`space` must hold at least 10 subnetworks, but got {space.size}; add choices.")
    if "kv_cache_mb" in recipe.value_names and not context.layout.family.generates:
        raise InputError(
            f"`kv_cache_mb` is of models that generate, but `{recipe.model}` keeps no keys and values; leave it out."
        )
    for folder in recipe.profile.earlier:
        Run(folder)
    limit = context.layout.inputs.max_sequence_length
    lengths = {"task.max_length": recipe.task.max_length, "workload.sequence_length": recipe.workload.sequence_length}
    for key, length in lengths.items():
        if limit is not None and (length is None or length > limit):
            raise InputError(f"`{key}` must be at most the model's {limit} positions, but got {length}.")
    if not remote:
        _check_memory(context)
    for settings in (recipe.parent, recipe.supernet):
        check_trackers(settings)
        context.training_set(settings)
    _ = context.has_head
    return context


def _check_memory(context: TaskContext) -> None:
    """Raises InputError where the hidden states of one layer alone take more memory than there is."""
    workload, layout = context.recipe.workload, context.layout
    tokens = workload.batch_size * layout.inputs.longest_sequence(workload.sequence_length)
    with device_errors_as_input_errors(workload):
        if tokens * layout.parent.hidden_size * workload.activation_bytes / 1e6 > memory_mb(workload):
            raise MemoryError
