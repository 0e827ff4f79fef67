"""Recipe: everything a run depends on, validated, typed, written back into the run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas.recipe.objectives import COSTS, DIRECTIONS, METRICS, Bound, Direction
from nas.recipe.text import first_error, read_recipe
from predictors import Workload
from search_spaces import TASKS, InputError, Scope
from search_spaces.errors import did_you_mean

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""What ``problem_type`` may be in a Hugging Face config."""

OPTUNA_SAMPLERS = (
    "BruteForceSampler",
    "GPSampler",
    "NSGAIIISampler",
    "NSGAIISampler",
    "QMCSampler",
    "RandomSampler",
    "TPESampler",
)
SAMPLERS = ("SurrogateSampler", "BlockSearch", *OPTUNA_SAMPLERS)
"""Ours and those of Optuna that search several objectives."""

TASK_TYPES = tuple(name for name, task in TASKS.items() if task.default_metric is not None)
"""Tasks that a recipe may ask for."""

STORAGES = ("postgresql", "mysql", "sqlite", "grpc")

RESUMABLE_KEYS = (
    "search.workers",
    *(f"{part}.{kind}_per_worker" for part in ("search", "parent", "supernet") for kind in ("cpus", "gpus")),
    *(f"{part}.report_to" for part in ("parent", "supernet")),
)
"""Keys that say where a run takes place and is followed, not what it does: they may change while it is under way."""


DEFAULT_EPOCHS = 3.0


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskSettings(_Section):
    """What the model must do, and on which data.

    A source is ``hub/id[/config]:split``, a CSV, JSON lines, Parquet or plain text file, a folder of images, or
    ``file.py:function`` that returns a ``datasets.Dataset``.
    """

    type: str = Field(description="A task of Hugging Face's pipelines; nas.tasks.types has them all.")
    train: str
    test: str = Field(description="Held-out split: reported, never searched on.")
    text: list[str] | str | None = Field(None, description="Text column, or a pair; default: by the task type.")
    image: str = "image"
    audio: str = "audio"
    label: str | None = Field(None, description="Label column; default: by the task type, such as `label`.")
    problem_type: ProblemType | None = Field(None, description="Of a classification; default: by the labels.")
    max_length: int = Field(
        128, ge=1, description="Tokens of a text, which is cut there, or of a language model's block."
    )
    metrics: dict[str, str] = Field(
        default_factory=dict,
        description="Qualities of your own: name -> file.py:function, package.module:function or evaluate:name.",
    )
    train_examples: int | None = Field(None, ge=1, description="Use a random part of the training data only.")
    search_examples: int = Field(1000, ge=1, description="Slice of the training data that the search scores on.")


Rank = Literal["full"] | float
"""`full`, or a fraction of the rank at which two factors hold as many numbers as a linear layer's one matrix."""


class Space(_Section):
    """Dimensions left open. A dimension left out keeps the parent's value."""

    scope: Scope = "per-layer"
    num_hidden_layers: list[int] | None = None
    num_decoder_layers: list[int] | None = None
    num_attention_heads: list[int] | None = None
    num_key_value_heads: list[int] | None = None
    intermediate_size: list[int] | None = None
    hidden_size: list[int] | None = None
    attention_rank: list[Rank] | None = None
    mlp_rank: list[Rank] | None = None
    embedding_rank: list[Rank] | None = None
    attention: list[str] | None = Field(None, description="`full`, `local:w` or `bigbird:w,g,r`.")
    bits: list[str] | None = Field(
        None, description="`float32`, `bfloat16`, `int8`, `int8-weight` or `int4-weight`, of the linear layers."
    )


Order = Literal["gradient", "activation", "none"]
"""By what heads, neurons, channels and layers are put in order of importance; none: they stay as they are."""


class Training(_Section):
    """One training loop on `transformers.Trainer`.

    A model that comes with a trained head of the task is trained further only if its ``epochs`` are given.
    """

    epochs: float | None = Field(None, gt=0, description="Default: 3 where there is something to train.")
    learning_rate: float = Field(5e-5, gt=0)
    batch_size: int = Field(32, ge=1)
    weight_decay: float = Field(0.01, ge=0)
    gradient_accumulation_steps: int = Field(1, ge=1)
    activation_checkpointing: bool = False
    bf16: bool = False
    workers: int | None = Field(
        None, ge=1, description="Processes that learn together, each on batches of its own; default: those there are."
    )
    cpus_per_worker: float = Field(1, ge=0, description="Of a Ray cluster.")
    gpus_per_worker: float = Field(0, ge=0, description="Of a Ray cluster.")
    augment: str | None = Field(
        None,
        description="file.py:function that makes a datasets.Dataset of training examples of one: the same columns.",
    )
    report_to: list[Literal["tensorboard", "mlflow"]] = Field(
        default_factory=list, description="What else shows the losses, from the run's `logs`."
    )

    @property
    def num_train_epochs(self) -> float:
        """Epochs of a training that takes place."""
        return DEFAULT_EPOCHS if self.epochs is None else self.epochs


class SupernetTraining(Training):
    """How all subnetworks of the space learn together."""

    epochs: float = Field(DEFAULT_EPOCHS, gt=0)
    order: Order = Field("gradient", description="What importance is measured by, before the training.")
    strategy: Literal["sandwich", "single-path", "granularity", "progressive"] = "sandwich"
    sampler: Literal["mixed", "uniform", "num_parameters", "macs", "latency_ms"] = Field(
        "mixed", description="Which subnetworks are sampled; a cost: spread evenly over it, latency as predicted."
    )
    sampled_subnets: int = Field(2, ge=0)
    teacher: Literal["parent", "in-place"] = Field("parent", description="in-place: the largest subnetwork itself.")
    temperature: float = Field(1.0, gt=0)
    relations: float = Field(0.0, ge=0, description="Weight of the loss on how tokens relate.")
    relations_of: Literal["last", "hidden", "attention"] = Field(
        "last", description="In the last hidden states; in those of each kept layer; or in its queries, keys, values."
    )


class Profile(_Section):
    """How many subnetworks the latency predictor is fitted on, and how well each latency is to be known."""

    samples: int = Field(60, ge=10)
    precision: float = Field(
        0.03, gt=0, lt=1, description="Half-width of the 95 % interval of a latency over its rounds, relative."
    )
    earlier: list[str] = Field(
        default_factory=list,
        description="Runs of the model and space: reused on the same device and workload, else a prior.",
    )


class Search(_Section):
    """An Optuna study: with which sampler, how long, where it is kept, and what a worker of it takes.

    A sampler is `SurrogateSampler` (ours), `BlockSearch` (blocks scored one by one, then an integer program), one of
    Optuna's by name, or one of OptunaHub's as ``package:Class``, for instance ``samplers/moead:MOEADSampler``; the
    package may also be a local folder.
    """

    evaluations: int = Field(200, ge=1)
    hours: float | None = Field(None, gt=0, description="Stop after so long, counted over all commands of the run.")
    patience: int | None = Field(
        None, ge=1, description="Stop when so many evaluations in a row have enlarged the hypervolume by under 0.1 %."
    )
    confidence: float = Field(
        0.99, ge=0.5, le=1, description="An evaluation stops once so sure not to join the front; 1: never."
    )
    sampler: str = "SurrogateSampler"
    sampler_options: dict[str, Any] = Field(default_factory=dict)
    storage: str | None = Field(None, description="Database URL or grpc://host:port; default: a file in the run.")
    workers: int | None = Field(None, ge=1, description="Ray: evaluations at once; default: as many as fit now.")
    cpus_per_worker: float = Field(1, ge=0)
    gpus_per_worker: float = Field(0, ge=0, description="May be a fraction.")


class Recipe(_Section):
    """A whole run.

    Example:
        >>> recipe = Recipe.load("experiments/quickstart/recipe.yaml", ["search.evaluations=50"])
    """

    model: str = Field(description="Hub id or local folder; a folder without weights is trained from scratch.")
    task: TaskSettings
    space: Space
    workload: Workload = Field(default_factory=Workload)
    objectives: dict[str, Direction] = Field(
        default_factory=dict, description="Default: the quality that the task type is known by, and latency_ms."
    )
    constraints: dict[str, str] = Field(default_factory=dict)
    parent: Training = Field(default_factory=Training)
    supernet: SupernetTraining = Field(default_factory=SupernetTraining)
    profile: Profile = Field(default_factory=Profile)
    search: Search = Field(default_factory=Search)
    seed: int = Field(0, ge=0)

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
        """Validates a mapping; the first mistake becomes one line."""
        try:
            recipe = cls.model_validate(data)
        except ValidationError as error:
            raise InputError(first_error(error, cls)) from None
        if recipe.task.type not in TASK_TYPES:
            hint = did_you_mean(recipe.task.type, TASK_TYPES)
            raise InputError(f"`task.type` must be a known one, but got `{recipe.task.type}`; {hint}")
        recipe = recipe._with_defaults()
        recipe._check()
        return recipe

    def to_yaml(self) -> str:
        """The resolved recipe: every default spelled out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @property
    def bounds(self) -> dict[str, Bound]:
        """The constraints, parsed."""
        return {name: Bound.parse(text) for name, text in self.constraints.items()}

    @property
    def value_names(self) -> list[str]:
        """Every figure that the objectives and constraints name."""
        return list(dict.fromkeys((*self.objectives, *self.constraints)))

    @property
    def metric_names(self) -> list[str]:
        """The qualities among them."""
        return [name for name in self.value_names if name not in COSTS]

    @property
    def primary_metric(self) -> str:
        """The first quality among the objectives; what picks and tables lead with."""
        return next(name for name in self.objectives if name not in COSTS)

    def differences(self, other: Recipe) -> list[str]:
        """Dotted keys in which two recipes differ, with both values; where a search runs is no difference."""
        mine, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        keys = sorted(mine.keys() | theirs.keys())
        changed = [k for k in keys if k not in RESUMABLE_KEYS and mine.get(k) != theirs.get(k)]
        return [f"{k}: {mine.get(k)} against {theirs.get(k)}" for k in changed]

    def _with_defaults(self) -> Recipe:
        """The recipe with what the task type decides."""
        task = TASKS[self.task.type]
        update: dict[str, Any] = {}
        if not self.objectives:
            assert task.default_metric is not None
            update["objectives"] = {task.default_metric: METRICS[task.default_metric], "latency_ms": "minimize"}
        if not task.reads_text:
            update["workload"] = replace(self.workload, sequence_length=None)
        return self.model_copy(update=update)

    def _check(self) -> None:
        known = {**DIRECTIONS, **dict.fromkeys(self.task.metrics)}
        for name in self.task.metrics:
            if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in COSTS:
                raise InputError(f"`task.metrics` must have names of letters that are no cost, but got `{name}`.")
        for section, names in (("objectives", self.objectives), ("constraints", self.constraints)):
            for name in names:
                if name not in known:
                    raise InputError(f"`{section}.{name}` is not a known figure; {did_you_mean(name, known)}")
        for name, direction in self.objectives.items():
            if direction != (known[name] or direction):
                raise InputError(f"`objectives.{name}` must be `{known[name]}`, but got `{direction}`.")
        if not (self.objectives.keys() - set(COSTS) and self.objectives.keys() & set(COSTS)):
            raise InputError(
                f"`objectives` must hold a quality ({', '.join(METRICS)}) and a cost ({', '.join(COSTS)}), "
                f"but got {list(self.objectives)}."
            )
        for name, text in self.constraints.items():
            try:
                Bound.parse(text)
            except InputError as error:
                raise InputError(f"`constraints.{name}`: {error}") from None
        if ":" not in self.search.sampler and self.search.sampler not in SAMPLERS:
            raise InputError(
                "`search.sampler` must name a sampler for several objectives or an OptunaHub `package:Class`, but got "
                f"`{self.search.sampler}`; {did_you_mean(self.search.sampler, SAMPLERS)}"
            )
        url = self.search.storage
        if url is not None and url.partition("://")[0].partition("+")[0] not in STORAGES:
            raise InputError(
                f"`search.storage` must be a URL that begins with {', '.join(f'{s}://' for s in STORAGES)}, but got "
                f"`{url}`; leave it out to keep the study in the run's folder."
            )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in data.items():
        nested = isinstance(value, dict) and value
        out |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out
