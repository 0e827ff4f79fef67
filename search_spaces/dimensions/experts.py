"""Experts of a layer, in a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import Dimension, Facts, fractions_of
from search_spaces.errors import InputError

if TYPE_CHECKING:
    from search_spaces.family import Family
    from search_spaces.layout import Layout
    from search_spaces.space import SearchSpace
    from search_spaces.subnet import SubnetConfig

MULTIPLE = 8
"""Widths of experts are multiples of it: the products of all experts read rows of 16 bytes, in half precision."""

FRACTIONS = (1 / 2, 3 / 4, 1)
"""Proposed numbers, relative to the parent's."""


class Experts(Dimension):
    """The number of experts; a token runs through as many as in the parent, or all that are left; else 0."""

    def apply(self, value: Any, draft: Any) -> None:
        """Makes so many experts active."""
        if value:
            super().apply(value, draft)

    def to_choices(self, values: Sequence[Any] | None, full: Any, can_skip: bool) -> tuple[Any, ...] | None:
        """See `Dimension.to_choices`; a model without experts has no choices."""
        return super().to_choices(values, full, can_skip) if full else None

    def is_searched(self, space: SearchSpace) -> bool:
        """Whether there is more than one choice."""
        return len(space.choices.get(self.name, ())) > 1

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """Half, three quarters and all of the parent's."""
        return fractions_of(max(values[self.name] for values in layout.parent_values), FRACTIONS)

    def varies_in(self, family: Family) -> bool:
        """Whether the family has experts."""
        return "experts" in family.axes and super().varies_in(family)

    def parent_value(self, layout: Layout, stack: int) -> Any:
        """The parent's number; 0 in a model without experts."""
        has_experts = "experts" in layout.family.axes
        return int(layout.field(layout.family.names_in_config(self.name)[stack])) if has_experts else self.neutral

    def stock_config(
        self, layout: Layout, subnet: SubnetConfig, stack: int, values: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The number of experts, and of those that a token runs through."""
        if not values[self.name]:
            return {}
        per_token = min(values[self.name], layout.full_sizes[stack]["experts_per_token"])
        return {layout.family.names_in_config(self.name)[stack]: values[self.name], PER_TOKEN: per_token}


def check_width(layout: Layout, name: str, value: int) -> None:
    """Raises InputError unless a width of a model with experts is a multiple of `MULTIPLE`, or the parent's own."""
    own = {values[name] for values in layout.parent_values}
    if "experts" in layout.family.axes and value % MULTIPLE and value not in own:
        raise InputError(
            f"`{name}` of a mixture of experts must be a multiple of {MULTIPLE}, but got {value}; write, for example, "
            f"{-(-value // MULTIPLE) * MULTIPLE}."
        )


PER_TOKEN = "num_experts_per_tok"
"""Field of a config: experts that a token runs through."""

NUM_EXPERTS = Experts(
    "num_experts",
    label="experts",
    meaning="Experts of a layer, in a mixture of experts; `intermediate_size` is the width of each.",
    scope="mlp",
    axes=("experts",),
    neutral=0,
)
