"""`nas init`: proposes a recipe for a model and its data, checks it, and writes it with comments."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.modeling.registration import head_task
from nas.recipe.checks import TASK_NAMES
from nas.recipe.code import code_keys
from nas.recipe.comments import commented_yaml
from nas.recipe.objectives import METRICS
from nas.recipe.schema import Recipe
from nas.recipe.text import absolute_source, apply_overrides, split_source
from nas.runs.files import write_text
from nas.stages.check import check_recipe
from nas.stages.layout_proof import broken_dimensions
from nas.stages.parent_check import check_exact_constraints
from nas.supernets.space import propose_space
from nas.tasks.columns import TaskColumns, guess_columns, guess_task
from nas.tasks.context import TaskContext
from nas.tasks.data import load_source
from nas.tasks.labels import infer_problem_type
from nas.tasks.lengths import propose_length
from nas.tasks.loading import load_parent_config, load_processor
from nas.tasks.types import TASK_TYPES
from predictors.measurement.prepare import check_runtime
from predictors.measurement.runtimes import RUNTIMES
from predictors.measurement.workload import Workload
from search_spaces import TASKS, InputError, Layout
from search_spaces.dimensions import BLOCKS
from search_spaces.errors import did_you_mean
from search_spaces.proportions import linear_weights

if TYPE_CHECKING:
    from datasets import Dataset

PLACEHOLDERS = {"train": "train.csv", "test": "test.csv"}
"""What stands for data that was not given."""
TRUSTING = "trust_remote_code=true"
"""The override with which code of the model may run."""
METRIC_OF = {"multi_label_classification": "f1", "regression": "pearsonr"}
"""Problem type -> objective, where it is not the task's default."""
ONE_THREAD_UP_TO = 50e6
"""Weights of the layers up to which one thread is proposed: more save little time and measure less calmly."""
DEFAULT_LENGTH = 128
MOST_NAMED = 8
"""Columns that a comment names at most."""
CLASSIFICATIONS = ("text-classification", "image-classification", "audio-classification")


@dataclass(frozen=True)
class ProposedRecipe:
    """A recipe with a comment for each key that was found out.

    Attributes:
        data: The recipe; local paths are absolute.
        comments: Dotted key -> why it has its value, or why it was left out.
        missing: Keys that hold a placeholder.
    """

    data: dict[str, Any]
    comments: dict[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def propose_recipe(
    model: str,
    train: str | None = None,
    test: str | None = None,
    *,
    task: str | None = None,
    bounds: Mapping[str, float] | None = None,
    trust: bool = False,
) -> ProposedRecipe:
    """Proposes a recipe and checks it as `nas search` would; writes nothing.

    Args:
        model: Hub id or folder.
        train: Source of the training data; a placeholder takes its place if it is not given.
        test: Source of the held-out data.
        task: Name of the task; default: by the model's head and the data's columns.
        bounds: Cost -> most that it may be.
        trust: Whether code that comes with the model may run.

    Raises:
        InputError: If the model, the data or a bound cannot be used.
    """
    sources = {"train": train, "test": test}
    given = {name: absolute_source(source, Path()) for name, source in sources.items() if source is not None}
    if task is not None and task not in TASK_NAMES:
        raise InputError(f"`--task` must be a supported task, but got `{task}`; {did_you_mean(task, TASK_NAMES)}.")
    model = absolute_source(model, Path())
    layout = Layout(load_parent_config(model, trust), task or "")
    if task is not None and task not in layout.family.tasks:
        raise InputError(
            f"`--task` must be one that `{layout.family.model_type}` does ({', '.join(layout.family.all_tasks)}), but "
            f"got `{task}`."
        )
    code = {"trust_remote_code": True} if trust else {}
    data: dict[str, Any] = {"model": model, **code, "task": {**PLACEHOLDERS, **given}, "space": "auto"}
    comments: dict[str, str] = {}
    reads = task or head_task(layout.config, layout.family.tasks)
    examples = _load_train(given["train"], layout, reads) if "train" in given else None
    data["task"], why = _task_section(data["task"], layout, examples, task, trust)
    comments |= {f"task.{key}": text for key, text in why.items()}
    data["workload"], why = _workload_section(layout, data["task"])
    comments |= {f"workload.{key}": text for key, text in why.items()}
    data["objectives"], comments["objectives"] = _objectives(data["task"], layout, examples)
    if bounds:
        data["constraints"] = {name: f"<= {value:g}" for name, value in bounds.items()}
    proposed = _with_space(ProposedRecipe(data, comments, tuple(name for name in PLACEHOLDERS if name not in given)))
    _check(proposed)
    return proposed


def init_recipe(
    model: str,
    train: str | None,
    test: str | None,
    task: str | None,
    bounds: Mapping[str, float | None],
    out: Path,
    *,
    trust: bool = False,
) -> list[str]:
    """Proposes a recipe and writes it to a new file.

    Returns:
        Lines to print.

    Raises:
        InputError: If the file exists, or a recipe cannot be proposed; nothing is written.
    """
    if os.path.lexists(out) or not out.parent.is_dir():
        raise InputError(f"`--out` must be a new file in a folder that exists, but got `{out}`; name another.")
    for name, value in bounds.items():
        if value is not None and not value > 0:
            raise InputError(f"`--{name.replace('_', '-')}` must be above 0, but got {value:g}.")
    given = {name: value for name, value in bounds.items() if value is not None}
    proposed = propose_recipe(model, train, test, task=task, bounds=given, trust=trust)
    write_recipe(proposed, out)
    lines = [
        f"task       {proposed.data['task']['type']}: {proposed.comments.get('task.type', 'the head of the model')}"
    ]
    if proposed.missing:
        missing = " and ".join(f"`task.{name}`" for name in proposed.missing)
        return [*lines, f"recipe     {out}: fill in {missing}"]
    return [*lines, f"recipe     {out}", f"next       nas search {out}"]


def recipe_of_run(
    model: str, folder: Path, train: str | None, test: str | None, task: str | None, overrides: Sequence[str]
) -> Recipe:
    """The recipe of a search that is given a model and data: the run's where there is one, else a proposed one.

    Raises:
        InputError: If data is missing, or a recipe cannot be proposed.
    """
    if Path(model).suffix in (".yaml", ".yml"):
        raise InputError(
            f"`--train`, `--test` and `--task` must come with a model, but got the recipe `{model}`; override its "
            "keys, such as `task.train=FILE`."
        )
    if train is None or test is None:
        raise InputError(
            "a search without a recipe needs a model, `--train` and `--test`, but "
            f"`--{'train' if train is None else 'test'}` is missing; give it, or write a recipe with `nas init`."
        )
    if Path(folder, "recipe.yaml").is_file():
        sources = {"model": model, "task.train": train, "task.test": test, **({"task.type": task} if task else {})}
        changes = [f"{key}={absolute_source(source, Path())}" for key, source in sources.items()]
        _require_no_code(folder, [*changes, *overrides])
        return Recipe.load(Path(folder, "recipe.yaml"), [*changes, *overrides])
    trust = TRUSTING in overrides  # the code of the model runs before there is a recipe
    return Recipe.parse(apply_overrides(propose_recipe(model, train, test, task=task, trust=trust).data, overrides))


def _require_no_code(folder: Path, given: Sequence[str]) -> None:
    """Raises InputError if the recipe of a run names code that this command line does not name."""
    known = [override.partition("=")[0] for override in given]
    keys = [key for key in code_keys(Recipe.load(folder / "recipe.yaml")) if key not in known]
    if keys:
        raise InputError(
            f"the recipe of `{folder}` names code that would run (`{keys[0]}`); read it, and if you trust who made "
            f"it, type `nas search {folder / 'recipe.yaml'} --run {folder}`."
        )


def write_recipe(proposed: ProposedRecipe, file: Path) -> None:
    """Writes a proposed recipe; never over a file. Local paths become relative to it."""
    task = {name: relative_source(proposed.data["task"][name], file.parent) for name in ("train", "test")}
    model = relative_source(proposed.data["model"], file.parent)
    data = {**proposed.data, "model": model, "task": {**proposed.data["task"], **task}}
    head = (
        f"# Written by `nas init` for {model}. Keys that are not here have defaults:\n"
        f"# `nas search {file.name} --dry-run` prints them, with an estimate of the time.\n"
    )
    if os.path.lexists(file):
        raise InputError(f"`--out` must be a new file, but there is `{file}`; name another.")
    write_text(file, head + commented_yaml(data, proposed.comments))


def relative_source(source: str, folder: Path) -> str:
    """A source with a path relative to a folder if it is an absolute one below it; else unchanged."""
    path, name = split_source(source)
    if not os.path.isabs(path) or not Path(path).is_relative_to(folder.resolve()):
        return source
    return str(Path(path).relative_to(folder.resolve())) + (f":{name}" if name else "")


def _load_train(source: str, layout: Layout, task: str | None) -> Dataset:
    speech = "automatic-speech-recognition" in layout.family.tasks
    by_line = task is not None and TASK_TYPES[task].reads_lines
    examples = load_source(source, "audiofolder" if speech else "imagefolder", by_line=by_line)
    if not len(examples):
        raise InputError(f"`--train` must hold examples, but `{source}` has none.")
    return examples


def _task_section(
    section: dict[str, Any], layout: Layout, examples: Dataset | None, task: str | None, trust: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """The section ``task`` and its comments."""
    head = head_task(layout.config, layout.family.tasks)
    if examples is None:
        task_type = task or head
        if task_type is None:
            raise InputError(
                "the task must follow from the model's head or the data, but the model has no head of a task and "
                f"there is no data; give `--train`, or `--task`: {', '.join(layout.family.tasks)}."
            )
        comments = {"train": "fill in", "test": "fill in: held out, reported on, never searched on"}
        return {"type": task_type, **section}, {"type": "as given" if task else "the model's head", **comments}
    source = section["train"]
    task_type = task or guess_task(examples, layout.family.tasks, head, source)
    columns = guess_columns(examples, task_type, source)
    column_keys = {key: name for key, name in columns.items() if (key, name) not in DEFAULT_COLUMNS}
    comments = {
        "type": "as given" if task else "the model's head" if task_type == head else "by the columns of the data",
        "train": f"rows: {len(examples):,}; columns: {', '.join(examples.column_names[:MOST_NAMED])}",
        "test": "held out: reported on, never searched on",
        "search_examples": "of the training data, to score on during the search",
    }
    lengths, why, count = _length_keys(task_type, columns, examples, layout, trust)
    comments |= why
    searched = {"search_examples": min(1000, max(1, count // 4))}
    return {"type": task_type, **section, **column_keys, **lengths, **searched}, comments


DEFAULT_COLUMNS = (("image", "image"), ("audio", "audio"))
"""Columns that need not be named."""


def _length_keys(
    task: str, columns: TaskColumns, examples: Dataset, layout: Layout, trust: bool
) -> tuple[dict[str, int], dict[str, str], int]:
    """The length of texts, its comment, and the number of training examples."""
    if not TASKS[task].reads_text or TASK_TYPES[task].processor_class == "AutoFeatureExtractor":
        return {}, {}, len(examples)
    processor = load_processor(TASK_TYPES[task], layout.config.name_or_path, trust)
    tokenizer = getattr(processor, "tokenizer", processor)
    length = propose_length(task, columns, examples, tokenizer, layout.inputs.max_sequence_length)
    return {"max_length": length.tokens}, {"max_length": length.reason}, length.examples


def _workload_section(layout: Layout, task: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """This machine's workload, and its comments."""
    import torch

    cuda = torch.cuda.is_available()
    weights = linear_weights(layout)
    threads = 1 if cuda or weights <= ONE_THREAD_UP_TO else torch.get_num_threads()
    section: dict[str, Any] = {"runtime": "torch", "device": "cuda" if cuda else "cpu", "batch_size": 1}
    comments = {"runtime": f"installed here: {', '.join(_installed_runtimes())}"}
    if TASKS[task["type"]].reads_text:
        length, limit = task.get("max_length", DEFAULT_LENGTH), layout.inputs.max_sequence_length
        section["sequence_length"] = length if limit is None else min(length, limit)
        comments["sequence_length"] = "tokens of one input when latency is measured"
    section["threads"] = threads
    comments["threads"] = f"{torch.get_num_threads()} at most; the layers have {weights / 1e6:,.1f} M weights"
    return section, comments


def _installed_runtimes() -> list[str]:
    """Runtimes that can run on this machine."""
    installed = []
    for runtime in RUNTIMES:
        try:
            check_runtime(Workload(runtime=runtime))
        except InputError:
            continue
        installed.append(str(runtime))
    return installed


def _objectives(task: dict[str, Any], layout: Layout, examples: Dataset | None) -> tuple[dict[str, str], str]:
    """A metric and the latency, with directions, and a comment."""
    task_type = task["type"]
    metric = TASKS[task_type].default_metric
    if task_type in CLASSIFICATIONS and examples is not None:
        problem = infer_problem_type(examples, task.get("label", "label"), task["train"])
        one_output = problem is None and layout.config.num_labels == 1
        metric = METRIC_OF.get("regression" if one_output else problem or "", metric)
    assert metric is not None
    return {metric: METRICS[metric], "latency_ms": "minimize"}, "at least one metric and one cost"


def _with_space(proposed: ProposedRecipe) -> ProposedRecipe:
    """The recipe with the proposed space in place of ``auto``, and why dimensions are left out."""
    context = TaskContext(Recipe.parse(proposed.data))
    family = context.layout.family
    context.broken_dimensions = broken_dimensions(family, context.recipe.task.type)
    proposal = propose_space(context)
    comments = {f"space.{name}": f"left out: {why}" for name, why in proposal.left_out.items()}
    comments["space"] = "a dimension left out keeps the model's value"
    skippable = {width: block for block, (width, *_) in BLOCKS.items()}
    for name, block in skippable.items():
        if name in proposal.choices and block in family.skippable and not family.shared_layers:
            comments[f"space.{name}"] = "add 0 to let layers skip this block"
    comments["space.scope"] = "or uniform: all layers alike"
    data = {**proposed.data, "space": proposal.choices}
    if context.has_no_weights:
        data["supernet"] = {"strategy": "single-path", "order": "none"}
        comments["supernet.strategy"] = "slices of a model that starts at random are ranked after a training"
    return ProposedRecipe(data, {**proposed.comments, **comments}, proposed.missing)


def _check(proposed: ProposedRecipe) -> None:
    """Raises InputError unless the recipe passes the checks of `nas search`; data that is missing is left out."""
    task = proposed.data["task"]
    if "train" in proposed.missing:
        return
    checked = {**task, "test": task["train"]} if "test" in proposed.missing else task
    context = check_recipe(Recipe.parse({**proposed.data, "task": checked}))
    if context.recipe.constraints:
        check_exact_constraints(context, context.load_model())
