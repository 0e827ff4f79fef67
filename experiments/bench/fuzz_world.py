"""World: the folder that `fuzz` works in."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*SPECIAL, "the", "film", "plot", "cast", "is", "was", "very", "good", "great", "fine", "bad", "awful", "poor")


@dataclass(frozen=True)
class World:
    """A folder with a tiny model, data, a recipe, a finished run, and a run that a device has measured."""

    folder: Path

    @property
    def recipe(self) -> Path:
        """A recipe that runs in seconds."""
        return self.folder / "recipe.yaml"

    @property
    def run(self) -> Path:
        """Its finished run."""
        return self.folder / "run"

    @property
    def device_recipe(self) -> Path:
        """The recipe of the run that a device measures."""
        return self.folder / "device.yaml"

    @property
    def device_run(self) -> Path:
        """A run without latencies."""
        return self.folder / "device-run"

    @property
    def device(self) -> Path:
        """Its models with their results."""
        return self.folder / "device"

    def make(self) -> None:
        """Makes what is missing."""
        from nas.commands.remote import export_plan
        from nas.pipeline import search
        from nas.recipe.schema import Recipe
        from predictors.measurement.plan import measure_plan

        if not self.recipe.exists():
            self._write_inputs()
        search(Recipe.load(self.recipe), self.run)
        if not (self.device / "results.jsonl").exists():
            shutil.rmtree(self.device, ignore_errors=True)
            shutil.rmtree(self.device_run, ignore_errors=True)
            export_plan(Recipe.load(self.device_recipe), self.device_run, self.device)
            measure_plan(self.device)

    def _write_inputs(self) -> None:
        import pandas as pd
        from transformers import BertConfig, BertTokenizerFast

        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "vocab.txt").write_text("\n".join(WORDS))
        BertTokenizerFast(str(self.folder / "vocab.txt")).save_pretrained(self.folder / "model")
        sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
        BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes).save_pretrained(self.folder / "model")
        rows = [
            {"sentence": f"the {noun} {verb} {'very ' * k}{word}", "label": int(word in ("good", "great", "fine"))}
            for noun in ("film", "plot", "cast")
            for verb in ("is", "was")
            for k in range(3)
            for word in ("good", "great", "fine", "bad", "awful", "poor")
        ]
        pd.DataFrame([row for k, row in enumerate(rows) if k % 4]).to_csv(self.folder / "train.csv", index=False)
        pd.DataFrame(rows[::4]).to_csv(self.folder / "test.csv", index=False)
        self.write_places()
        training = {"epochs": 1, "batch_size": 16, "learning_rate": 2e-3}
        recipe: dict[str, Any] = {
            "model": "model",
            "task": {"type": "text-classification", "train": "train.csv", "test": "test.csv"},
            "space": {
                "num_hidden_layers": [1, 2, 3, 4],
                "num_attention_heads": [1, 2, 4],
                "intermediate_size": [24, 96],
            },
            "workload": {"sequence_length": 16},
            "parent": training,
            "supernet": {**training, "sampled_subnets": 1, "strategy": "sandwich"},
            "profile": {"samples": 10, "precision": 0.5},
            "finish": {"models": 0},
            "search": {"evaluations": 8},
        }
        recipe["task"] |= {"max_length": 16, "search_examples": 24}
        self.recipe.write_text(yaml.safe_dump(recipe))
        self.device_recipe.write_text(yaml.safe_dump(recipe))

    def write_places(self) -> None:
        """A file and folders that are no run."""
        (self.folder / "file").write_text("mine")
        (self.folder / "empty").mkdir()
        (self.folder / "mine" / "exports").mkdir(parents=True)
        (self.folder / "mine" / "report.html").write_text("mine")

    def prepare(self, kind: str) -> None:
        """Fresh copies that the cases of a kind damage."""
        for name in ("damaged", "imported"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        if kind == "runs":
            shutil.copytree(self.run, self.folder / "damaged")
        if kind == "imports":
            (self.folder / "imported").mkdir()
            for name in ("plan.json", "results.jsonl"):
                shutil.copy(self.device / name, self.folder / "imported")
