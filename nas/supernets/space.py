"""The recipe's space over its model, useless choices dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nas.tasks.context import TaskContext
from predictors.measurement.precision import unsupported_reason
from search_spaces import SearchSpace
from search_spaces.dimensions.bits import BITS
from search_spaces.useful_choices import useful_choices

LOW_RANK_EMBEDDING_HELPS = ("num_parameters", "size_mb")
"""Figures that a rank of the embeddings can improve: looking rows up costs no time, the product after it does."""


def search_space(context: TaskContext, layer_order: Sequence[int] | None = None) -> SearchSpace:
    """The recipe's space over its parent, without choices that cannot pay."""
    return context.layout.search_space(recipe_choices(context)[0], layer_order)


def recipe_choices(context: TaskContext) -> tuple[dict[str, Any], list[str]]:
    """The choices of the recipe that can pay on its workload, and why others cannot."""
    workload, figures = context.recipe.workload, context.recipe.value_names
    tokens = context.layout.inputs.longest_sequence(workload.sequence_length)
    refused = {bits: why for bits in BITS if (why := unsupported_reason(bits, workload, figures))}
    return useful_choices(context.recipe.space.model_dump(), tokens, refused, why_embedding_full_rank(context))


def why_embedding_full_rank(context: TaskContext) -> str:
    """Why the table of embeddings must stay whole or cannot pay otherwise; empty where it can."""
    if context.layout.ties_embedding(context.recipe.task.type):
        return "the output head shares the embeddings' table"
    if not {*LOW_RANK_EMBEDDING_HELPS} & {*context.recipe.value_names}:
        return f"it pays in {' and '.join(LOW_RANK_EMBEDDING_HELPS)} only, which no objective or constraint names"
    return ""
