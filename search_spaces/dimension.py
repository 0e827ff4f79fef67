"""Dimension: one property that may vary between subnetworks, and everything that is particular to it.

The recipe's schema, `SearchSpace`, `Parameters`, `SubnetBatch`, validation, stock configs, tables and pictures read
the objects of `search_spaces.dimensions` and name none of them. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from search_spaces.errors import InputError

if TYPE_CHECKING:
    from search_spaces.blueprint import LayerDraft
    from search_spaces.family import Family
    from search_spaces.layout import Layout
    from search_spaces.space import SearchSpace
    from search_spaces.subnet import SubnetConfig
    from search_spaces.tasks import Task

DimensionScope = Literal["stack", "subnetwork", "layer", "attention", "mlp"]
"""What has one value: a stack of layers, the subnetwork, a layer, or a block of a layer."""

BLOCK_NAMES = ("attention", "mlp")
"""Blocks of a layer. The first dimension of a block is its width; where that is 0, the block is skipped."""

FULL_RANK = 100
"""The rank, in percent of break-even, of a linear layer that stays one full matrix."""


WIDTH_FRACTIONS = (1 / 4, 1 / 2, 3 / 4, 1)
"""Proposed widths of a block, relative to the parent's."""

LOW_RANK_FROM_HIDDEN = 512
"""Hidden size from which ranks are proposed: with every dimension open, the front of a smaller model lost some points
(experiments/imdb)."""


@dataclass(frozen=True)
class Facts:
    """What decides whether a choice is worthwhile in a recipe.

    Attributes:
        tokens: Tokens of one sample of the workload, in the stack with the longer sequence.
        value_names: Metrics and costs that an objective or a constraint names.
        unsupported_dtypes: Dtype -> why the workload cannot run it, or why it is not worthwhile there.
        ties_embedding: Whether the output head shares the table of token embeddings.
        is_decoding: Whether the workload computes one token at a time.
        kept: Dimension -> why it is not proposed in the task.
        fewest_pieces: Pieces of the tokenizer that always stay.
    """

    tokens: int
    value_names: frozenset[str] = frozenset()
    unsupported_dtypes: Mapping[str, str] | None = None
    ties_embedding: bool = False
    is_decoding: bool = False
    kept: Mapping[str, str] = field(default_factory=dict)
    fewest_pieces: int = 0


@dataclass(frozen=True)
class Dimension:
    """One dimension, here one whose values are sizes: integers from 1 to the parent's own, 0 to skip a block.

    Attributes:
        name: Key in a recipe's ``space`` and attribute of `SubnetConfig`; Hugging Face's name where there is one.
        label: Short name in tables.
        meaning: One sentence: what a value means.
        scope: What has one value.
        axes: Axes of weights, as families' tables name them, whose size it sets.
        neutral: The value that changes nothing; None where that is the parent's own size.
        depends_on: The dimension on whose value its possible values depend, if any. Without choices of its own it
            then follows that dimension.
        is_cost: Whether its value is also a cost, which objectives and constraints may name.
    """

    name: str
    label: str
    meaning: str
    scope: DimensionScope
    axes: tuple[str, ...] = ()
    neutral: Any = None
    depends_on: str = ""
    is_cost: bool = False

    choice_type: ClassVar[Any] = int
    """Type of a choice in a recipe."""
    is_categorical: ClassVar[bool] = False
    """Whether values are names, encoded as integers in arrays."""
    separator: ClassVar[str] = ","
    """What separates the values of layers in a table."""

    # -- a value of a subnetwork --------------------------------------------------------------------------------------

    def parse(self, value: Any) -> Any:
        """The value as `SubnetConfig` holds it.

        Raises:
            InputError: If it is no possible value.
        """
        return int(value)

    def default(self, values: Mapping[str, Any]) -> Any:
        """The value where none is given; ``values`` are those of the dimensions before it. None: it must be given."""
        return self.neutral

    @property
    def if_skipped(self) -> Any:
        """The value in a layer that skips its block."""
        return self.neutral if self.is_categorical else 0

    @property
    def has_neutral(self) -> bool:
        """Whether one value changes nothing; such a dimension does not shrink in the baseline of uniform scaling."""
        return self.neutral is not None

    def is_neutral(self, value: Any, values: Mapping[str, Any]) -> bool:
        """Whether a value changes nothing; ``values`` are those of the subnetwork."""
        return self.has_neutral and value in (self.default(values), self.if_skipped)

    def check(self, where: str, values: Mapping[str, Any]) -> None:
        """Raises InputError unless the value fits the others of its layer, or of the subnetwork.

        Args:
            where: The layer, as messages name it.
            values: Dimension -> value.
        """

    def encode(self, value: Any) -> int:
        """The value as an integer, for arrays."""
        return int(value)

    def decode(self, code: int) -> Any:
        """The value of an integer from `encode`."""
        return code

    def apply(self, value: Any, draft: LayerDraft) -> None:
        """Writes into a draft what a value makes of the modules of a layer, or of those outside the layers."""
        draft.set_size(self.axes, value)
        if not value and self.scope in BLOCK_NAMES:
            draft.skip(self.scope)

    # -- choices of a space -------------------------------------------------------------------------------------------

    def to_choices(self, values: Sequence[Any] | None, full: Any, can_skip: bool) -> tuple[Any, ...] | None:
        """Distinct choices, cheapest first; None where a space has no choices of this dimension.

        Args:
            values: Choices of a space; None: the dimension is fixed.
            full: The parent's own value.
            can_skip: Whether 0 may be a choice, because it skips a block.

        Raises:
            InputError: If there is none, or one is not within the parent.
        """
        if values is None:
            return (full,)
        if not values:
            raise InputError(
                f"`space.{self.name}` must hold at least one choice, but got []; leave it out to keep {full}."
            )
        wrong = [value for value in values if not (0 if can_skip else 1) <= value <= full]
        if wrong or not max(values):
            skip = ", or be 0, with other choices, to skip the block" if can_skip else ""
            raise InputError(
                f"`space.{self.name}` must lie between 1 and the parent's {full}{skip}, but got "
                f"{wrong or list(values)}."
            )
        return tuple(sorted(set(values)))

    def is_searched(self, space: SearchSpace) -> bool:
        """Whether the values of layers vary on their own in a space."""
        return not self.depends_on or self.name in space.given

    def choices_for(self, width: int, space: SearchSpace) -> tuple[Any, ...]:
        """Choices in a block of a width, or next to a value of the dimension that it depends on."""
        return space.choices.get(self.name, (self.neutral,)) if width else (self.if_skipped,)

    def repaired(self, value: Any, width: int, space: SearchSpace) -> Any:
        """The possible value nearest to a choice, where `choices_for` takes the same width."""
        return value if width else self.if_skipped

    def useful(self, values: Sequence[Any], facts: Facts) -> tuple[list[Any], list[str]]:
        """A recipe's choices as a space takes them, without useless ones, and for what reasons the others are dropped.

        Raises:
            InputError: If a choice is no possible value.
        """
        return list(values), []

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """Choices for a recipe that gives none, or why the dimension should stay as in the parent.

        Here: quarters of the parent's size; with two stacks, of the wider one.
        """
        return fractions_of(max(values[self.name] for values in layout.parent_values), WIDTH_FRACTIONS)

    def needs_calibration(self, choices: Sequence[Any]) -> bool:
        """Whether a choice needs statistics of activations on calibration data."""
        return False

    # -- a family and a parent ----------------------------------------------------------------------------------------

    def varies_in(self, family: Family) -> bool:
        """Whether models of a family have it."""
        return not self.fixed_reason(family)

    def fixed_reason(self, family: Family) -> str:
        """Why it cannot vary in a family; empty if it can, or if there is nothing to say."""
        return family.fixed_reasons.get(self.name, "")

    def fixed_in(self, task: Task) -> str:
        """Why it may not vary in a task; empty if it may."""
        return ""

    def parent_value(self, layout: Layout, stack: int) -> Any:
        """The parent's own value in a stack."""
        if self.neutral is not None:
            return self.neutral
        return int(layout.field(layout.family.names_in_config(self.name)[stack]))

    def check_in(self, layout: Layout, value: Any) -> None:
        """Raises InputError unless a parent allows a value, be it a choice or a subnetwork's.

        Here: one that a family fixes stays as in a stack of the parent.
        """
        reason = layout.family.fixed_reasons.get(self.name)
        if not reason or (self.has_neutral and value == self.if_skipped):
            return
        if value not in [self.parent_value(layout, stack) for stack in range(len(layout.depths))]:
            raise InputError(f"`{self.name}` of `{layout.family.model_type}` is fixed: {reason}.")

    def stock_config(
        self, layout: Layout, subnet: SubnetConfig, stack: int, values: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Fields of a stock config that give the layers of a stack this value; None if no stock config does.

        Args:
            layout: Of the parent.
            subnet: The subnetwork.
            stack: Number of the stack.
            values: Dimension -> value of each of its layers, which are alike.
        """
        if self.neutral is not None:
            return {} if values[self.name] == self.neutral else None
        if not self.varies_in(layout.family) and self.scope in BLOCK_NAMES:
            return {}
        return {layout.family.names_in_config(self.name)[stack]: values[self.name]} if values[self.name] else None

    # -- text ---------------------------------------------------------------------------------------------------------

    def text(self, values: Sequence[Any]) -> str:
        """Values of layers in a table: one where all are alike."""
        return str(values[0]) if len(set(values)) == 1 else self.separator.join(map(str, values))

    def picture_row(self, value: Any) -> tuple[str, str]:
        """Title and text of its row in a picture, for a dimension of the subnetwork that is not neutral."""
        return self.label, str(value)


@dataclass(frozen=True)
class Rank(Dimension):
    """The rank of linear layers, in percent of the break-even rank; a recipe gives a fraction of it, or ``full``.

    Attributes:
        factorized_axes: Axes of weights whose linear layers become two factors.
    """

    neutral: Any = FULL_RANK
    factorized_axes: tuple[str, ...] = ()

    choice_type: ClassVar[Any] = Literal["full"] | float

    def check(self, where: str, values: Mapping[str, Any]) -> None:
        """Raises InputError unless the rank is 1 to 100 percent of break-even."""
        if not 1 <= values[self.name] <= FULL_RANK:
            raise InputError(
                f"`{self.name}` must lie between 1 and {FULL_RANK} percent of break-even, but got {values[self.name]}."
            )

    def apply(self, value: Any, draft: LayerDraft) -> None:
        """Makes linear layers low-rank."""
        if value not in (0, FULL_RANK):
            draft.factorize(self.factorized_axes, value)

    def to_choices(self, values: Sequence[Any] | None, full: Any, can_skip: bool) -> tuple[Any, ...] | None:
        """See `Dimension.to_choices`; one of the subnetwork has no choices where it is fixed."""
        if values is None and self.scope == "subnetwork":
            return None
        return super().to_choices(values, full, False)

    def is_searched(self, space: SearchSpace) -> bool:
        """Whether there is more than one choice."""
        return len(space.choices[self.name]) > 1

    def useful(self, values: Sequence[Any], facts: Facts) -> tuple[list[Any], list[str]]:
        """Ranks below break-even, in percent; from there on two factors are no smaller than one matrix."""
        if wrong := [value for value in values if value != "full" and value < 0.01]:
            raise InputError(f"`space.{self.name}` must be `full` or at least 0.01 of break-even, but got {wrong}.")
        kept = [value for value in values if value == "full" or value < 1]
        dropped = ", ".join(f"{value:g}" for value in values if value not in kept)
        why = f"{dropped} dropped: at this rank the two factors are no smaller than the full matrix"
        percent = [FULL_RANK if value == "full" else int(round(100 * value, 6)) for value in kept or ["full"]]
        return percent, [why] if dropped else []

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """Half of break-even, in a model that is wide enough."""
        if layout.parent.hidden_size < LOW_RANK_FROM_HIDDEN:
            return f"a hidden size below {LOW_RANK_FROM_HIDDEN} has little to gain"
        return [0.5, "full"]

    def needs_calibration(self, choices: Sequence[Any]) -> bool:
        """Whether one is below full rank: bases of low ranks come from activations."""
        return choices[0] < FULL_RANK


@dataclass(frozen=True)
class Category(Dimension):
    """A dimension whose values are names."""

    choice_type: ClassVar[Any] = str
    is_categorical: ClassVar[bool] = True
    separator: ClassVar[str] = "; "

    def sort(self, values: Sequence[str]) -> tuple[str, ...]:
        """Distinct values, cheapest first."""
        raise NotImplementedError

    def to_choices(self, values: Sequence[Any] | None, full: Any, can_skip: bool) -> tuple[Any, ...] | None:
        """See `Dimension.to_choices`; there are no choices where it is fixed."""
        if values is None:
            return None
        return self.sort(values) if values else super().to_choices(values, full, False)

    def is_searched(self, space: SearchSpace) -> bool:
        """Whether the space has choices."""
        return self.name in space.choices


FULL = "full"
"""The value of a `Reduced` dimension that changes nothing."""


@dataclass(frozen=True)
class Reduced(Category):
    """A dimension whose values are whole numbers below the parent's own, or ``full``; they decide what inputs are.

    Attributes:
        unit: What is counted, in the plural.
    """

    neutral: Any = FULL
    unit: str = ""

    choice_type: ClassVar[Any] = int | str

    def parse(self, value: Any) -> str:
        """The text of a number, or ``full``.

        Raises:
            InputError: If it is neither.
        """
        text = str(value)
        if text != FULL and not (text.isdecimal() and 0 < int(text) < 2**31):
            raise InputError(
                f"`{self.name}` must be `full` or a number of {self.unit} above 0, but got `{text}`; write, for "
                "example, `full`."
            )
        return text if text == FULL else str(int(text))

    def encode(self, value: Any) -> int:
        """The number; 0 for ``full``."""
        return 0 if value == FULL else int(value)

    def decode(self, code: int) -> str:
        """The text of an integer from `encode`."""
        return str(code) if code else FULL

    def sort(self, values: Sequence[Any]) -> tuple[str, ...]:
        """Distinct numbers, the smallest first and ``full`` last."""
        return tuple(
            sorted({self.parse(value) for value in values}, key=lambda text: (text == FULL, self.encode(text)))
        )

    def stock_config(self, layout: Layout, subnet: SubnetConfig, stack: int, values: Any) -> dict[str, Any] | None:
        """Nothing: `Layout.config_update` has it, as it belongs to no layer."""
        return {}

    def picture_row(self, value: Any) -> tuple[str, str]:
        """Its row in a picture, with the unit."""
        return self.label, f"{value} {self.unit}"


def without_useless(values: Sequence[str], neutral: str, why: str) -> tuple[list[Any], list[str]]:
    """What `Dimension.useful` returns where, for a reason or "", only the value that changes nothing is useful."""
    dropped = [value for value in values if value != neutral]
    if not why or not dropped:
        return list(values), []
    return [neutral], [f"{', '.join(dropped)} dropped: {why}"]


def fractions_of(size: int, fractions: Sequence[float], multiple: int = 1) -> list[int] | str:
    """Distinct fractions of a size, rounded to a multiple, and the size itself; why not, if that is the only one."""
    rounded = (max(1, round(size * fraction / multiple)) * multiple for fraction in fractions)
    choices = sorted({value for value in rounded if value < size} | {size})
    return choices if len(choices) > 1 else f"the model has {size} only"
