"""Tasks: a recipe's data and model, made ready for training and scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nas.config import Recipe
from nas.data import TEXT_DTYPES, head_order, load_source, need_images, relabelled, text_columns, with_class_ids
from nas.evaluation import EvaluationSet
from nas.registration import stock_classes
from predictors import Workload
from search_spaces import AUTO_CLASSES, InputError, Layout

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedConfig, PreTrainedModel

EVALUATION_BATCH_SIZE = 64


def load_config(model: str) -> PreTrainedConfig:
    """The config of a hub id or folder.

    Raises:
        InputError: If there is no such model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if Path(model, "config.json").is_file() or "model type" in str(error):
            raise InputError(
                f"the config.json of model `{model}` cannot be used: {' '.join(str(error).split())[:200]}"
            ) from None
        raise InputError(
            f"there is no model `{model}`: it is not a folder with a config.json, nor found on the hub; check the "
            "spelling and the connection."
        ) from None


def load_processor(task: str, model: str) -> Any:
    """Tokenizer or image processor of a model.

    Raises:
        InputError: If there is none, or a tokenizer knows no words.
    """
    from transformers import AutoImageProcessor, AutoTokenizer

    auto = {"text-classification": AutoTokenizer, "image-classification": AutoImageProcessor}[task]
    try:
        processor = auto.from_pretrained(model)
    except Exception as error:
        raise InputError(f"model `{model}` has no {auto.__name__[4:]}: {' '.join(str(error).split())[:160]}") from None
    if auto is AutoTokenizer and len(processor) <= len(processor.all_special_ids):
        raise InputError(f"model `{model}` must come with its Tokenizer, but there are no words in its vocabulary.")
    return processor


@dataclass(frozen=True)
class Splits:
    """Processed data of a run. The search never sees ``test`` (law 5).

    Attributes:
        train: What the parent and the supernet learn from.
        search: Slice of the training data that the search scores on.
        test: Held-out split that is reported.
        names: Class names.
        collate: Rows -> a batch with ``labels``.
    """

    train: Dataset
    search: EvaluationSet
    test: EvaluationSet
    names: list[str]
    collate: Callable[[list[Any]], Mapping[str, Any]]


class Workbench:
    """A recipe with its config, family, processor and data, each loaded on first use."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The parent's Hugging Face config."""
        return load_config(self.recipe.model)

    @cached_property
    def layout(self) -> Layout:
        """What is elastic in the parent; InputError if its family is not supported or does not do the task."""
        layout, task = Layout(self.config), self.recipe.task.type
        if task not in layout.family.tasks:
            raise InputError(
                f"`task.type` must be one that `{layout.family.model_type}` does ({', '.join(layout.family.tasks)}), "
                f"but got `{task}`."
            )
        return layout

    @property
    def auto_class(self) -> str:
        """Name of the transformers auto class of the task."""
        return AUTO_CLASSES[self.recipe.task.type]

    @cached_property
    def processor(self) -> Any:
        """Tokenizer or image processor."""
        return load_processor(self.recipe.task.type, self.recipe.model)

    @cached_property
    def splits(self) -> Splits:
        """The data, processed; the search slice is drawn from the training data by the recipe's seed."""
        task, seed = self.recipe.task, self.recipe.seed
        train, test, names = self._labelled()
        if len(train) <= task.search_examples:
            raise InputError(
                f"`task.search_examples` must be below the {len(train)} training examples, but got "
                f"{task.search_examples}."
            )
        shuffled = train.shuffle(seed=seed)
        search = shuffled.select(range(task.search_examples))
        end = None if task.train_examples is None else task.search_examples + task.train_examples
        train = shuffled.select(range(task.search_examples, min(end or len(train), len(train))))
        process, collate = PROCESSING[task.type](self, train)
        return Splits(
            train=process(train, task.train),
            search=EvaluationSet.of(process(search, task.train), collate, EVALUATION_BATCH_SIZE),
            test=EvaluationSet.of(process(test, task.test), collate, EVALUATION_BATCH_SIZE),
            names=names,
            collate=collate,
        )

    def _labelled(self) -> tuple[Dataset, Dataset, list[str]]:
        """Both splits with class ids, and the class names; a trained head keeps its own names and ids."""
        task = self.recipe.task
        raw = load_source(task.train)
        train, names = with_class_ids(raw, task.label, None, task.train)
        test, _ = with_class_ids(load_source(task.test), task.label, names, task.test)
        if not self.has_head:
            return train, test, names
        head = [str(name) for _, name in sorted(self.config.id2label.items())]
        order = head_order(names, head, self.recipe.model, raw.features[task.label].dtype not in TEXT_DTYPES)
        train, test = (relabelled(d, task.label, [order[k] for k in d[task.label]], head) for d in (train, test))
        return train, test, head

    @cached_property
    def has_head(self) -> bool:
        """Whether the recipe's model already has a trained head of this task."""
        import transformers

        heads = {head.__name__ for head in stock_classes(getattr(transformers, self.auto_class), type(self.config))}
        return bool(heads & set(self.config.architectures or [])) and not self.untrained

    @property
    def untrained(self) -> bool:
        """Whether the model is a local folder with a config and no weights."""
        folder = Path(self.recipe.model)
        weights = ("*.safetensors", "*.bin", "*.index.json")
        return folder.is_dir() and not any(file for pattern in weights for file in folder.glob(pattern))

    def load_model(self, folder: str | Path | None = None) -> PreTrainedModel:
        """The recipe's model with a head for the task, or the one in a folder of the run.

        Only a new head takes its labels from the data; a trained one and a folder of the run hold theirs.

        Raises:
            InputError: If the weights cannot be read.
        """
        import transformers

        labels = self._new_labels() if folder is None and not self.has_head else {}
        transformers.set_seed(self.recipe.seed)
        if folder is None and self.untrained:
            self.config.update({**labels, "num_labels": len(labels["id2label"])})
            model = getattr(transformers, self.auto_class).from_config(self.config)
        else:
            model = self._pretrained(folder, labels)
        model.config.problem_type = "single_label_classification"
        return model

    def _new_labels(self) -> dict[str, dict[Any, Any]]:
        names = self.splits.names
        return {"id2label": dict(enumerate(names)), "label2id": {name: k for k, name in enumerate(names)}}

    def _pretrained(self, folder: str | Path | None, labels: dict[str, Any]) -> PreTrainedModel:
        import transformers

        source = str(folder or self.recipe.model)
        try:
            auto = getattr(transformers, self.auto_class)
            return auto.from_pretrained(source, **labels, dtype=torch.float32)
        except Exception as error:
            again = f"delete `{source}` and type the same command again to make them anew"
            raise InputError(
                f"the weights in `{source}` cannot be loaded ({' '.join(str(error).split())[:160]}); "
                f"{'check that the model came here whole' if folder is None else again}."
            ) from error

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the model takes."""
        sizes = self.layout.sizes
        height, width = (sizes.image_size,) * 2 if isinstance(sizes.image_size, int) else sizes.image_size
        return sizes.num_channels, height, width

    def dummy_inputs(self, workload: Workload) -> dict[str, torch.Tensor]:
        """Random inputs of the workload's shape; every token is real, none is padding."""
        generator = torch.Generator().manual_seed(0)
        batch = workload.batch_size
        if self.recipe.task.type == "image-classification":
            return {"pixel_values": torch.randn((batch, *self.image_shape), generator=generator)}
        assert workload.sequence_length is not None
        ids = torch.randint(0, self.config.vocab_size, (batch, workload.sequence_length), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


Processing = tuple[Callable[["Dataset", str], "Dataset"], Callable[[list[Any]], Mapping[str, Any]]]


def _text(bench: Workbench, train: Dataset) -> Processing:
    from transformers import DataCollatorWithPadding

    task, tokenizer = bench.recipe.task, bench.processor
    columns = text_columns(train, task.text, task.train)

    def process(dataset: Dataset, source: str) -> Dataset:
        text_columns(dataset, columns, source)

        def tokenize(rows: dict[str, Any]) -> dict[str, Any]:
            return {
                **tokenizer(*(rows[c] for c in columns), truncation=True, max_length=task.max_length),
                "labels": rows[task.label],
            }

        return dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)

    return process, DataCollatorWithPadding(tokenizer)


def _image(bench: Workbench, train: Dataset) -> Processing:
    task = bench.recipe.task

    def process(dataset: Dataset, source: str) -> Dataset:
        need_images(dataset, task.image, source)

        def transform(rows: dict[str, Any]) -> dict[str, Any]:
            return {"pixel_values": _pixels(bench, rows[task.image]), "labels": rows[task.label]}

        return dataset.with_transform(transform)

    def collate(rows: list[Any]) -> Mapping[str, Any]:
        return {
            "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    return process, collate


def _pixels(bench: Workbench, images: list[Any]) -> list[torch.Tensor]:
    """Model inputs of images; InputError unless the image processor makes what the model takes."""
    mode = "L" if bench.config.num_channels == 1 else "RGB"
    try:
        pixels = list(bench.processor([image.convert(mode) for image in images], return_tensors="pt")["pixel_values"])
        made = str(next((tuple(p.shape) for p in pixels if p.shape != bench.image_shape), ""))
    except ValueError as error:
        made = " ".join(str(error).split())[:160]
    if made:
        raise InputError(
            f"the image processor of `{bench.recipe.model}` must make (channels, height, width) {bench.image_shape}, "
            f"what the model takes, of images, but got {made}; set `size`, `image_mean` and `image_std` in its "
            "preprocessor_config.json."
        )
    return pixels


PROCESSING = {"text-classification": _text, "image-classification": _image}
"""Task type -> how its rows become model inputs and batches."""
