"""Queries of a detector: the most objects that it can find in an image.

Queries are alike, and each learns to find objects of its own; a subnetwork has the first ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import Dimension, Facts, fractions_of
from search_spaces.errors import InputError

if TYPE_CHECKING:
    from search_spaces.family import Family
    from search_spaces.layout import Layout
    from search_spaces.subnet import SubnetConfig

FRACTIONS = (1 / 4, 1 / 2, 3 / 4, 1)
"""Proposed numbers, relative to the parent's."""


class NumQueries(Dimension):
    """The number of queries; 0 in a model that is no detector."""

    def varies_in(self, family: Family) -> bool:
        """Whether the family has queries."""
        return family.has_queries and not self.fixed_reason(family)

    def parent_value(self, layout: Layout, stack: int) -> Any:
        """The queries of the parent."""
        return layout.inputs.num_queries

    def to_choices(self, values: Sequence[Any] | None, full: Any, can_skip: bool) -> tuple[Any, ...] | None:
        """See `Dimension.to_choices`; there are none without queries."""
        return super().to_choices(values, full, can_skip) if full else None

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """Quarters of the parent's."""
        return fractions_of(layout.inputs.num_queries, FRACTIONS)

    def check_in(self, layout: Layout, value: Any) -> None:
        """Raises InputError unless a detector has a query."""
        if layout.family.has_queries and not value:
            raise InputError(f"`{self.name}` must be at least 1 in a detector, but got {value}.")

    def stock_config(
        self, layout: Layout, subnet: SubnetConfig, stack: int, values: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Nothing: `Layout.config_update` has it, as it belongs to no layer."""
        return {}


NUM_QUERIES = NumQueries(
    "num_queries",
    label="queries",
    meaning="Queries of a detector: the most objects that it can find in an image.",
    scope="subnetwork",
    axes=("queries",),
    neutral=0,
)
