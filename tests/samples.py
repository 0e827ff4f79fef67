"""Samples of products of families, dimensions and tasks; what is beyond them has the marker ``full``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest

from search_spaces import FAMILIES

LAYOUTS = [
    name
    for number, (name, family) in enumerate(FAMILIES.items())
    if name not in ("qwen3_moe", "olmoe", "siglip2")  # layers of others: Mixtral, OLMo 2, SigLIP
    and all(replace(one, model_type=name, tasks=family.tasks) != family for one in [*FAMILIES.values()][:number])
]
"""Families whose table is not that of an earlier one under another name; the others get the marker ``full``."""
DAILY_FAMILIES = ("bert", "gpt2", "llama", "t5", "vit")
"""One family of each kind: encoder, fused projections, grouped heads, two stacks, images."""
KINDS = (*DAILY_FAMILIES, "deberta-v2", "swin", "mixtral", "clip", "rt_detr_v2")
"""These, and layers that they lack: relative positions, stages, experts, two towers, queries."""


def sampled(cases: Iterable[Any], everyday: Callable[..., bool]) -> list[Any]:
    """Parameters of a test over a product: what is not everyday gets the marker ``full``."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*row, marks=[] if everyday(*row) else pytest.mark.full) for row in rows]


def one_slow(cases: Iterable[str], slow: str) -> list[Any]:
    """Parameters of a test of whole searches: one is ``slow``, which CI runs, the others are ``full``."""
    return [pytest.param(case, marks=pytest.mark.slow if case == slow else pytest.mark.full) for case in cases]
