"""WikiText-2 as it is distributed: the validation text to calibrate and search on, the head of the test text."""

import os
from pathlib import Path

from datasets import Dataset

FOLDER = Path(os.environ.get("WIKITEXT", "wikitext2"))
TEST_CHARACTERS = 8_700
"""Eight windows of 256 tokens of SmolLM2, and less than one that is left out."""


def train() -> Dataset:
    """The whole text of ``valid.txt`` as one row."""
    return Dataset.from_dict({"text": [(FOLDER / "valid.txt").read_text()]})


def test() -> Dataset:
    """The head of ``test.txt`` as one row."""
    return Dataset.from_dict({"text": [(FOLDER / "test.txt").read_text()[:TEST_CHARACTERS]]})
