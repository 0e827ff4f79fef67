"""Key and value heads of a layer, which its attention heads share in groups (grouped-query attention)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import Dimension, Facts
from search_spaces.errors import InputError

if TYPE_CHECKING:
    from search_spaces.family import Family
    from search_spaces.layout import Layout
    from search_spaces.space import SearchSpace

HEADS = "num_attention_heads"


class KeyValueHeads(Dimension):
    """The number of key and value heads; by default as many attention heads share one as in the parent."""

    def default(self, values: Mapping[str, Any]) -> Any:
        """As many as attention heads."""
        return values[HEADS]

    def check(self, where: str, values: Mapping[str, Any]) -> None:
        """Raises InputError unless it divides the attention heads."""
        if not is_grouping(values[HEADS], values[self.name]):
            raise InputError(
                f"`{self.name}` must divide `{HEADS}`, but {where} has {values[self.name]} and {values[HEADS]}."
            )

    def choices_for(self, width: int, space: SearchSpace) -> tuple[Any, ...]:
        """Numbers of key and value heads that ``width`` attention heads can share, ascending.

        Raises:
            InputError: If there is none.
        """
        if not width:
            return (0,)
        per_group, is_open = heads_per_group(space), self.name in space.given
        choices = space.choices[self.name] if is_open else (max(1, width // per_group),)
        possible = tuple(g for g in choices if is_grouping(width, g) and width // g <= per_group)
        if not possible or not (is_open or width % per_group == 0):
            raise InputError(
                f"each choice of `space.{HEADS}` must be a multiple of a number of key and value heads, at most "
                f"{per_group} times it, but got {width} with {list(choices)} key and value heads; change it or "
                f"`space.{self.name}`."
            )
        return possible

    def repaired(self, value: Any, width: int, space: SearchSpace) -> Any:
        """The nearest number that ``width`` attention heads can share, the larger on a tie."""
        return min(self.choices_for(width, space), key=lambda groups: (abs(groups - value), -groups))

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """One, where attention heads share a single one; else they go in whole groups."""
        heads, groups = parent_groups(layout)
        return [1] if groups == 1 < heads else f"they go with `{HEADS}`, in whole groups"

    def varies_in(self, family: Family) -> bool:
        """Whether the family has grouped attention, and its heads may vary."""
        return "kv_heads" in family.axes and HEADS not in family.fixed_reasons

    def parent_value(self, layout: Layout, stack: int) -> Any:
        """The parent's number; that of its attention heads where it has no groups."""
        if layout.family.kv_heads_of is not None:
            return layout.family.kv_heads_of(layout.sizes)
        name = self.name if "kv_heads" in layout.family.axes else HEADS
        return int(layout.field(layout.family.names_in_config(name)[stack]))


def parent_groups(layout: Layout) -> tuple[int, int]:
    """Attention heads, and key and value heads of the parent; with two stacks, of the one with more."""
    heads, groups = (max(values[name] for values in layout.parent_values) for name in (HEADS, "num_key_value_heads"))
    return heads, groups


def heads_per_group(space: SearchSpace) -> int:
    """Attention heads that share a key and value head in the parent."""
    return max(space.parent.num_attention_heads) // max(space.parent.num_key_value_heads)


def is_grouping(heads: int, groups: int) -> bool:
    """Whether ``heads`` attention heads can share ``groups`` key and value heads; 0 heads need 0 groups."""
    return heads % groups == 0 if heads and groups else heads == groups


NUM_KEY_VALUE_HEADS = KeyValueHeads(
    "num_key_value_heads",
    label="kv heads",
    meaning="Key and value heads of a layer.",
    scope="attention",
    axes=("kv_heads",),
    depends_on=HEADS,
)
