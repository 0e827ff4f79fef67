"""Feed-forward neurons of a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import WIDTH_FRACTIONS, Dimension, Facts, fractions_of
from search_spaces.dimensions.experts import check_width

if TYPE_CHECKING:
    from search_spaces.layout import Layout
    from search_spaces.subnet import SubnetConfig


class FeedForward(Dimension):
    """The width of the feed-forward block; some configs give it as a ratio to the hidden size."""

    def parent_value(self, layout: Layout, stack: int) -> Any:
        """The parent's own width; four times the hidden size where the config leaves it open, as GPT-2's may."""
        value: Any = layout.field(layout.family.names_in_config(self.name)[stack], None)
        if layout.family.ffn_from_ratio is not None:
            value = layout.family.ffn_from_ratio(layout.sizes, layout.widths[stack], value)
        return 4 * layout.sizes.hidden_size if value is None else int(value)

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """Quarters of the widest stack's width, in steps of 8."""
        return fractions_of(max(values[self.name] for values in layout.parent_values), WIDTH_FRACTIONS, multiple=8)

    def check_in(self, layout: Layout, value: Any) -> None:
        """See `Dimension.check_in`; experts have widths that their products take."""
        super().check_in(layout, value)
        check_width(layout, self.name, value)

    def stock_config(
        self, layout: Layout, subnet: SubnetConfig, stack: int, values: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The width, or the integer ratio that gives it; None where no integer does."""
        ffn_from_ratio, hidden, neurons = (
            layout.family.ffn_from_ratio,
            layout.hidden_size(subnet, stack),
            values[self.name],
        )
        if ffn_from_ratio is None or not neurons:
            return super().stock_config(layout, subnet, stack, values)
        ratios = range(1, 2 * (neurons // hidden + 1))
        ratio = next((ratio for ratio in ratios if ffn_from_ratio(layout.sizes, hidden, ratio) == neurons), None)
        name = layout.family.names_in_config(self.name)[stack]
        return None if ratio is None else {name: type(layout.field(name))(ratio)}  # some configs hold floats only


INTERMEDIATE_SIZE = FeedForward(
    "intermediate_size",
    label="ffn",
    meaning="Feed-forward neurons of a layer; 0 skips its feed-forward block.",
    scope="mlp",
    axes=("ffn",),
)
