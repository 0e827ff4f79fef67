"""A few labels at a time: logits over a vocabulary are as large as a small model, and losses need them in float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch

CHUNK = 2**22
"""Logits of classes that a loss looks at at once, in float32: of a vocabulary of 50,000, those of 80 tokens."""


def few_labels(logits: torch.Tensor) -> Iterator[slice]:
    """Yields the labels, or the examples, of logits (labels, ..., classes) that are looked at at once."""
    labels = max(1, CHUNK // max(1, logits[:1].numel()))
    for start in range(0, len(logits), labels):
        yield slice(start, start + labels)


def exact(logits: torch.Tensor) -> torch.Tensor:
    """Logits of 16 bits in float32."""
    return logits.to(exact_dtype(logits))


def exact_dtype(logits: torch.Tensor) -> torch.dtype:
    """That of what is computed from logits: float32, or their own if that has more bits."""
    return torch.promote_types(logits.dtype, torch.float32)
