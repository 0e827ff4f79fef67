"""Samples of three data sets; BANKING77, IMDB and WIKITEXT name local folders in place of those of the hub."""

import os
from pathlib import Path

from datasets import Dataset, load_dataset

BANKING77 = os.environ.get("BANKING77", "mteb/banking77")
IMDB = os.environ.get("IMDB", "stanfordnlp/imdb")
WIKITEXT = os.environ.get("WIKITEXT", "")


def banking77_train() -> Dataset:
    """All 10,003 questions."""
    return load_dataset(BANKING77, split="train")


def banking77_test() -> Dataset:
    """500 of the 3,080 questions."""
    return load_dataset(BANKING77, split="test").shuffle(seed=0).select(range(500))


def imdb_train() -> Dataset:
    """1,000 reviews."""
    return load_dataset(IMDB, split="train").shuffle(seed=0).select(range(1000))


def imdb_test() -> Dataset:
    """300 reviews."""
    return load_dataset(IMDB, split="test").shuffle(seed=0).select(range(300))


def wikitext_train() -> Dataset:
    """The first 300 kB of the validation articles, which SmolLM2 is calibrated and searched on."""
    return _articles("validation", 300_000)


def wikitext_test() -> Dataset:
    """The first 8 kB of the test articles."""
    return _articles("test", 8_000)


def _articles(split: str, letters: int) -> Dataset:
    """One row for each line; a folder has them as ``valid.txt`` and ``test.txt``."""
    if WIKITEXT:
        text = Path(WIKITEXT, f"{split.removesuffix('ation')}.txt").read_text()
    else:
        text = "".join(load_dataset("Salesforce/wikitext", "wikitext-2-v1", split=split)["text"])
    return Dataset.from_dict({"text": text[:letters].splitlines(keepends=True)})
