"""Toy stand-ins: tiny random models of every family, tiny data, tiny recipes; nothing is downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models, and processes of their own: more threads only wait for each other

_TEXT = "[PAD] [UNK] [CLS] [SEP] [MASK] good great fine bad awful poor film plot cast the a is was very not"
WORDS = _TEXT.split()


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


SIZES = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}


def classifier(model_type: str, **sizes: Any) -> Any:
    """A random classifier: 4 layers, 4 heads of 12, texts of up to 60 tokens or images of 8x8."""
    from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

    implementation = sizes.pop("attn_implementation", "sdpa")
    config = AutoConfig.for_model(model_type, **sizes)
    auto = AutoModelForImageClassification if hasattr(config, "patch_size") else AutoModelForSequenceClassification
    return auto.from_config(config, attn_implementation=implementation).eval()


def bert(**changes: Any) -> Any:
    """BERT; what `text_folder` holds too."""
    return classifier("bert", **{**SIZES, **TEXT, **changes})


TEXT = {"vocab_size": len(WORDS), "max_position_embeddings": 64}
IMAGE = {"image_size": 8, "patch_size": 2, "num_labels": 3}
DEIT = {"architectures": ["DeiTForImageClassification"]}
DISTIL = {"dim": 48, "n_layers": 4, "n_heads": 4, "hidden_dim": 96}


def text_inputs() -> dict[str, torch.Tensor]:
    """Three texts of different lengths, padded to 12 tokens."""
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] * 9 + [0] * 3])
    return {"input_ids": torch.randint(5, len(WORDS), (3, 12)) * mask, "attention_mask": mask}


def image_inputs() -> dict[str, torch.Tensor]:
    """Three random images."""
    return {"pixel_values": torch.randn(3, 3, 8, 8)}


MODELS: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, torch.Tensor]]]] = {
    "bert": (bert, text_inputs),
    "roberta": (partial(classifier, "roberta", **SIZES, **TEXT), text_inputs),
    "distilbert": (partial(classifier, "distilbert", **DISTIL, **TEXT), text_inputs),
    "electra": (partial(classifier, "electra", **SIZES, **TEXT, embedding_size=24), text_inputs),
    "vit": (partial(classifier, "vit", **SIZES, **IMAGE), image_inputs),
    "deit": (partial(classifier, "deit", **SIZES, **IMAGE, **DEIT), image_inputs),
}
"""Model type -> a tiny random model and inputs for it; one line a family."""


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    """A folder with a tiny BERT (config only), its tokenizer, and sentiment data as Parquet and CSV files."""
    import pandas as pd
    from transformers import BertTokenizerFast

    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "model")
    bert().config.save_pretrained(folder / "model")
    rows = [
        {"sentence": f"the {noun} {verb} {'very ' * k}{word}", "label": int(word in ("good", "great", "fine"))}
        for noun in ("film", "plot", "cast")
        for verb in ("is", "was")
        for k in range(3)
        for word in ("good", "great", "fine", "bad", "awful", "poor")
    ]
    pd.DataFrame(rows).to_parquet(folder / "train.parquet")
    pd.DataFrame(rows[::3]).to_csv(folder / "test.csv", index=False)
    return folder


@pytest.fixture
def text_recipe(text_folder: Path) -> Path:
    """A recipe over `text_folder` that runs in seconds."""
    recipe = {
        "model": "model",
        "task": {
            "type": "text-classification",
            "train": "train.parquet",
            "test": "test.csv",
            "max_length": 16,
            "search_examples": 36,
        },
        "space": {"num_hidden_layers": [1, 2, 3, 4], "num_attention_heads": [1, 2, 4], "intermediate_size": [24, 96]},
        "workload": {"sequence_length": 16},
        "parent": {"epochs": 2, "learning_rate": 2e-3, "batch_size": 8},
        "supernet": {"epochs": 2, "learning_rate": 2e-3, "batch_size": 8, "sampled_subnets": 1},
        "profile": {"samples": 12},
        "search": {"evaluations": 16},
    }
    path = text_folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def read_lines(path: Path) -> list[Any]:
    """A JSON lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
