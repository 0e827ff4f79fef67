"""The search space of a recipe over its parent, without choices that do not help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nas.tasks.context import TaskContext
from predictors.measurement.precision import unsupported_reason
from search_spaces import SearchSpace
from search_spaces.dimensions.bits import BITS
from search_spaces.useful_choices import useful_choices

LOW_RANK_EMBEDDING_HELPS = ("num_parameters", "size_mb")
"""Costs that a low-rank embedding can reduce; latency is not among them, as it replaces a lookup by a product."""


def search_space(context: TaskContext, layer_order: Sequence[int] | None = None) -> SearchSpace:
    """The recipe's space over its parent, without choices that do not help."""
    return context.layout.search_space(recipe_choices(context)[0], layer_order)


def recipe_choices(context: TaskContext) -> tuple[dict[str, Any], list[str]]:
    """The choices of the recipe that can help on its workload, and why others are dropped."""
    workload, names = context.recipe.workload, context.recipe.value_names
    tokens = context.layout.inputs.longest_sequence(workload.sequence_length)
    refused = {bits: why for bits in BITS if (why := unsupported_reason(bits, workload, names))}
    return useful_choices(context.recipe.space.model_dump(), tokens, refused, embedding_fixed_reason(context))


def embedding_fixed_reason(context: TaskContext) -> str:
    """Why the embedding stays at full rank; empty if a low rank can help."""
    if context.layout.ties_embedding(context.recipe.task.type):
        return "the output head shares the embeddings' table"
    if not {*LOW_RANK_EMBEDDING_HELPS} & {*context.recipe.value_names}:
        return f"it only reduces {' and '.join(LOW_RANK_EMBEDDING_HELPS)}, which no objective or constraint names"
    return ""
