"""Checks a recipe before anything is written, and opens its run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from nas.modeling.registration import stock_classes
from nas.recipe.objectives import FOOTPRINTS, base_name, cost_name
from nas.recipe.schema import Recipe
from nas.runs.progress import print_line
from nas.runs.run import Run, is_run
from nas.stages.layout_proof import broken_dimensions
from nas.stages.parent_check import check_parent
from nas.stages.resources import check_resources
from nas.studies.sampler import check_sampler
from nas.supernets.space import recipe_choices, resolved_space, search_space, vocabulary_sizes
from nas.supernets.trackers import check_trackers
from nas.tasks.context import TaskContext
from nas.tasks.token_table import check_token_table, check_tokens
from predictors import Workload, device_name
from predictors.measurement.energy import counter
from predictors.measurement.memory import memory_mb
from predictors.measurement.prepare import check_runtime
from predictors.measurement.workload import device_errors_as_input_errors
from search_spaces import TASKS, InputError
from search_spaces.dimensions import COST_DIMENSIONS, DIMENSIONS


def open_run(
    recipe: Recipe, folder: str | Path, *, remote: Collection[str] = (), cluster: str | None = None
) -> tuple[TaskContext, Run]:
    """Checks a recipe and opens its run; a new one is created only if the weights of the model load too.

    A ``space`` that is ``auto`` is the run's if there is one; else it is proposed and stored in the new run.

    Args:
        recipe: The recipe.
        folder: The run.
        remote: Names of the workloads that another device measures, besides those of which an existing run has this
            stored.
        cluster: Address of a Ray cluster that the run uses; None for none.

    Raises:
        InputError: If the recipe does not fit the model, the data, this device or the folder.
    """
    check_stages(recipe)
    check_resources(recipe, folder, cluster)
    existing = Run(folder) if is_run(Path(folder)) else None
    remote = {*remote, *(target.name for target in (existing.targets if existing else ()) if target.is_remote)}
    if existing and recipe.space == "auto":
        recipe = recipe.model_copy(update={"space": existing.recipe.space})
    context = check_recipe(recipe, remote=remote)
    if existing is None:
        for line in check_parent(context, folder):
            print_line(line)
    run = Run.open(folder, context.recipe, remote=remote)
    for target in run.targets:
        if target.name not in remote and (device := device_name(target.workload)) != target.device:
            raise InputError(
                f"all latencies{target.label} of a run must come from one device, but `{folder}` was started on "
                f"{target.device}, and this is {device}; choose another folder with --run."
            )
    return context, run


def check_stages(recipe: Recipe) -> None:
    """Raises InputError if a stage of a search cannot do what the recipe asks of it."""
    if recipe.parent.epochs is not None and not TASKS[recipe.task.type].has_labels:
        raise InputError(
            f"`parent.epochs` must be left out for {recipe.task.type}, whose model is used as it is, but got "
            f"{recipe.parent.epochs:g}; `nas finetune` takes it."
        )


def check_recipe(recipe: Recipe, *, remote: Collection[str] = (), sample: int | None = None) -> TaskContext:
    """Loads the model and the data of a recipe and checks that everything fits together; writes nothing.

    Args:
        recipe: The recipe.
        remote: Names of the workloads that another device measures; these are not checked on this machine.
        sample: Examples of each split that are processed; default: all.

    Returns:
        Its context; there, a ``space`` that is ``auto`` is resolved.

    Raises:
        InputError: With the first thing that does not fit.
    """
    here = [workload for name, workload in recipe.named_workloads.items() if name not in remote]
    for workload in here:
        workload.check_available()
        check_runtime(workload)
    check_sampler(recipe)
    context = TaskContext(recipe, sample)
    _resolve_space(context)
    if context.extends_positions:
        print_line(
            f"positions  extended to {context.layout.inputs.max_sequence_length} by repeating the pretrained ones"
        )
    check_token_table(context)
    _check_choices(context)
    _check_stride(context)
    _check_costs(context)
    for name in recipe.named_workloads:
        _check_footprints(recipe, name, name in remote)
    if not context.task.has_labels:
        _check_needs_no_labels(context)
    for folder in (*recipe.profile.earlier, *recipe.search.earlier):
        Run(folder)
    _check_lengths(context)
    for workload in here:
        _check_memory(context, workload)
    _check_trainings(context)
    check_tokens(context)
    for name in recipe.task.metrics:  # also those that no objective names
        context.splits.task.metric(name)
    return context


def _resolve_space(context: TaskContext) -> None:
    """Proposes a ``space`` that is ``auto``, and says what it holds."""
    recipe = context.recipe
    if recipe.space != "auto":
        return
    context.broken_dimensions = broken_dimensions(context.layout.family, recipe.task.type)
    for name, why in context.broken_dimensions.items():
        print_line(f"space      {name} stays as in the parent: {why}")
    proposed = resolved_space(context)
    context.recipe = recipe.model_copy(update={"space": proposed})
    print_line(f"space      proposed: {', '.join(proposed.model_dump(exclude={'scope'}, exclude_none=True))}")


def _check_choices(context: TaskContext) -> None:
    """Says which choices are dropped.

    Raises:
        InputError: If too few subnetworks remain, or a vocabulary cannot be.
    """
    for reason in recipe_choices(context)[1]:
        print_line(f"space      {reason}")
    space = search_space(context)
    for size in vocabulary_sizes(space):
        context.vocabulary.kept(size)  # refuses one with too few pieces
        _require_comparable(context)
    if space.size < 10:
        raise InputError(f"`space` must hold at least 10 subnetworks, but got {space.size}; add choices.")


def _check_lengths(context: TaskContext) -> None:
    """Raises InputError if inputs of the task or of a workload are none of the model."""
    recipe, limit = context.recipe, context.layout.inputs.max_sequence_length
    lengths: dict[str, int | None] = {"task.max_length": recipe.task.max_length}
    for name, workload in recipe.named_workloads.items():
        lengths[f"{workload_key(name)}.sequence_length"] = workload.sequence_length
        _check_phase(context, workload_key(name), workload)
    for key, length in lengths.items():
        if limit is not None and (length is None or length > limit):
            raise InputError(
                f"`{key}` must be at most the {limit} positions of the model, but got {length}; lower it."
            )


def _check_trainings(context: TaskContext) -> None:
    """Raises InputError if a training cannot have its settings; loads the data of each."""
    recipe = context.recipe
    if recipe.finish.workers is not None:
        raise InputError(
            f"`finish.workers` must be left out, because one process trains each subnetwork, but got "
            f"{recipe.finish.workers}."
        )
    for settings in (recipe.parent, recipe.supernet, recipe.finish):
        check_trackers(settings)
        context.training_set(settings)


def _require_comparable(context: TaskContext) -> None:
    """Raises InputError if a value of the recipe does not compare between vocabularies."""
    if names := context.per_token_values:
        raise InputError(
            f"`space.vocabulary` must be left out where `objectives` or `constraints` name `{names[0]}`, a mean over "
            "tokens, which change with the vocabulary; take `bits_per_byte` in its place."
        )


def _check_stride(context: TaskContext) -> None:
    """Raises InputError if held-out windows cannot overlap as the recipe says."""
    settings = context.recipe.task
    if settings.stride is None:
        return
    if not context.task_type.strides:
        rule = f"be left out for {settings.type}, which does not read windows"
    elif settings.stride >= settings.max_length:
        rule = f"be below the {settings.max_length} tokens of a window (`task.max_length`)"
    elif vocabulary_sizes(search_space(context)):
        rule = "be left out where `space.vocabulary` is given, as windows would start at other texts"
    else:
        return
    raise InputError(f"`task.stride` must {rule}, but got {settings.stride}.")


def _check_costs(context: TaskContext) -> None:
    """Raises InputError if an objective or a constraint names a cost that the model or the task does not have."""
    recipe = context.recipe
    if "tokens_per_second" in map(base_name, recipe.value_names) and not TASKS[recipe.task.type].reads_text:
        raise InputError(
            f"`tokens_per_second` needs a model that reads tokens, but `{recipe.task.type}` reads images; take "
            "`samples_per_second`."
        )
    if "kv_cache_mb" in map(base_name, recipe.value_names) and not context.layout.family.generates:
        raise InputError(
            f"`kv_cache_mb` needs a model that generates, but `{recipe.model}` has no key-value cache; leave it out."
        )
    for name in COST_DIMENSIONS:
        if name in recipe.value_names and (why := DIMENSIONS[name].fixed_in(context.task)):
            raise InputError(f"`{name}` is no cost of {recipe.task.type}, because {why}; leave it out.")


def _check_footprints(recipe: Recipe, name: str, is_remote: bool) -> None:
    """Raises InputError if an objective or a constraint names one of `FOOTPRINTS` that cannot be measured."""
    workload = recipe.named_workloads[name]
    for cost in (cost for cost in FOOTPRINTS if cost_name(cost, name) in recipe.value_names):
        if is_remote:
            why = "another device measures latencies only"
        elif cost == "energy_mj" and counter(workload) is None:
            why = "no counter of energy can be read: RAPL below /sys/class/powercap, or NVML with pynvml"
        elif cost == "memory_mb" and workload.on_cuda and not workload.needs_torch:
            why = f"{workload.runtime} has no counter of memory on a GPU"
        else:
            continue
        raise InputError(f"`{cost_name(cost, name)}` must be measured on this device, but {why}; leave it out.")


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


def workload_key(name: str) -> str:
    """The key of a recipe that holds the workload of this name."""
    return f"workloads.{name}" if name else "workload"


def _check_phase(context: TaskContext, key: str, workload: Workload) -> None:
    """Raises InputError if a workload fills or reads a cache, and the model of the task has none."""
    import transformers

    phase = workload.phase
    classes: tuple[Any, ...] = stock_classes(getattr(transformers, context.auto_class), type(context.config))
    if phase != "encode" and not any(each.can_generate() for each in classes):
        raise InputError(
            f"`{key}.phase={phase}` is for models that generate, but that of {context.recipe.task.type} does not; "
            f"set `{key}.phase=encode`."
        )
    if phase == "decode" and workload.sequence_length == 1:
        raise InputError(f"`{key}.sequence_length` must be at least 2 to decode after a cache, but got 1.")


def _check_memory(context: TaskContext, workload: Workload) -> None:
    """Raises InputError if even the hidden states of one layer do not fit into memory."""
    layout = context.layout
    tokens = workload.batch_size * layout.inputs.longest_sequence(workload.sequence_length)
    with device_errors_as_input_errors(workload):
        if tokens * layout.parent.hidden_size * workload.activation_bytes / 1e6 > memory_mb(workload):
            raise MemoryError
