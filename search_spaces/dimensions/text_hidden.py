"""Channels of the residual stream of the text tower, in a model that also has one for images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import Facts
from search_spaces.dimensions.hidden import Hidden, hidden_choices
from search_spaces.errors import InputError

if TYPE_CHECKING:
    from search_spaces.family import Family
    from search_spaces.layout import Layout
    from search_spaces.subnet import SubnetConfig


class TextHidden(Hidden):
    """The hidden size of the text tower; 0 in a model without one."""

    def check(self, where: str, values: Mapping[str, Any]) -> None:
        """Every number may be one: `check_in` knows the parent."""

    def varies_in(self, family: Family) -> bool:
        """Whether the family has a text tower."""
        return family.has_towers and not self.fixed_reason(family)

    def parent_value(self, layout: Layout, stack: int) -> Any:
        """The hidden size of the parent's text tower."""
        return layout.field(f"{TEXT}.hidden_size") if layout.family.has_towers else 0

    def to_choices(self, values: Sequence[Any] | None, full: Any, can_skip: bool) -> tuple[Any, ...] | None:
        """See `Dimension.to_choices`; there are none without a text tower."""
        return super().to_choices(values, full, can_skip) if full else None

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """Fractions of the parent's."""
        return hidden_choices(layout.parent.text_hidden_size)

    def check_in(self, layout: Layout, value: Any) -> None:
        """Raises InputError unless there is a channel where there is a text tower."""
        if layout.family.has_towers and not value:
            raise InputError(f"`{self.name}` must be at least 1 in a model with a text tower, but got {value}.")

    def stock_config(
        self, layout: Layout, subnet: SubnetConfig, stack: int, values: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The hidden size of the text tower."""
        return {f"{TEXT}.hidden_size": values[self.name]} if layout.family.has_towers else {}


TEXT = "text_config"
"""Field of a config that holds the sizes of its text tower."""

TEXT_HIDDEN_SIZE = TextHidden(
    "text_hidden_size",
    label="text hidden",
    meaning="Width of the residual stream of the text tower, in a model that has one beside its image tower.",
    scope="subnetwork",
    axes=("text_hidden",),
    neutral=0,
)
