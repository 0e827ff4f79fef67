"""The schema of a recipe: sections, defaults and checks between fields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from nas.recipe import strict_yaml
from nas.recipe.checks import BLOCK_SEARCH, TASK_NAMES, check_fields, check_workloads
from nas.recipe.objectives import (
    COSTS,
    DIRECTIONS,
    METRICS,
    Bound,
    Direction,
    cost_name,
    is_cost,
)
from nas.recipe.text import boolean_keys, check_values, first_error, is_moved, is_path, read_recipe
from predictors import Workload
from search_spaces import TASKS, InputError, Scope
from search_spaces.dimensions import DIMENSIONS

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""Values of ``problem_type`` in a Hugging Face config."""

TRAININGS = ("parent", "supernet", "finish")
"""Sections with the settings of a training."""

RESUMABLE_KEYS = (
    "search.workers",
    *(f"{section}.{unit}_per_worker" for section in ("search", *TRAININGS) for unit in ("cpus", "gpus")),
    *(f"{section}.report_to" for section in TRAININGS),
    *(f"{section}.minutes" for section in ("profile", "verify")),
)
"""Keys that may change when a run resumes: they set where and how long it runs and who logs it."""

EXTENDABLE_KEYS = (
    "objectives",
    "constraints",
    *(f"search.{name}" for name in ("evaluations", "minutes", "hours", "patience", "confidence")),
    *(f"search.{name}" for name in ("sampler", "sampler_options", "earlier", "seeds")),
    "finish.models",
    "baselines",
    "supernet",
)
"""Keys and sections with which a run goes on: what does not depend on them stays, its front is made again."""

DEFAULT_EPOCHS = 3.0

MAX_SEED = 2**32 - 1
"""NumPy's generators take no larger one."""

SUPERNET_SHARE = 0.1
"""Share of ``minutes`` that trains the supernet: enough to rank subnetworks; the rest finishes the chosen ones."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSettings(_Section):
    """The task: its type, its data, its metrics.

    A source is ``hub/id[/config]:split``; a CSV, TSV, JSON, Parquet or plain text file, or a folder, with a part such
    as ``train[:80%]``; or ``file.py:function`` that returns a ``datasets.Dataset``.
    """

    type: str = Field(
        description="A task of Hugging Face's pipelines; `nas families` lists those of each model type.",
        json_schema_extra={"enum": list[JsonValue](TASK_NAMES)},
    )
    train: str = Field(description="Training split.")
    test: str = Field(description="Held-out split: reported on, never searched on.")
    retrieval: str | None = Field(
        None,
        description="Retrieval set beside `test`, for `ndcg10`, `mrr10` and `recall10`: a folder with `corpus`, "
        "`queries` and `qrels`, as BEIR has them.",
    )
    text: list[str] | str | None = Field(
        None, description="Text column, or a pair of columns; default: by the task type."
    )
    image: str = Field("image", description="Image column.")
    audio: str = Field("audio", description="Audio column.")
    label: list[str] | str | None = Field(
        None,
        description="Label column, or a column of 0 and 1 for each class; default: by the task type, such as `label`.",
    )
    hypothesis_template: str = Field(
        "This is a photo of {}.",
        description="Text of a class in zero-shot image classification; its name takes the place of {}.",
    )
    problem_type: ProblemType | None = Field(None, description="Type of a classification; default: by the labels.")
    max_length: int = Field(
        128,
        ge=1,
        le=1_000_000,
        description="Tokens at which a text is truncated, or tokens of a block of a language model.",
    )
    stride: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Text generation: held-out texts are read in windows of `max_length` tokens that start so many "
        "tokens apart, and each token is scored once, with the most context; default: windows do not overlap.",
    )
    metrics: dict[str, str] = Field(
        default_factory=dict,
        description="Metrics of your own: name -> `file.py:function`, `package.module:function`, `evaluate:name`, or "
        "a task of lm-eval, `lm_eval:arc_easy` or `lm_eval:task.yaml`, with its metric: `lm_eval:arc_easy:acc_norm`.",
    )
    lm_eval_limit: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="Held-out questions of each task of lm-eval, the first ones, as its `--limit`; default: all.",
    )
    train_examples: int | None = Field(
        None, ge=1, le=10**12, description="Size of a random sample of the training data to use; default: all."
    )
    search_examples: int = Field(
        1000,
        ge=1,
        le=10**9,
        description="Examples to score on during the search, set apart from the training data, each class with its "
        "share.",
    )
    validation: str | None = Field(
        None, description="Where the examples to score on during the search come from, in place of the training data."
    )
    group: str | None = Field(
        None, description="Column whose equal values stand in one split, such as that of a patient or a document."
    )

    @field_validator("hypothesis_template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        if template.count("{}") != 1 or "{" in template.replace("{}", ""):
            raise InputError(
                f"`task.hypothesis_template` must have one {{}} for the name of a class, but got `{template[:40]}`."
            )
        return template

    @field_validator("text", mode="before")
    @classmethod
    def _check_text(cls, text: Any) -> Any:
        if text == []:
            raise InputError("`task.text` must name one or two columns, but got []; leave it out for the default.")
        return text


class SpaceBase(_Section):
    """The choices of each dimension. A dimension left out keeps the parent's value."""

    scope: Scope = Field(
        "per-layer", description="`per-layer`: each layer has its own values; `uniform`: all layers share them."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _check_choices(cls, choices: Any, info: ValidationInfo) -> Any:
        if choices == []:
            raise InputError(
                f"`space.{info.field_name}` must hold at least one choice, but got []; leave it out to keep the "
                "parent's."
            )
        return choices


_KEYS: dict[str, Any] = {
    name: (list[dimension.choice_type] | None, Field(None, description=dimension.meaning))  # type: ignore[name-defined]
    for name, dimension in DIMENSIONS.items()
}
Space: type[SpaceBase] = create_model("Space", __base__=SpaceBase, __doc__=SpaceBase.__doc__, **_KEYS)
"""The section ``space``: a key for every dimension."""


ImportanceScore = Literal["gradient", "activation", "none"]
"""The score by which heads, neurons, channels and layers are ordered; none: they keep their order."""


class Training(_Section):
    """Settings of a training with `transformers.Trainer`.

    A model that has a trained head for the task is fine-tuned only if ``epochs`` is set.
    """

    epochs: float | None = Field(
        None, gt=0, le=1e6, description="Default: 3 if the model has no trained head, else none."
    )
    minutes: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="In place of `epochs`: as many steps as take about so long, timed before the first.",
    )
    learning_rate: float = Field(5e-5, gt=0, le=10, description="Peak learning rate.")
    batch_size: int = Field(32, ge=1, le=10**6, description="Examples of one batch, of each process.")
    weight_decay: float = Field(0.01, ge=0, le=100, description="Weight decay.")
    gradient_accumulation_steps: int = Field(1, ge=1, le=10**6, description="Batches of one optimizer step.")
    activation_checkpointing: bool = Field(False, description="Recompute activations: less memory, more time.")
    bf16: bool = Field(False, description="Train in bfloat16 mixed precision.")
    workers: int | None = Field(
        None, ge=1, le=10**5, description="Number of data-parallel processes; default: as many as were launched."
    )
    cpus_per_worker: float = Field(1, ge=0, le=10**5, description="CPUs of a Ray worker.")
    gpus_per_worker: float = Field(0, ge=0, le=10**5, description="GPUs of a Ray worker.")
    augment: str | None = Field(
        None,
        description="`file.py:function`, from a datasets.Dataset of training examples to one with the same columns.",
    )
    report_to: list[Literal["tensorboard", "mlflow"]] = Field(
        default_factory=list, description="Trackers that log the losses, into `logs` of the run."
    )

    @property
    def num_train_epochs(self) -> float:
        """``epochs``, or their default."""
        return DEFAULT_EPOCHS if self.epochs is None else self.epochs


class SupernetTraining(Training):
    """Settings of the supernet: how its weights are ordered, and, with a strategy, how it is trained.

    Raises:
        InputError: If there are keys of a training without a strategy.
    """

    epochs: float = Field(
        1.0, gt=0, le=1e6, description="Epochs: enough to rank subnetworks; the finish does the rest."
    )
    order: ImportanceScore = Field(
        "activation",
        description="Importance score that orders weights; by default `activation`, which needs no backward pass, and "
        "before a training `gradient`.",
    )
    strategy: Literal["sandwich", "single-path", "granularity", "none"] = Field(
        "none",
        description="Which subnetworks are trained in a step. `none`: no training; what remains of a narrower layer "
        "takes over what is left out, by least squares on training data. The other keys but `order` need another one.",
    )
    sampler: Literal["mixed", "uniform", "num_parameters", "macs", "latency_ms"] = Field(
        "mixed", description="Distribution of sampled subnetworks; a cost: uniform over it, latency as predicted."
    )
    sampled_subnets: int = Field(2, ge=0, le=1000, description="Sampled subnetworks of one step.")
    teacher: Literal["parent", "in-place"] = Field("parent", description="`in-place`: the largest subnetwork.")
    temperature: float = Field(1.0, ge=0.01, le=1000, description="Temperature of the distillation.")

    @model_validator(mode="before")
    @classmethod
    def _of_training(cls, values: Any) -> Any:
        """Orders by gradients by default, where there is a training; its keys need a strategy."""
        if not isinstance(values, dict):
            return values
        if "strategy" in values:
            return values if values["strategy"] == "none" else {"order": "gradient", **values}
        if given := [name for name in values if name in cls.model_fields and name != "order"]:
            raise InputError(
                f"`supernet.{given[0]}` needs a training, but `supernet.strategy` is none by default; add "
                "`supernet.strategy=sandwich` or another strategy, or leave it out."
            )
        return values

    @property
    def is_trained(self) -> bool:
        """Whether there is a training; without one, subnetworks are slices of the parent that compensate."""
        return self.strategy != "none"


class Finish(Training):
    """Settings of the finish: chosen subnetworks of the front are trained on, with the parent as the teacher."""

    epochs: float = Field(5.0, gt=0, le=1e6, description="Epochs of each subnetwork, 60 % of them together.")
    models: int = Field(
        3,
        ge=0,
        le=1000,
        description="Subnetworks that are trained on: near the bound, and at 2, 3 and 5 times the speed.",
    )
    learning_rate: float = Field(3e-4, gt=0, le=10, description="Peak learning rate.")
    batch_size: int = Field(16, ge=1, le=10**6, description="Examples of one batch, of each process.")
    temperature: float = Field(2.0, ge=0.01, le=1000, description="Temperature of the distillation.")
    hidden_states: float | None = Field(
        None,
        ge=0,
        le=1e6,
        description="Weight of the difference of hidden states from the parent's, relative; default: 10, or 0 if the "
        "model came without weights.",
    )


class Profile(_Section):
    """How many subnetworks the latency predictor is fitted on, and for how long they are measured.

    Measuring ends at the first of these: the time is over; the predictor's error is reached, or has stopped falling;
    every latency has its precision.
    """

    samples: int = Field(60, ge=10, le=10**5, description="Subnetworks that are measured, if time suffices.")
    minutes: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Upper bound on the time to measure them; default: proposed from the model's speed.",
    )
    error: float = Field(
        0.03, gt=0, lt=1, description="Cross-validated relative error of the predictor at which measuring ends."
    )
    precision: float = Field(
        0.03,
        gt=0,
        lt=1,
        description="Half-width of the 95 % confidence interval of a latency, relative, that is precise enough; also "
        "when the front is measured.",
    )
    earlier: list[str] = Field(
        default_factory=list,
        description="Runs of the same model and space: reused on the same device and workload, a prior on others.",
    )


class Search(_Section):
    """Settings of the Optuna study: sampler, budget, storage, resources of a worker.

    The sampler is `SurrogateSampler` (ours), `BlockSearch` (scores blocks one by one, then solves an integer program),
    the name of one of Optuna's, or ``package:Class`` of OptunaHub, such as ``samplers/moead:MOEADSampler``. The
    package may be a local folder.
    """

    evaluations: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description="Subnetworks that the search evaluates; default: 200, or for `BlockSearch` as many as it needs "
        "to score each replacement of one block.",
    )
    minutes: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Upper bound on the time to plan, propose and evaluate, the random baseline included, summed over "
        "all commands of the run.",
    )
    hours: float | None = Field(None, gt=0, le=1e5, description="In place of `minutes`: the same in hours.")
    patience: int | None = Field(
        None,
        ge=1,
        le=10**6,
        description="Stop once the last so many proposals together improved the hypervolume by under 0.1 %.",
    )
    confidence: float = Field(
        0.99,
        ge=0.5,
        le=1,
        description="Stop an evaluation early at this confidence that it cannot reach the front; 1 disables it.",
    )
    sampler: str = Field(
        "SurrogateSampler",
        description="Name of the sampler; default for `text-generation` without a training, if layers are chosen one "
        "by one and a cost is minimized: `BlockSearch`.",
    )
    sampler_options: dict[str, Any] = Field(default_factory=dict, description="Arguments of the sampler's class.")
    earlier: list[str] = Field(
        default_factory=list, description="Runs of the same space: their fronts are evaluated first."
    )
    seeds: int = Field(
        1, ge=1, le=100, description="Searches with other seeds, this one included; the spread of them is shown."
    )
    storage: str | None = Field(None, description="Database URL or `grpc://host:port`; default: a file in the run.")
    workers: int | None = Field(
        None, ge=1, le=10**5, description="Concurrent evaluations on Ray; default: as many as fit."
    )
    cpus_per_worker: float = Field(1, ge=0, le=10**5, description="CPUs of a Ray worker.")
    gpus_per_worker: float = Field(0, ge=0, le=10**5, description="GPUs of a Ray worker; may be a fraction.")

    @property
    def seconds(self) -> float:
        """The bound on the time; infinite if there is none."""
        minutes = 60 * self.hours if self.hours is not None else self.minutes
        return math.inf if minutes is None else 60 * minutes


class Verify(_Section):
    """For how long the models of the front are exported, scored on the held-out split and measured.

    Measuring ends when neighbours on the front are told apart or have `profile.precision`, or the time is over. What
    time does not suffice for stays as predicted; the same command goes on with it.
    """

    minutes: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Upper bound on the time of all this; default: all models are verified, and the time to measure "
        "them is proposed from their speed.",
    )


class Recipe(_Section):
    """Everything that a run depends on.

    Examples:
        >>> recipe = Recipe.load("experiments/quickstart/recipe.yaml", ["search.evaluations=50"])
    """

    model: str = Field(description="Hub id or local folder; without weights, the model is trained from scratch.")
    trust_remote_code: bool = Field(
        False,
        description="Whether code that comes with a model, of a type that transformers lacks, may run; read it first.",
    )
    task: TaskSettings
    space: Space | Literal["auto"] = Field(
        "auto", description="`auto` (the default): proposed from the model's config and the workload."
    )
    workload: Workload = Field(default_factory=Workload)
    workloads: dict[str, Workload] = Field(
        default_factory=dict,
        description="Several workloads, in place of `workload`: name -> the same keys. Costs name theirs, such as "
        "`latency_ms@phone`.",
    )
    objectives: dict[str, Direction] = Field(
        default_factory=dict,
        description="Metric or cost -> direction; default: the task's default metric, and `latency_ms` of each "
        "workload.",
    )
    constraints: dict[str, str] = Field(
        default_factory=dict,
        description="Metric or cost -> operator and number, such as `<= 80`; `<= 50%` of the parent's, or "
        "`>= parent - 0.01`; two with a comma.",
    )
    parent: Training = Field(default_factory=Training)
    supernet: SupernetTraining = Field(default_factory=SupernetTraining)
    profile: Profile = Field(default_factory=Profile)
    finish: Finish = Field(default_factory=Finish, description="How chosen subnetworks are trained on.")
    search: Search = Field(default_factory=Search)
    verify: Verify = Field(default_factory=Verify)
    baselines: list[Literal["runtimes", "compile", "layer-drop"]] = Field(
        ["runtimes"],
        description="Rows beyond the parent, the parent in int8, layer dropping, uniform scaling and random search. "
        "`runtimes`: the parent in the fastest of the other runtimes that are installed; `compile`: `torch.compile` "
        "among them, which may take minutes; `layer-drop`: layer dropping is trained as long as each finished model.",
    )
    minutes: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Training time after the parent, in place of `epochs`: a tenth for the supernet, the rest for the "
        "finish.",
    )
    seed: int = Field(0, ge=0, le=MAX_SEED, description="Seed of data order, sampling and search.")

    @field_validator("space", mode="before")
    @classmethod
    def _check_space(cls, space: Any) -> Any:
        if not isinstance(space, (Mapping, Space)) and space != "auto":
            raise InputError(f"`space` must be `auto`, or dimensions with their choices, but got `{space}`.")
        return space

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Reads a YAML recipe and applies ``section.key=value`` overrides.

        Local paths in the file are relative to the file, those in overrides to the working directory.

        Raises:
            InputError: If the file is missing or not YAML, a key is unknown, or a value breaks a rule.
        """
        return cls.parse(read_recipe(path, overrides))

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Recipe:
        """Validates a mapping.

        Raises:
            InputError: With the first error, in one line.
        """
        try:
            recipe = cls.model_validate(data)
        except ValidationError as error:
            raise InputError(first_error(error, cls)) from None
        check_values(data, boolean_keys(cls))
        check_workloads(recipe)
        recipe = recipe._with_defaults()
        check_fields(recipe)
        return recipe

    def to_yaml(self) -> str:
        """The resolved recipe, with every default."""
        excluded = {"workload" if self.workloads else "workloads"}
        return strict_yaml.dump(self.model_dump(mode="json", exclude=excluded))

    @property
    def named_workloads(self) -> dict[str, Workload]:
        """The workloads by name; a single one that was given as ``workload`` has an empty name."""
        return self.workloads or {"": self.workload}

    @property
    def bounds(self) -> dict[str, Bound]:
        """The constraints, parsed."""
        return {name: Bound.parse(text) for name, text in self.constraints.items()}

    def with_parent(self, values: Mapping[str, float]) -> Recipe:
        """The recipe with bounds in the parent's terms as numbers.

        Args:
            values: The parent's metrics and costs; bounds on others are left out.
        """
        bounds = {name: bound for name, bound in self.bounds.items() if not bound.is_relative or name in values}
        resolved = {n: bound.resolve(values[n]) if bound.is_relative else bound for n, bound in bounds.items()}
        return self.model_copy(update={"constraints": {name: bound.exact for name, bound in resolved.items()}})

    @property
    def relative_bounds(self) -> dict[str, Bound]:
        """The bounds in the parent's terms."""
        return {name: bound for name, bound in self.bounds.items() if bound.is_relative}

    @property
    def value_names(self) -> list[str]:
        """The metrics and costs that the objectives and constraints name."""
        return list(dict.fromkeys((*self.objectives, *self.constraints)))

    @property
    def metric_names(self) -> list[str]:
        """The metrics that the objectives and constraints name."""
        return [name for name in self.value_names if not is_cost(name)]

    @property
    def primary_metric(self) -> str:
        """The first metric among the objectives."""
        return next(name for name in self.objectives if not is_cost(name))

    def differences(self, other: Recipe) -> dict[str, str]:
        """Dotted keys in which an older recipe differs -> both values; not those that may change on resuming.

        Files that were moved are the same.
        """
        mine, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        keys = sorted(mine.keys() | theirs.keys())
        moved = self.moved_keys(other)
        changed = [k for k in keys if k not in (*RESUMABLE_KEYS, *moved) and mine.get(k) != theirs.get(k)]
        return {k: f"{k}: {_stated(mine.get(k))}, was {_stated(theirs.get(k))}" for k in changed}

    @staticmethod
    def is_extendable(key: str) -> bool:
        """Whether a run goes on with another value of a dotted key, see `EXTENDABLE_KEYS`."""
        return any(key == known or key.startswith(f"{known}.") for known in EXTENDABLE_KEYS)

    def moved_keys(self, other: Recipe) -> list[str]:
        """Keys whose file or folder an older recipe has at a place where there is nothing any more."""
        mine, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        return [key for key, new in mine.items() if is_path(key) and is_moved(theirs.get(key), new)]

    def _with_defaults(self) -> Recipe:
        """The recipe with the defaults that depend on the task type."""
        task = TASKS[self.task.type]
        update: dict[str, Any] = {}
        if not self.objectives:
            assert task.default_metric is not None
            latencies = dict.fromkeys((cost_name("latency_ms", name) for name in self.named_workloads), "minimize")
            update["objectives"] = {task.default_metric: METRICS[task.default_metric], **latencies}
        if self.minutes is not None:
            share = SUPERNET_SHARE if self.supernet.is_trained else 0.0
            shares = {"supernet": share, "finish": 1 - share}
            for section, share in shares.items():
                settings = getattr(self, section)
                minutes = settings.minutes or share * self.minutes or None
                update[section] = settings.model_copy(update={"minutes": minutes})
        if "sampler" not in self.search.model_fields_set and self._suits_blocks(update.get("objectives")):
            update["search"] = self.search.model_copy(update={"sampler": BLOCK_SEARCH})
        workloads = self.named_workloads
        if not task.reads_text:
            workloads = {name: replace(each, sequence_length=None) for name, each in workloads.items()}
        update |= {"workload": next(iter(workloads.values())), "workloads": workloads if self.workloads else {}}
        return self.model_copy(update=update)

    def _suits_blocks(self, objectives: Mapping[str, Direction] | None) -> bool:
        """Whether replacements of single blocks are scored first: blocks of a pretrained decoder hardly interact."""
        of_blocks = self.task.type == "text-generation" and not self.supernet.is_trained
        per_layer = self.space == "auto" or self.space.scope == "per-layer"
        costs = [way for name, way in (objectives or self.objectives).items() if is_cost(name)]
        return of_blocks and per_layer and "minimize" in costs

    @property
    def directions(self) -> dict[str, Direction | None]:
        """Every metric, and every cost under every workload -> the direction that improves it, if it is known."""
        costs = {cost_name(cost, name): DIRECTIONS[cost] for name in self.named_workloads for cost in COSTS}
        return {**METRICS, **costs, **dict.fromkeys(self.task.metrics)}


def _stated(value: Any) -> str:
    """A value of a recipe in a sentence."""
    return "not set" if value is None else str(value)


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out
