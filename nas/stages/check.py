"""Checks a recipe before anything is written, and opens its run."""

from __future__ import annotations

from pathlib import Path

from nas.recipe.schema import Recipe
from nas.runs.progress import print_line
from nas.runs.run import Run
from nas.studies.sampler import check_sampler
from nas.supernets.space import recipe_choices, resolved_space, search_space
from nas.supernets.trackers import check_trackers
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts, device_name
from predictors.costs.analytic import COST_NAMES
from predictors.measurement.memory import memory_mb
from predictors.measurement.prepare import check_runtime
from predictors.measurement.workload import device_errors_as_input_errors
from search_spaces import TASKS, InputError


def open_run(recipe: Recipe, folder: str | Path, *, remote: bool = False) -> tuple[TaskContext, Run]:
    """Checks a recipe and opens its run; a new one is created only if the weights of the model load too.

    A ``space`` that is ``auto`` is the run's if there is one; else it is proposed and stored in the new run.

    Args:
        recipe: The recipe.
        folder: The run.
        remote: Whether the latencies of a new run are measured on another device; an existing run has this stored.

    Raises:
        InputError: If the recipe does not fit the model, the data, this device or the folder.
    """
    if recipe.parent.epochs is not None and not TASKS[recipe.task.type].has_labels:
        raise InputError(
            f"`parent.epochs` must be left out for {recipe.task.type}, whose model is used as it is, but got "
            f"{recipe.parent.epochs:g}; `nas finetune` takes it."
        )
    existing = Run(folder) if Path(folder, "recipe.yaml").exists() else None
    remote = existing.is_remote if existing else remote
    if existing and recipe.space == "auto":
        recipe = recipe.model_copy(update={"space": existing.recipe.space})
    context = check_recipe(recipe, remote=remote)
    if existing is None:
        check_exact_constraints(context)
    run = Run.open(folder, context.recipe, remote=remote)
    device = run.device if remote else device_name(recipe.workload)
    if device != run.device:
        raise InputError(
            f"all latencies of a run must come from one device, but `{folder}` was started on {run.device}, and this "
            f"is {device}; choose another folder with --run."
        )
    return context, run


def check_exact_constraints(context: TaskContext) -> None:
    """Raises InputError for a bound on an exact cost that neither the smallest nor the largest subnetwork meets."""
    counts = AnalyticCosts.from_model(context.load_model(), context.layout, context.recipe.task.type)
    space = search_space(context)
    costs = counts.count(COST_NAMES, [space.smallest, space.largest], context.recipe.workload)
    for name, bound in context.recipe.bounds.items():
        if name in COST_NAMES:
            ends = costs[name].tolist()
            if all(bound.violation(value) > 0 for value in ends):
                raise InputError(
                    f"`constraints.{name}` must be reachable in the space, {ends[0]:.4g} to {ends[1]:.4g}, "
                    f"but got `{bound}`; loosen it or widen `space`."
                )


def check_recipe(recipe: Recipe, *, remote: bool = False, sample: int | None = None) -> TaskContext:
    """Loads the model and the data of a recipe and checks that everything fits together; writes nothing.

    Args:
        recipe: The recipe.
        remote: Whether another device measures latencies; its workload is then not checked on this machine.
        sample: Examples of each split that are processed; default: all.

    Returns:
        Its context; there, a ``space`` that is ``auto`` is resolved.

    Raises:
        InputError: With the first thing that does not fit.
    """
    if not remote:
        recipe.workload.check_available()
        check_runtime(recipe.workload)
    check_sampler(recipe)
    context = TaskContext(recipe, sample)
    if recipe.space == "auto":
        proposed = resolved_space(context)
        context.recipe = recipe = recipe.model_copy(update={"space": proposed})
        print_line(f"space      proposed: {', '.join(proposed.model_dump(exclude={'scope'}, exclude_none=True))}")
    if context.extends_positions:
        print_line(
            f"positions  extended to {context.layout.inputs.max_sequence_length} by repeating the pretrained ones"
        )
    for reason in recipe_choices(context)[1]:
        print_line(f"space      {reason}")
    space = search_space(context)
    if space.size < 10:
        raise InputError(f"`space` must hold at least 10 subnetworks, but got {space.size}; add choices.")
    if "kv_cache_mb" in recipe.value_names and not context.layout.family.generates:
        raise InputError(
            f"`kv_cache_mb` needs a model that generates, but `{recipe.model}` has no key-value cache; leave it out."
        )
    if not context.task.has_labels:
        _check_needs_no_labels(context)
    for folder in recipe.profile.earlier:
        Run(folder)
    limit = context.layout.inputs.max_sequence_length
    lengths = {"task.max_length": recipe.task.max_length, "workload.sequence_length": recipe.workload.sequence_length}
    for key, length in lengths.items():
        if limit is not None and (length is None or length > limit):
            raise InputError(
                f"`{key}` must be at most the {limit} positions of the model, but got {length}; lower it."
            )
    if not remote:
        _check_memory(context)
    if recipe.finish.workers is not None:
        raise InputError(
            f"`finish.workers` must be left out, because one process trains each subnetwork, but got "
            f"{recipe.finish.workers}."
        )
    for settings in (recipe.parent, recipe.supernet, recipe.finish):
        check_trackers(settings)
        context.training_set(settings)
    _ = context.has_head
    return context


def _check_needs_no_labels(context: TaskContext) -> None:
    """Raises InputError if a task without labels has no model with weights, or another teacher than that."""
    recipe, name = context.recipe, context.recipe.task.type
    if context.has_no_weights:
        raise InputError(f"{name} needs a trained model, but `{recipe.model}` has no weights; choose another folder.")
    if recipe.supernet.teacher != "parent":
        raise InputError(
            f"`supernet.teacher` must be `parent` for {name}: without labels nothing else is learned from, but got "
            f"`{recipe.supernet.teacher}`."
        )


def _check_memory(context: TaskContext) -> None:
    """Raises InputError if even the hidden states of one layer do not fit into memory."""
    workload, layout = context.recipe.workload, context.layout
    tokens = workload.batch_size * layout.inputs.longest_sequence(workload.sequence_length)
    with device_errors_as_input_errors(workload):
        if tokens * layout.parent.hidden_size * workload.activation_bytes / 1e6 > memory_mb(workload):
            raise MemoryError
