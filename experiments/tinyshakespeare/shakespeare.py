"""Tiny Shakespeare (Karpathy 2015) as two splits: the first nine tenths of its lines, and the last."""

import os
from pathlib import Path

from datasets import Dataset

TEXT = Path(os.environ.get("TINYSHAKESPEARE", Path(__file__).parent / "input.txt"))


def _lines(start: float, end: float) -> Dataset:
    lines = TEXT.read_text().splitlines(keepends=True)
    return Dataset.from_dict({"text": lines[int(start * len(lines)) : int(end * len(lines))]})


def train() -> Dataset:
    """36,000 lines."""
    return _lines(0.0, 0.9)


def test() -> Dataset:
    """4,000 lines."""
    return _lines(0.9, 1.0)
