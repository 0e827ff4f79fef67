"""Proposal: the search space of a recipe that gives none, from the model's config and its workload."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import Facts
from search_spaces.dimensions import DIMENSIONS

if TYPE_CHECKING:
    from search_spaces.layout import Layout


@dataclass(frozen=True)
class Proposal:
    """A proposed search space.

    Attributes:
        choices: Recipe key below ``space`` -> choices, for the dimensions that are open.
        left_out: Recipe key -> why this dimension of the family stays as in the parent.
    """

    choices: dict[str, Any]
    left_out: dict[str, str] = field(default_factory=dict)


def propose_choices(layout: Layout, facts: Facts) -> Proposal:
    """Proposes the choices of each dimension that the family has and that can help.

    Args:
        layout: The parent.
        facts: What the workload can run, and what the recipe measures.
    """
    choices: dict[str, Any] = {"scope": "uniform" if layout.family.shared_layers else "per-layer"}
    left_out: dict[str, str] = {}
    for name in layout.family.dimensions:
        proposed = facts.kept.get(name) or DIMENSIONS[name].propose(layout, facts)
        if isinstance(proposed, str):
            left_out[name] = proposed
        else:
            choices[name] = proposed
    return Proposal(choices, left_out)
