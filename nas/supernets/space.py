"""The recipe's space over its model, useless choices dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nas.tasks.context import Workbench
from predictors.measurement.precision import why_not
from search_spaces import SearchSpace
from search_spaces.dimensions.bits import BITS
from search_spaces.useful_choices import pruned

THIN_TABLE_PAYS_IN = ("num_parameters", "size_mb")
"""Figures that a rank of the embeddings can improve: looking rows up costs no time, the product after it does."""


def search_space(bench: Workbench, layer_order: Sequence[int] | None = None) -> SearchSpace:
    """The recipe's space over its parent, without choices that cannot pay."""
    return bench.layout.search_space(paying(bench)[0], layer_order)


def paying(bench: Workbench) -> tuple[dict[str, Any], list[str]]:
    """The choices of the recipe that can pay on its workload, and why others cannot."""
    workload, figures = bench.recipe.workload, bench.recipe.figures
    tokens = bench.layout.inputs.longest_sequence(workload.sequence_length)
    refused = {bits: why for bits in BITS if (why := why_not(bits, workload, figures))}
    return pruned(bench.recipe.space.model_dump(), tokens, refused, whole_embedding(bench))


def whole_embedding(bench: Workbench) -> str:
    """Why the table of embeddings must stay whole or cannot pay otherwise; empty where it can."""
    if bench.layout.ties_embedding(bench.recipe.task.type):
        return "the output head shares the embeddings' table"
    if not {*THIN_TABLE_PAYS_IN} & {*bench.recipe.figures}:
        return f"it pays in {' and '.join(THIN_TABLE_PAYS_IN)} only, which no objective or constraint names"
    return ""
