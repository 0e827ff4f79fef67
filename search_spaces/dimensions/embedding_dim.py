"""Components of the vector of a text (Matryoshka representations, Kusupati et al. 2022, arXiv 2205.13147)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import Dimension, Facts, fractions_of
from search_spaces.dimensions.hidden import HIDDEN_SIZE
from search_spaces.errors import InputError
from search_spaces.module_kinds import TruncatedOutput
from search_spaces.tasks import TASKS

if TYPE_CHECKING:
    from search_spaces.blueprint import LayerDraft
    from search_spaces.family import Family
    from search_spaces.layout import Layout
    from search_spaces.space import SearchSpace
    from search_spaces.subnet import SubnetConfig
    from search_spaces.tasks import Task

HIDDEN = "hidden_size"
FRACTIONS = (1 / 4, 1 / 2, 1)
"""Proposed widths, relative to the parent's: an index shrinks by as much."""


class EmbeddingDim(Dimension):
    """How many leading channels of the hidden states a model without a head returns; all of them by default."""

    @property
    def has_neutral(self) -> bool:
        """It has: the hidden size."""
        return True

    def default(self, values: Mapping[str, Any]) -> Any:
        """The hidden size."""
        return values[HIDDEN]

    def check(self, where: str, values: Mapping[str, Any]) -> None:
        """Raises InputError unless there are so many channels."""
        if not 1 <= values[self.name] <= values[HIDDEN]:
            raise InputError(
                f"`{self.name}` must lie between 1 and the hidden size, {values[HIDDEN]}, but got {values[self.name]}."
            )

    def apply(self, value: Any, draft: LayerDraft) -> None:
        """Truncates the hidden states that the model returns."""
        if value < draft.sizes["hidden"]:
            draft.replace_model(TruncatedOutput(value))

    def to_choices(self, values: Sequence[Any] | None, full: Any, can_skip: bool) -> tuple[Any, ...] | None:
        """See `Dimension.to_choices`; there are no choices where it is fixed."""
        return None if values is None else super().to_choices(values, full, can_skip)

    def choices_for(self, width: int, space: SearchSpace) -> tuple[Any, ...]:
        """Choices that a hidden size allows.

        Raises:
            InputError: If there is none.
        """
        choices = space.choices.get(self.name, (width,))
        if choices[0] > width:
            raise InputError(
                f"the smallest choice of `space.{self.name}` must be at most every hidden size, but got {choices[0]} "
                f"and {width}; add a smaller one."
            )
        return tuple(value for value in choices if value <= width)

    def repaired(self, value: Any, width: int, space: SearchSpace) -> Any:
        """The choice itself, or the largest one that the hidden size allows."""
        return max(one for one in self.choices_for(width, space) if one <= value)

    def useful(self, values: Sequence[Any], facts: Facts) -> tuple[list[Any], list[str]]:
        """The largest choice only, where nothing asks for a short vector."""
        why = self._useless_reason(facts)
        dropped = sorted(set(values))[:-1] if why else []
        kept = [value for value in values if value not in dropped]
        return kept, [f"{', '.join(map(str, dropped))} dropped: {why}"] if dropped else []

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """A quarter and half of the parent's, where an objective or a constraint names it."""
        return self._useless_reason(facts) or fractions_of(layout.parent.hidden_size, FRACTIONS, multiple=8)

    def _useless_reason(self, facts: Facts) -> str:
        """Why a short vector is not worthwhile; empty if it is."""
        return "" if self.name in facts.value_names else f"no objective or constraint names `{self.name}`"

    def varies_in(self, family: Family) -> bool:
        """Whether the family has a task whose output is a vector."""
        return any(not self.fixed_in(TASKS[task]) for task in family.tasks)

    def fixed_in(self, task: Task) -> str:
        """Why it may not vary in a task whose output is no vector."""
        return "" if task.gives_vectors else "the output of the task is no vector"

    def parent_value(self, layout: Layout, stack: int) -> Any:
        """All channels."""
        return HIDDEN_SIZE.parent_value(layout, stack)

    def stock_config(
        self, layout: Layout, subnet: SubnetConfig, stack: int, values: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Nothing, where all channels stay."""
        return {} if values[self.name] == values[HIDDEN] else None


EMBEDDING_DIM = EmbeddingDim(
    "embedding_dim",
    label="embedding dim",
    meaning="Leading components of the vector of a text that are kept.",
    scope="subnetwork",
    depends_on=HIDDEN,
    is_cost=True,
)
