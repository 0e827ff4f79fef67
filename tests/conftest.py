"""What tests share: a toy model with data and a recipe, a finished run, and how workers divide the tests."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clean_process
import pytest
import torch
import yaml
from filelock import FileLock
from refusals import Refused, one_line
from toys import WORDS, bert
from xdist.scheduler import LoadScopeScheduling

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["OMP_NUM_THREADS"] = "1"  # models are tiny and tests run in several processes: more threads would only wait


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests marked ``full`` where ``-m`` names other markers only, as in `pytest -m slow`."""
    if config.option.markexpr and "full" not in config.option.markexpr:
        full = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=full)
        items[:] = [item for item in items if item not in full]


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _clean_processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clean process that checks an export is forked, not started; `test_exports` starts real ones."""
    if "nas.exports.export" in sys.modules:
        monkeypatch.setattr("nas.exports.export.subprocess", clean_process)


def pytest_collection_finish() -> None:
    """What is imported by now stays: measuring collects garbage often, and need not look at it."""
    gc.collect()
    gc.freeze()


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
        "supernet": {
            "epochs": 2,
            "learning_rate": 2e-3,
            "batch_size": 8,
            "sampled_subnets": 1,
            "strategy": "sandwich",
        },
        "profile": {"samples": 12, "precision": 0.5},
        "finish": {"models": 1, "epochs": 1, "learning_rate": 2e-3, "batch_size": 8},
        "search": {"evaluations": 16},
        "baselines": [],
    }
    path = text_folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture
def uninterrupted_run(text_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe whose stages last a while, and its finished run, made once for all of pytest's workers: to be read."""
    from nas.pipeline import search
    from nas.recipe.schema import Recipe

    base = tmp_path_factory.getbasetemp()
    shelf = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with FileLock(f"{shelf}.lock"):
        if not (shelf / "run").exists():
            shutil.copytree(text_recipe.parent, shelf / "text")
            recipe = yaml.safe_load(text_recipe.read_text())
            recipe["parent"]["epochs"] = recipe["supernet"]["epochs"] = 4
            recipe["search"]["evaluations"], recipe["task"]["search_examples"] = 24, 60
            (shelf / "text" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
            search(Recipe.load(shelf / "text" / "recipe.yaml"), shelf / "building")
            (shelf / "building").rename(shelf / "run")
    return shelf / "text" / "recipe.yaml", shelf / "run"


@pytest.fixture
def finished(uninterrupted_run: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The recipe of `uninterrupted_run`, and a copy of its run."""
    recipe, run = uninterrupted_run
    return recipe, Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command line in this process; returns the one line it refused with."""

    from nas import cli

    def run(*arguments: object, says: tuple[str, ...] = ()) -> str:
        monkeypatch.setattr(sys, "argv", ["nas", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return one_line(stop.value.code, capsys.readouterr().err, says)

    return run


SPREAD = ("families", "generation", "costs", "seq2seq", "tasks", "sparse_attention", "hidden_states")
"""Files whose tests share nothing: they go to any worker, one by one, and fill up what the others leave."""
ONE_RUN = ("bad_input", "bad_runs", "commands", "docs", "full_disks", "pipeline", "resume", "search")
"""Files whose tests take `uninterrupted_run`: on one worker, so that no other waits for it."""


class ByFile(LoadScopeScheduling):
    """Sends a file of tests to one worker, which makes once what they share; the largest come first."""

    def _split_scope(self, nodeid: str) -> str:
        name = Path(nodeid.partition("::")[0]).stem.removeprefix("test_")
        return nodeid if name in SPREAD else "one run" if name in ONE_RUN else name


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """The scheduler of `pytest -n`."""
    return ByFile(config, log)


@pytest.fixture
def make(text_folder: Path) -> Callable[..., Any]:
    """Makes a context for a case of `toy_tasks`."""
    from toy_tasks import builder

    return builder(text_folder)
