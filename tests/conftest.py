"""Toy stand-ins: tiny random models of every family, tiny data, tiny recipes; nothing is downloaded."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from search_spaces import AUTO_CLASSES, FAMILIES

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
TEXT = {"vocab_size": len(WORDS), "max_position_embeddings": 64}
IMAGE = {"image_size": 8, "patch_size": 2, "num_labels": 3}
DISTIL = {"dim": 48, "n_layers": 4, "n_heads": 4, "hidden_dim": 96}
GROUPED = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 6, "pad_token_id": 0}
LLAMA = {**SIZES, **TEXT, **GROUPED}
FULL, SLIDING = "full_attention", "sliding_attention"
MIXED = {"layer_types": [SLIDING, FULL, SLIDING, FULL], "sliding_window": 5, "use_sliding_window": True}


def text_inputs() -> dict[str, torch.Tensor]:
    """Three texts of different lengths, padded to 12 tokens."""
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5, [1] * 9 + [0] * 3])
    return {"input_ids": torch.randint(5, len(WORDS), (3, 12)) * mask, "attention_mask": mask}


def image_inputs() -> dict[str, torch.Tensor]:
    """Three random images."""
    return {"pixel_values": torch.randn(3, 3, 8, 8)}


@dataclass(frozen=True)
class Toy:
    """A tiny random model of one family: 4 layers (of each stack), 4 or 8 heads, hidden size 48, FFN 96."""

    model_type: str
    config: dict[str, Any]
    inputs: Callable[[], dict[str, torch.Tensor]] = text_inputs

    def model(self, task: str = "", attention: str = "sdpa") -> Any:
        """A model for a task, by default the first that the family does."""
        import transformers

        config = transformers.AutoConfig.for_model(self.model_type, **self.config)
        auto = getattr(transformers, AUTO_CLASSES[task or FAMILIES[self.model_type].tasks[0]])
        stock = auto._model_mapping[type(config)]
        has_sdpa = (stock[0] if isinstance(stock, list | tuple) else stock)._supports_sdpa
        return auto.from_config(config, attn_implementation=attention if has_sdpa else "eager").eval()

    def labelled(self, task: str = "") -> dict[str, torch.Tensor]:
        """Inputs with labels of the task."""
        inputs, task = self.inputs(), task or FAMILIES[self.model_type].tasks[0]
        if task in ("text-classification", "image-classification"):
            return {**inputs, "labels": torch.tensor([0, 1, 1])}
        if task == "question-answering":
            return {**inputs, "start_positions": torch.tensor([1, 2, 3]), "end_positions": torch.tensor([2, 4, 5])}
        targets = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        assert targets is not None
        return {**inputs, "labels": targets % 2 if task == "token-classification" else targets}


TOYS: dict[str, Toy] = {
    toy.model_type: toy
    for toy in (
        Toy("bert", {**SIZES, **TEXT}),
        Toy("roberta", {**SIZES, **TEXT}),
        Toy("distilbert", {**DISTIL, **TEXT}),
        Toy("electra", {**SIZES, **TEXT, "embedding_size": 24}),
        Toy("gpt2", {**SIZES, **TEXT, "pad_token_id": 0}),
        Toy("opt", {**SIZES, **TEXT, "ffn_dim": 96, "word_embed_proj_dim": 30, "pad_token_id": 0}),
        Toy("gpt_neox", {**SIZES, **TEXT, "rotary_pct": 0.5, "pad_token_id": 0}),
        Toy("llama", LLAMA),
        Toy("mistral", {**LLAMA, "sliding_window": 5}),
        Toy("qwen2", {**LLAMA, **MIXED}),
        Toy("qwen3", {**LLAMA, **MIXED, "head_dim": 8}),
        Toy("smollm3", {**LLAMA, **MIXED, "no_rope_layers": [1, 0, 1, 1]}),
        Toy("gemma2", {**LLAMA, **MIXED, "head_dim": 8, "query_pre_attn_scalar": 8}),
        Toy("gemma3_text", {**LLAMA, **MIXED, "head_dim": 8, "query_pre_attn_scalar": 8}),
        Toy("phi3", LLAMA),
        Toy("vit", {**SIZES, **IMAGE}, image_inputs),
        Toy("deit", {**SIZES, **IMAGE, "architectures": ["DeiTForImageClassification"]}, image_inputs),
    )
}
"""Model type -> a tiny random model and inputs for it; one line a family."""


def bert(**changes: Any) -> Any:
    """BERT; what `text_folder` holds too."""
    return replace(TOYS["bert"], config={**TOYS["bert"].config, **changes}).model()


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
