"""Channels of the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import Dimension, Facts, fractions_of
from search_spaces.dimensions.experts import check_width
from search_spaces.errors import InputError

if TYPE_CHECKING:
    from search_spaces.layout import Layout
    from search_spaces.subnet import SubnetConfig

FRACTIONS = (2 / 3, 5 / 6, 1)
"""Proposed sizes, relative to the parent's; a narrower residual stream costs more quality than a narrower block."""


class Hidden(Dimension):
    """The hidden size, one for all layers of a model or a tower."""

    def check(self, where: str, values: Mapping[str, Any]) -> None:
        """Raises InputError unless there is a channel."""
        if values[self.name] < 1:
            raise InputError(f"`{self.name}` must be at least 1, but got {values[self.name]}.")

    def parent_value(self, layout: Layout, stack: int) -> Any:
        """The parent's hidden size; of several stages, that of the last, which none of them changes."""
        return layout.inputs.stages[-1].width if layout.inputs.stages else super().parent_value(layout, stack)

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """Fractions of the parent's, in steps that grow with it."""
        return hidden_choices(layout.parent.hidden_size)

    def check_in(self, layout: Layout, value: Any) -> None:
        """See `Dimension.check_in`; experts have widths that their products take."""
        super().check_in(layout, value)
        check_width(layout, self.name, value)

    def stock_config(
        self, layout: Layout, subnet: SubnetConfig, stack: int, values: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The hidden size and every field that must equal it; None where it would end a projection of embeddings."""
        family, size = layout.family, values[self.name]
        if layout.inputs.stages:
            return {}
        config = super().stock_config(layout, subnet, stack, values) or {}
        if "embedding_size" in family.config_names:
            if not layout.shapes.projects_embeddings:
                config[family.names_in_config("embedding_size")[0]] = size
            elif size == layout.shapes.embedding_size:
                return None  # a stock model of equal sizes has no projection
        return config | dict.fromkeys(family.equal_to_hidden_size, size)


def hidden_choices(hidden: int) -> list[int] | str:
    """Fractions of a hidden size, in steps that grow with it; why not, if there is none."""
    return fractions_of(hidden, FRACTIONS, multiple=64 if hidden >= 512 else 32 if hidden >= 256 else 8)


HIDDEN_SIZE = Hidden(
    "hidden_size",
    label="hidden",
    meaning="Width of the residual stream; of the image tower in a model with two towers.",
    scope="subnetwork",
    axes=("hidden",),
)
