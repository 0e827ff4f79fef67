"""The search space of a recipe over its parent, without choices that do not help."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from nas.recipe.objectives import reduced_costs
from nas.recipe.schema import Space, SpaceBase
from nas.tasks.context import TaskContext
from nas.tasks.trimmed_tokenizer import MODELS, pieces_that_stay, specification
from predictors import Workload
from predictors.measurement.precision import unsupported_reason
from search_spaces import TASKS, InputError, SearchSpace
from search_spaces.dimension import FULL, Facts
from search_spaces.dimensions import DIMENSIONS, OF_INPUTS
from search_spaces.dimensions.bits import DTYPES
from search_spaces.dimensions.vocabulary import VOCABULARY
from search_spaces.proposal import Proposal, propose_choices
from search_spaces.useful_choices import useful_choices


def search_space(context: TaskContext, layer_order: Sequence[int] | None = None) -> SearchSpace:
    """The recipe's space over its parent, without choices that do not help."""
    return context.layout.search_space(recipe_choices(context)[0], layer_order)


def vocabulary_sizes(space: SearchSpace) -> list[str]:
    """Numbers of pieces that subnetworks of a space have, without the full vocabulary."""
    return [size for size in space.choices.get(VOCABULARY.name, ()) if size != FULL]


def input_sizes(space: SearchSpace) -> list[str]:
    """Numbers of pieces, or of pixels, of subnetworks whose inputs differ from the parent's."""
    return [size for name in OF_INPUTS for size in space.choices.get(name, ()) if size != FULL]


def recipe_choices(context: TaskContext) -> tuple[dict[str, Any], list[str]]:
    """The choices of the recipe that can help on its workload, and why others are dropped."""
    return useful_choices(resolved_space(context).model_dump(), _facts(context))


def resolved_space(context: TaskContext) -> SpaceBase:
    """The recipe's ``space``; where it is ``auto``, what is proposed for its model and workload."""
    space = context.recipe.space
    if isinstance(space, str):
        return Space(**propose_space(context).choices)
    for name, why in _fixed_in_task(context).items():
        if getattr(space, name) is not None:
            raise InputError(
                f"`space.{name}` must be left out for {context.recipe.task.type}, because {why}, but got "
                f"{getattr(space, name)}."
            )
    return space


def _fixed_in_task(context: TaskContext) -> dict[str, str]:
    """Dimension -> why it may not vary in the task of the recipe."""
    reasons = {name: dimension.fixed_in(TASKS[context.recipe.task.type]) for name, dimension in DIMENSIONS.items()}
    return {name: why for name, why in reasons.items() if why}


def propose_space(context: TaskContext) -> Proposal:
    """Proposes a space for the recipe's model, with the dimensions that can help on its workload."""
    facts = _facts(context)
    if VOCABULARY.name in context.layout.family.dimensions and VOCABULARY.name not in facts.kept:
        facts = _with_pieces(facts, context)
    return propose_choices(context.layout, facts)


def _with_pieces(facts: Facts, context: TaskContext) -> Facts:
    """Adds how few pieces the tokenizer may have, or why it must have all."""
    if names := context.per_token_values:
        why = f"`{names[0]}` is a mean over tokens, which change with it; `bits_per_byte` is none"
        return replace(facts, kept={**facts.kept, VOCABULARY.name: why})
    try:
        fewest = len(pieces_that_stay(specification(context.processor)))
    except InputError:
        return replace(facts, kept={**facts.kept, VOCABULARY.name: f"its tokenizer is none of {', '.join(MODELS)}"})
    return replace(facts, fewest_pieces=fewest)


def _facts(context: TaskContext) -> Facts:
    value_names = reduced_costs(context.recipe.value_names)
    workloads = list(context.recipe.named_workloads.values())
    kept = dict.fromkeys(TASKS[context.recipe.task.type].kept, "the outputs of the task keep their width")
    return Facts(
        tokens=max(context.layout.inputs.longest_sequence(each.sequence_length) for each in workloads),
        value_names=value_names,
        unsupported_dtypes={d: why for d in DTYPES if (why := _unsupported_reason(d, workloads, value_names))},
        ties_embedding=context.layout.ties_embedding(context.recipe.task.type),
        is_decoding=all(workload.phase == "decode" for workload in workloads),
        kept={**kept, **_fixed_in_task(context), **context.broken_dimensions},
    )


def _unsupported_reason(dtype: str, workloads: Sequence[Workload], names: Collection[str]) -> str:
    """Why one of the workloads cannot run a dtype, or does not profit from it; empty if all do."""
    return next(filter(None, (unsupported_reason(dtype, workload, names) for workload in workloads)), "")
