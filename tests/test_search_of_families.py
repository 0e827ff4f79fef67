"""Whole searches with models of a few families that are trained here: their exports do what the parents learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from toy_tasks import SENTENCES, jsonl, tokenizer, txt
from toys import TOYS, WORDS

from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from search_spaces import TASKS

Rows = list[dict[str, Any]]
TRAINED = {"epochs": 12, "learning_rate": 3e-3, "batch_size": 8}
QUICK = {
    "profile": {"samples": 12, "precision": 0.5},
    "search": {"evaluations": 12},
    "finish": {"models": 0},
    "baselines": [],
}


def searched(family: str, task: str, write: Callable[..., str], rows: Rows, folder: Path) -> str:
    """Trains a toy on its data, searches it, and gives the folder of the export."""
    sources = {"train": write(folder / "train", rows), "test": write(folder / "test", rows[::3])}
    config = transformers.AutoConfig.for_model(
        family, **{**TOYS[family].config, "vocab_size": len(WORDS) + 2, "eos_token_id": len(WORDS) + 1}
    )
    getattr(transformers, TASKS[task].auto_class).from_config(config).save_pretrained(folder / "model")
    tokenizer(folder / "model", pad_token="[PAD]")
    recipe = {
        "model": str(folder / "model"),
        "task": {"type": task, **sources, "max_length": 16, "search_examples": 24},
        "workload": {"sequence_length": 16},
        "parent": TRAINED,
        "supernet": {**TRAINED, "sampled_subnets": 1, "strategy": "sandwich"},
        **QUICK,
    }
    search(Recipe.parse(recipe), folder / "run")
    (export,) = Run(folder / "run").exports.iterdir()
    return str(export)


@pytest.mark.slow
def test_an_mt5_that_names_the_last_word_still_does_when_it_is_smaller(tmp_path: Path) -> None:
    rows = [{"input": sentence, "output": sentence.split()[-1]} for sentence in SENTENCES]
    folder = searched("mt5", "text2text-generation", jsonl, rows, tmp_path)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() <= TOYS["mt5"].model().num_parameters() + 1000
    written = [
        words.decode(model.generate(**words(row["input"], return_tensors="pt"), max_new_tokens=3)[0], True)
        for row in rows
    ]
    assert sum(row["output"] in text.split() for row, text in zip(rows, written, strict=True)) > len(rows) / 2


@pytest.mark.full
def test_an_olmo2_writes_in_its_pipeline_what_its_export_generates(tmp_path: Path) -> None:
    folder = searched("olmo2", "text-generation", txt, [{"text": sentence} for sentence in SENTENCES], tmp_path)
    write = transformers.pipeline("text-generation", model=folder)
    (written,) = write("the film", max_new_tokens=4, min_new_tokens=4, do_sample=False)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = words("the film", return_tensors="pt")
    (tokens,) = model.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    generated = words.decode(tokens, skip_special_tokens=True)
    assert len(tokens) == 6 and written["generated_text"].replace(" ", "") == generated.replace(" ", "")
    assert {"film", "was"} <= {*generated.split()}, "it has learnt nothing"
    assert model.num_parameters() < TOYS["olmo2"].model().num_parameters()
