"""TaskContext: the data, the processor and the model of a recipe, prepared for training and scoring."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nas.modeling.cast import cast_weights
from nas.modeling.longer_positions import extend_config, extend_positions, num_positions
from nas.modeling.registration import stock_classes
from nas.modeling.unfolded import is_export, refusal, unfold
from nas.recipe.schema import Recipe, Training
from nas.recipe.text import split_source
from nas.tasks.boxes import load_coco
from nas.tasks.data import augment, load_source
from nas.tasks.dummy_inputs import dummy_inputs
from nas.tasks.evaluation import EvaluationSet
from nas.tasks.images import image_shape, processed_size, resized_processor, with_image_size
from nas.tasks.loading import load_parent_config, load_processor
from nas.tasks.search_slice import draw, require_groups_apart, split_training_data, with_group_ids
from nas.tasks.sources.parts import take_part
from nas.tasks.trimmed_tokenizer import trimmed_tokenizer
from nas.tasks.types import TASK_TYPES, TaskType
from nas.tasks.types.base import TaskInputs
from nas.tasks.types.harness_questions import PARTS
from nas.tasks.vocabulary import Vocabulary
from nas.tasks.weights import WEIGHTS, load_weights
from predictors import Workload
from search_spaces import FAMILIES, TASKS, InputError, Layout, SubnetConfig
from search_spaces.dimension import FULL
from search_spaces.errors import short_error
from search_spaces.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel


UNFOLDED_ERROR = 1e-4
"""Largest difference of the outputs of an export that was filled up with zeros, relative to the largest output."""


LENGTH_EXAMPLES = 2000
"""Training examples from which the growth of texts with fewer pieces is found."""


@dataclass(frozen=True)
class Splits:
    """Data of a run. The search never reads ``test``.

    Attributes:
        task: The task; it collates batches and selects the outputs that are scored.
        raw_train: Training examples of the parent and the supernet, before processing.
        train: The same examples as model inputs with labels.
        n_search: Examples of the search slice, before processing.
        n_more: Those of ``more``.
        search: Slice on which the search scores subnetworks: of the training data, or of ``task.validation``.
        more: As many further examples, on which near ties are scored; None where too few are left for the training.
        test: Held-out split on which results are reported.
        validation: Examples of ``task.validation``, before processing; None without it.
    """

    task: TaskType
    raw_train: Dataset
    train: Dataset
    n_search: int
    n_more: int
    search: EvaluationSet
    more: EvaluationSet | None
    test: EvaluationSet
    validation: Dataset | None


@dataclass(frozen=True)
class SizedExamples:
    """The examples of a training as inputs of another size: a smaller vocabulary, or smaller images.

    Attributes:
        task: Collates them.
        dataset: Rows of the same examples, in the same order.
        kept: Of a vocabulary, the id of each of its pieces in the full one (pieces,).
    """

    task: TaskType
    dataset: Dataset
    kept: torch.Tensor | None

    def rows(self, index: Sequence[int]) -> list[dict[str, Any]]:
        """Rows by their index; from the first on again where there are fewer."""
        columns = self.dataset[[number % len(self.dataset) for number in index]]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


OtherSizes = Mapping[str, SizedExamples]
"""Size of inputs -> the examples of a training as such inputs."""


class TaskContext:
    """A recipe with its config, layout, processor and data, each loaded on first use.

    Args:
        recipe: The recipe.
        sample: Examples of each split that are processed, enough for an estimate; None: all.

    Attributes:
        broken_dimensions: Dimensions that a proposed space leaves out, as they break a law in a model whose table is
            another type's -> what is wrong with them.
    """

    def __init__(self, recipe: Recipe, sample: int | None = None) -> None:
        self.recipe, self.sample = recipe, sample
        self._training_sets: dict[str | None, Dataset] = {}
        self._of_size: dict[str, TaskContext] = {FULL: self}
        self._tokens = 1, 1
        self.broken_dimensions: Mapping[str, str] = {}
        self._trains = False

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The parent's Hugging Face config, with enough learned positions for the inputs of the recipe.

        Where a model reads images of any size, its image processor says how large they are.
        """
        config = extend_config(self._stored_config, self._longest_input)
        family = FAMILIES.get(config.model_type)
        if family is not None and family.any_image_size and not self.task.reads_text:
            processor = load_processor(self.task_type, self.recipe.model, self.recipe.trust_remote_code)
            config.image_size = processed_size(processor)
        return config

    @cached_property
    def stored_dtype(self) -> torch.dtype:
        """The dtype of the parent's files: one of 16 bits, any other is taken for float32."""
        stored = getattr(self._stored_config, "dtype", None)
        return stored if stored in (torch.bfloat16, torch.float16) else torch.float32

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of exports, by default that of the parent's files."""
        return self.stored_dtype

    @property
    def memory_dtype(self) -> torch.dtype:
        """The dtype of weights in memory: that of the parent's files where nothing is trained, else float32."""
        return torch.float32 if self._trains or self.recipe.supernet.is_trained else self.stored_dtype

    @contextmanager
    def training(self) -> Iterator[None]:
        """Loads models in float32 meanwhile, as a training of all weights needs them."""
        before, self._trains = self._trains, True
        try:
            yield
        finally:
            self._trains = before

    @cached_property
    def extends_positions(self) -> bool:
        """Whether the learned positions are repeated because the recipe's inputs have more tokens than the model."""
        return num_positions(self._stored_config) != num_positions(self.config)

    @property
    def _stored_config(self) -> PreTrainedConfig:
        return load_parent_config(self.recipe.model, self.recipe.trust_remote_code)

    @property
    def _longest_input(self) -> int:
        lengths = (workload.sequence_length or 0 for workload in self.recipe.named_workloads.values())
        return max(self.recipe.task.max_length, *lengths)

    @cached_property
    def layout(self) -> Layout:
        """The elastic dimensions of the parent; InputError if its family does not support the task."""
        layout, task = Layout(self.config, self.recipe.task.type), self.recipe.task.type
        if task not in layout.family.tasks:
            raise InputError(
                f"`task.type` must be a task that `{layout.family.model_type}` supports "
                f"({', '.join(layout.family.all_tasks)}), but got `{task}`."
            )
        return layout

    @property
    def task(self) -> Task:
        """The properties of the task that do not depend on its data."""
        return TASKS[self.recipe.task.type]

    @property
    def auto_class(self) -> str:
        """Name of the auto class of transformers for the task."""
        return self.task.auto_class

    @property
    def task_type(self) -> type[TaskType]:
        """The class of the recipe's task."""
        return TASK_TYPES[self.recipe.task.type]

    @cached_property
    def processor(self) -> Any:
        """The tokenizer, the image processor or, for speech, the processor with tokenizer and feature extractor."""
        processor = load_processor(self.task_type, self.recipe.model, self.recipe.trust_remote_code)
        if self.extends_positions:
            processor.model_max_length = self.layout.inputs.max_sequence_length
        return processor

    def save_processor(self, folder: Path, subnet: SubnetConfig | None = None) -> None:
        """Writes what the model folder of a subnetwork, by default of the parent, needs beside its weights."""
        subnet = subnet or self.layout.parent
        what = self.of(subnet).processor, self.recipe.model, self.layout, subnet
        self.task_type.save_processor(*what, folder)

    # -- the vocabulary or the images of a subnetwork -----------------------------------------------------------------

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The pieces of the tokenizer by their use in the training texts; a run that has stored them sets it."""
        texts = self.splits.train["input_ids"]
        counts = np.bincount(np.fromiter((i for text in texts for i in text), dtype=np.int64))
        return Vocabulary.by_use(self.processor, counts)

    def of(self, subnet: SubnetConfig) -> TaskContext:
        """The context with the tokenizer or the image processor of a subnetwork: the same rows as its inputs."""
        return self.of_size(subnet.input_size)

    def of_size(self, size: str) -> TaskContext:
        """The context with a tokenizer of so many pieces or images of so many pixels, itself for ``full``."""
        if size not in self._of_size:
            config, processor = self._trimmed(size) if self.task.reads_text else self._resized(int(size))
            other = TaskContext(self.recipe, self.sample)
            other.__dict__ |= {"config": config, "layout": self.layout, "extends_positions": self.extends_positions}
            other.__dict__ |= {"processor": processor, "_of_size": self._of_size}
            other._tokens = self._tokens_beside(other) if self.task.reads_text else (1, 1)
            self._of_size[size] = other
        return self._of_size[size]

    def _trimmed(self, size: str) -> tuple[PreTrainedConfig, Any]:
        """Config and tokenizer with so many pieces."""
        kept, config = self.vocabulary.kept(size), copy.deepcopy(self.config)
        config.update({"vocab_size": len(kept), **self.vocabulary.token_ids(vars(config), size)})
        return config, trimmed_tokenizer(self.processor, kept)

    def _resized(self, side: int) -> tuple[PreTrainedConfig, Any]:
        """Config and image processor for images with a side of so many pixels."""
        config = with_image_size(self.config, side)
        return config, resized_processor(self.processor, side / image_shape(self.config)[-1])

    def in_own_tokens(self, workload: Workload) -> Workload:
        """A workload of the recipe; with fewer pieces the same texts have more tokens."""
        limit, length = self.layout.inputs.max_sequence_length, workload.sequence_length
        if length is None:
            return workload
        parents, own = self._tokens
        longer = max(length, math.ceil(length * own / max(parents, 1)))
        return replace(workload, sequence_length=min(longer, limit or longer))

    @property
    def per_token_values(self) -> list[str]:
        """Metrics of the recipe that do not compare between vocabularies."""
        return sorted(self.task_type.per_token_metrics & {*self.recipe.value_names} - {*self.recipe.task.metrics})

    def of_sizes(self, sizes: Iterable[str], settings: Training) -> OtherSizes:
        """The examples of one training as inputs of other sizes, row by row those of `training_set`."""
        contexts = {size: self.of_size(size) for size in sorted({*sizes} - {FULL})}
        return {size: self._sized(size, each, settings) for size, each in contexts.items()}

    def _sized(self, size: str, other: TaskContext, settings: Training) -> SizedExamples:
        kept = torch.from_numpy(self.vocabulary.kept(size)) if self.task.reads_text else None
        return SizedExamples(other.splits.task, other.training_set(settings), kept)

    # -- the data -----------------------------------------------------------------------------------------------------

    @cached_property
    def splits(self) -> Splits:
        """The processed data; the recipe's seed decides which examples form the search slice."""
        settings, seed = self.recipe.task, self.recipe.seed
        train, test = self._load(settings.train), self._load(settings.test)
        task = self.task_type(self._task_inputs, train, test)
        for name in self.recipe.metric_names:
            task.metric(name)
        validation = self._validation(train)
        apart = [(task.train, "task.train"), (task.test, "task.test"), (validation, "task.validation")]
        require_groups_apart(settings, [(examples, key) for examples, key in apart if examples is not None])
        if validation is None:
            train, search, more = split_training_data(task, settings, seed)
        else:
            train = task.train.shuffle(seed=seed)
            search, more = draw(task, validation, settings.search_examples, seed)
        train = train.select(range(min(settings.train_examples or len(train), len(train))))
        source = settings.validation or settings.train
        searched = task.process(self._sampled(search), source)
        further = task.process(self._sampled(more), source) if len(more) else more
        return Splits(
            task=task,
            raw_train=train,
            train=task.process(self._sampled(train), settings.train),
            n_search=len(search),
            n_more=len(more),
            search=self._with_questions(EvaluationSet.from_dataset(searched, task), 0, PARTS if len(further) else 1),
            more=self._with_questions(EvaluationSet.from_dataset(further, task), 1) if len(further) else None,
            test=self._held_out(task, settings.test),
            validation=validation,
        )

    def _load(self, source: str) -> Dataset:
        path, part = split_source(source)
        if self.task_type.reads_coco and path.endswith(".json"):
            examples = take_part({"train": load_coco(Path(path))}, part, path)
        else:
            examples = load_source(source, self.task_type.folder_builder, by_line=self.task_type.reads_lines)
        return with_group_ids(examples, self.recipe.task.group)

    def _validation(self, train: Dataset) -> Dataset | None:
        """The examples of ``task.validation``, checked and labelled like held-out ones; None if there are none."""
        source = self.recipe.task.validation
        if source is None:
            return None
        settings = self.recipe.task.model_copy(update={"test": source})
        return self.task_type(replace(self._task_inputs, settings=settings), train, self._load(source)).test

    def _held_out(self, task: TaskType, source: str) -> EvaluationSet:
        """The held-out examples of a task, with the sets beside them; a sample has none."""
        examples = EvaluationSet.from_dataset(task.process(self._sampled(task.test), source), task)
        beside = [] if self.sample is not None else [self._held_out(other, source) for other in task.beside]
        return replace(examples, beside=tuple(beside))

    def _with_questions(self, examples: EvaluationSet, part: int, parts: int = PARTS) -> EvaluationSet:
        """Examples of the search with the questions of one of some parts of those beside them; a sample has none."""
        beside, others = list[EvaluationSet](), examples.task.beside_search if self.sample is None else ()
        for other in others:
            size = self._questions_each(other, parts)
            questions = other.train.select(range(part * size, (part + 1) * size))
            beside.append(EvaluationSet.from_dataset(questions, other))
        return replace(examples, beside=tuple(beside))

    def _questions_each(self, other: TaskType, parts: int) -> int:
        """Questions of a task beside the search in one of so many parts."""
        return min(self.recipe.task.search_examples, max(1, len(other.train) // parts))

    def _tokens_beside(self, other: TaskContext) -> tuple[int, int]:
        """How many tokens the same training texts have with this tokenizer and with another."""
        rows = min(LENGTH_EXAMPLES, len(self.splits.train))
        mine, theirs = (sum(map(len, each.splits.train[:rows]["input_ids"])) for each in (self, other))
        return mine, theirs

    def _sampled(self, dataset: Dataset) -> Dataset:
        return dataset if self.sample is None else dataset.select(range(min(self.sample, len(dataset))))

    @property
    def num_examples(self) -> dict[str, float]:
        """Split -> number of its processed examples; estimated where only a sample is processed.

        ``search`` is the slice that each evaluation is scored on, without those for near ties.
        """
        splits = self.splits
        raw = {
            "train": len(splits.raw_train),
            "search": splits.n_search,
            "test": len(splits.task.test),
        }
        processed = {"train": len(splits.train), "search": len(splits.search), "test": len(splits.test)}
        return {name: processed[name] * raw[name] / min(raw[name], self.sample or raw[name]) for name in raw}

    @property
    def num_beside(self) -> dict[str, int]:
        """Split -> passes of a model over the sets beside it, such as one for each choice of a question of lm-eval."""
        task, parts = self.splits.task, PARTS if self.splits.n_more else 1
        return {
            "search": sum(self._questions_each(other, parts) * other.passes for other in task.beside_search),
            "test": sum(len(other.test) * other.passes for other in task.beside),
        }

    @property
    def _task_inputs(self) -> TaskInputs:
        settings, model, seed = self.recipe.task, self.recipe.model, self.recipe.seed
        load_parent = partial(self._from_pretrained, None, {}) if self.sample is None else None
        parents = self._of_size[FULL].processor
        return TaskInputs(settings, self.config, self.processor, parents, model, seed, self.head_names, load_parent)

    def training_set(self, settings: Training) -> Dataset:
        """Returns the examples of one training, augmented if its section has ``augment``.

        The same seed gives the same examples, so an interrupted training can resume.

        Raises:
            InputError: If the augmentation fails, or returns examples with other columns.
        """
        source = settings.augment
        if source not in self._training_sets:
            self._training_sets[source] = self._augmented(source).flatten_indices()  # once, else in every training
        return self._training_sets[source]

    def _augmented(self, source: str | None) -> Dataset:
        if source is None:
            return self.splits.train
        from transformers import set_seed

        set_seed(self.recipe.seed)
        return self.splits.task.process(augment(self.splits.raw_train, source), source)

    @cached_property
    def has_head(self) -> bool:
        """Whether the recipe's model already has a trained head for this task, or the task needs none."""
        import transformers

        if not self.task.has_labels:
            return not self.has_no_weights
        heads = {head.__name__ for head in stock_classes(getattr(transformers, self.auto_class), type(self.config))}
        return bool(heads & set(self.config.architectures or [])) and not self.has_no_weights

    @property
    def head_names(self) -> list[str] | None:
        """Class names of the trained head by output; None without a trained head."""
        return [str(name) for _, name in sorted(self.config.id2label.items())] if self.has_head else None

    @property
    def should_finetune(self) -> bool:
        """Whether the parent is fine-tuned: if it has no trained head, or if the recipe sets ``parent.epochs``.

        A pretrained language model has its head, so without ``parent.epochs`` it is not fine-tuned.
        """
        settings = self.recipe.parent
        is_set = settings.epochs is not None or settings.minutes is not None
        return self.task.has_labels and (not self.has_head or is_set)

    @property
    def has_no_weights(self) -> bool:
        """Whether the model is a local folder with a config but without weights."""
        folder = Path(self.recipe.model)
        return folder.is_dir() and not any(file for pattern in WEIGHTS for file in folder.glob(pattern))

    def load_model(self, folder: str | Path | None = None) -> PreTrainedModel:
        """Loads the recipe's model with a head for the task, or the model in a folder of the run.

        A new head takes its labels from the data. A trained head keeps its own.

        Raises:
            InputError: If the weights cannot be loaded.
        """
        import transformers

        labels = self._label_mappings() if folder is None and not self.has_head else {}
        transformers.set_seed(self.recipe.seed)
        if folder is None and self.has_no_weights:
            self.config.update({**labels, **({"num_labels": len(labels["id2label"])} if labels else {})})
            model = self._from_config()
        else:
            model = self._from_pretrained(folder, labels)
        model.config.return_dict = True  # outputs are read by name; some configs ask for tuples
        if folder is None:
            self.splits.task.configure(model.config)
        return model

    def _from_config(self) -> PreTrainedModel:
        import transformers

        try:
            return getattr(transformers, self.auto_class).from_config(self.config, dtype=self.memory_dtype)
        except Exception as error:
            raise InputError(
                f"the config.json of `{self.recipe.model}` does not define a model: {short_error(error)}."
            ) from None

    def _label_mappings(self) -> dict[str, dict[Any, Any]]:
        names = self.splits.task.names
        return {"id2label": dict(enumerate(names)), "label2id": {n: k for k, n in enumerate(names)}} if names else {}

    def _from_pretrained(self, folder: str | Path | None, labels: dict[str, Any]) -> PreTrainedModel:
        import transformers

        source = str(folder or self.recipe.model)
        auto, new_head = getattr(transformers, self.auto_class), folder is None and not self.has_head
        try:
            dtype, own = self.memory_dtype, folder is not None
            model = load_weights(auto, source, self.layout, dtype=dtype, new_head=new_head, quantized=own, **labels)
            if own:
                return model
            if is_export(model.config):
                model = cast_weights(self._unfolded(model.float(), source), dtype)
            return extend_positions(model, self.config)
        except InputError as error:
            if folder is None:
                raise
            raise InputError(f"{error} Delete `{source}` and run the same command again.") from None
        except Exception as error:
            hint = f"delete `{source}` and run the same command again"
            raise InputError(
                f"the weights in `{source}` cannot be loaded ({short_error(error)}); "
                f"{'check that all files of the model are there' if folder is None else hint}."
            ) from error

    def _unfolded(self, model: PreTrainedModel, source: str) -> PreTrainedModel:
        """The stock model with the weights of an export of ours; InputError if its outputs are others."""
        unfolded = unfold(model, load_parent_config(source), source).eval()
        length = min(self.recipe.task.max_length, 16) if self.task.reads_text else None
        inputs = self.dummy_inputs(Workload(batch_size=2, sequence_length=length))
        with torch.inference_mode():
            expected, found = (each(**inputs) for each in (model.eval(), unfolded))
        for name in self.task.outputs:
            scale = expected[name].abs().max().item()
            if (expected[name] - found[name]).abs().max().item() > UNFOLDED_ERROR * max(scale, 1.0):
                raise InputError(refusal(source, "its outputs would change (it skips blocks, or is narrower)"))
        return unfolded

    def workload_inputs(self, subnet: SubnetConfig, workload: Workload) -> dict[str, torch.Tensor]:
        """Returns random inputs on which the latency of a subnetwork is measured: the same texts in its tokens."""
        own = self.of(subnet)
        return own.dummy_inputs(own.in_own_tokens(workload))

    def dummy_inputs(self, workload: Workload) -> dict[str, torch.Tensor]:
        """Returns random inputs of the workload's shape, without padding.

        Raises:
            InputError: If the inputs do not fit in memory.
        """
        return dummy_inputs(self.recipe.task.type, self.config, workload)
