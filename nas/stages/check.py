"""Checks a recipe and opens its run."""

from __future__ import annotations

from pathlib import Path

from nas.recipe.schema import Recipe
from nas.runs.progress import say
from nas.runs.run import Run
from nas.studies.sampler import check_sampler
from nas.supernets.space import paying, search_space
from nas.supernets.trackers import check_reporting
from nas.tasks.context import Workbench
from predictors import AnalyticCosts, device_name
from predictors.costs.analytic import COUNTED
from predictors.measurement.memory import memory_mb
from predictors.measurement.runtimes import check_runtime
from predictors.measurement.workload import one_line_errors
from search_spaces import InputError


def opened(recipe: Recipe, folder: str | Path, *, elsewhere: bool = False) -> tuple[Workbench, Run]:
    """Checks a recipe and opens its run; a new one is made only if the model's weights can be read as well.

    Args:
        recipe: Of the run.
        folder: The run.
        elsewhere: Whether a new run's latencies are measured on another device; an old one knows.
    """
    found = Run(folder) if Path(folder, "recipe.yaml").exists() else None
    elsewhere = found.elsewhere if found else elsewhere
    bench = checked(recipe, elsewhere=elsewhere)
    if found is None:
        _check_exact_constraints(bench, AnalyticCosts.of(bench.load_model(), bench.layout))
    run = Run.open(folder, recipe, elsewhere=elsewhere)
    here = run.device if elsewhere else device_name(recipe.workload)
    if here != run.device:
        raise InputError(f"`{folder}` was begun on {run.device}, but this is {here}; give another folder with --run.")
    return bench, run


def _check_exact_constraints(bench: Workbench, counts: AnalyticCosts) -> None:
    """Refuses a bound on an exact cost that neither end of the space meets, before anything is trained."""
    space = search_space(bench)
    found = counts.count(COUNTED, [space.smallest, space.largest], bench.recipe.workload)
    for name, bound in bench.recipe.bounds.items():
        if name in COUNTED:
            ends = found[name].tolist()
            if all(bound.violation(value) > 0 for value in ends):
                raise InputError(
                    f"`constraints.{name}` is `{bound}`, but the space reaches from {ends[0]:.4g} to {ends[1]:.4g}; "
                    "loosen it or widen `space`."
                )


def checked(recipe: Recipe, *, elsewhere: bool = False) -> Workbench:
    """Loads what a recipe names and checks it against each other, before anything is written.

    The workload is not looked for on this machine if its device is ``elsewhere``.

    Raises:
        InputError: With the first thing that does not fit.
    """
    if not elsewhere:
        recipe.workload.check_available()
        check_runtime(recipe.workload)
    check_sampler(recipe)
    bench = Workbench(recipe)
    if bench.lengthens:
        say(f"positions  copied until there are {bench.layout.inputs.max_sequence_length}, as the recipe's texts need")
    for reason in paying(bench)[1]:
        say(f"space      {reason}")
    space = search_space(bench)
    if space.size < 10:
        raise InputError(f"`space` must hold at least 10 subnetworks, but got {space.size}; add choices.")
    if "kv_cache_mb" in recipe.figures and not bench.layout.family.generates:
        raise InputError(
            f"`kv_cache_mb` is of models that generate, but `{recipe.model}` keeps no keys and values; leave it out."
        )
    for folder in recipe.profile.earlier:
        Run(folder)
    limit = bench.layout.inputs.max_sequence_length
    lengths = {"task.max_length": recipe.task.max_length, "workload.sequence_length": recipe.workload.sequence_length}
    for key, length in lengths.items():
        if limit is not None and (length is None or length > limit):
            raise InputError(f"`{key}` must be at most the model's {limit} positions, but got {length}.")
    if not elsewhere:
        _check_memory(bench)
    for settings in (recipe.parent, recipe.supernet):
        check_reporting(settings)
        bench.training_set(settings)
    _ = bench.has_head
    return bench


def _check_memory(bench: Workbench) -> None:
    """Raises InputError where the hidden states of one layer alone take more memory than there is."""
    workload, layout = bench.recipe.workload, bench.layout
    tokens = workload.batch_size * layout.inputs.longest_sequence(workload.sequence_length)
    with one_line_errors(workload):
        if tokens * layout.parent.hidden_size * workload.activation_bytes / 1e6 > memory_mb(workload):
            raise MemoryError
