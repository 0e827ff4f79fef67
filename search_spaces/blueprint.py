"""Blueprint: what a subnetwork makes of each module of its parent.

Each dimension writes into a `LayerDraft` what its value means: the size of an axis, or another kind of module.
Activation, extraction, exports and all costs read the result and name no dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from search_spaces.dimensions.ranks import factor_rank
from search_spaces.family import Axes
from search_spaces.module_kinds import CompressedTable, Kind, LowRank, LowRankEmbedding, Skipped

if TYPE_CHECKING:
    from search_spaces.layout import Layout

K = TypeVar("K", bound=Kind)
Kinds = Mapping[str, tuple[Kind, ...]]


@dataclass(frozen=True, eq=False)
class LayerBlueprint:
    """What becomes of the modules of one layer, or of those outside the layers.

    Attributes:
        stack: Number of its stack; None outside the layers.
        sizes: Axis of weights -> active units: heads, neurons, channels.
        kinds: Path of a module below the layer, or in the model -> what it becomes; others stay what they are.
    """

    stack: int | None
    sizes: Mapping[str, int]
    kinds: Kinds

    def kind(self, path: str, kind: type[K]) -> K | None:
        """What a module becomes, if it becomes that kind."""
        return next((one for one in self.kinds.get(path, ()) if isinstance(one, kind)), None)

    def skips(self, path: str) -> bool:
        """Whether a module lies in a skipped block."""
        return any(f"{path}.".startswith(f"{one}.") for one, kinds in self.kinds.items() if _is_skipped(kinds))


@dataclass(frozen=True)
class Blueprint:
    """What becomes of every module of the parent.

    Attributes:
        layers: One per kept layer, in their order.
        outside: The modules outside the layers.
    """

    layers: tuple[LayerBlueprint, ...]
    outside: LayerBlueprint


class LayerDraft:
    """Collects what dimensions say of one layer, or of the modules outside the layers.

    Args:
        layout: Of the parent.
        stack: Number of the stack; None outside the layers.
        sizes: Axis -> units, before any dimension speaks.
    """

    def __init__(self, layout: Layout, stack: int | None, sizes: Mapping[str, int]) -> None:
        self.layout, self.stack = layout, stack
        self.sizes = dict(sizes)
        self._percents: dict[str, int] = {}
        self._kinds: dict[str, list[Kind]] = {}
        self._of_linear_layers: list[Kind] = []

    def set_size(self, axes: Iterable[str], units: int) -> None:
        """Makes so many units of some axes active."""
        self.sizes |= dict.fromkeys(axes, units)

    def skip(self, block: str) -> None:
        """Skips a block of the layer."""
        if self.stack is not None:
            for path, returns in self.layout.family.stacks[self.stack].skips[block].items():  # type: ignore[index]
                self.replace(path, Skipped(returns))

    def replace(self, path: str, kind: Kind) -> None:
        """Makes a module another kind."""
        self._kinds.setdefault(path, []).append(kind)

    def replace_model(self, kind: Kind) -> None:
        """Makes the model itself, without a head, another kind."""
        if self.stack is None:
            self.replace("", kind)

    def replace_linear_layers(self, kind: Kind) -> None:
        """Makes every linear layer in the blocks of the layer another kind."""
        self._of_linear_layers.append(kind)

    def replace_attention(self, kind: Kind) -> None:
        """Makes the self-attention module of the layer another kind."""
        if self.stack is not None:
            self.replace(self.layout.family.stacks[self.stack].attention_module, kind)

    def factorize(self, axes: Iterable[str], percent: int) -> None:
        """Makes linear layers with such an axis low-rank: percent of the break-even rank."""
        self._percents |= dict.fromkeys(axes, percent)

    def keep_rows(self, rows: int) -> None:
        """Keeps so many rows of the table of token embeddings."""
        if self.stack is None:
            self.set_size(("vocab",), rows)

    def factorize_embedding(self, percent: int) -> None:
        """Makes the table of token embeddings low-rank."""
        if self.stack is None:
            shapes = self.layout.shapes
            rank = factor_rank(shapes.size("embedding", self.sizes), self.sizes["vocab"], percent)
            if rank is not None:
                self.replace(self.layout.family.embedding, LowRankEmbedding(rank))

    def compress_embedding(self, kind: CompressedTable) -> None:
        """Stores the table of token embeddings, or the first of its two factors, in fewer bits."""
        if self.stack is None:
            self.replace(self.layout.family.embedding, kind)

    def finished(self) -> LayerBlueprint:
        """The blueprint."""
        kinds = {path: list(some) for path, some in self._kinds.items()}
        for path, axes in (self.layout.shapes.linear_layers(self.stack) if self.stack is not None else {}).items():
            rank = self._rank(axes)
            of_linear = [*([LowRank(rank)] if rank is not None else []), *self._of_linear_layers]
            if of_linear:
                kinds.setdefault(path, []).extend(of_linear)
        return LayerBlueprint(self.stack, self.sizes, {path: tuple(some) for path, some in kinds.items()})

    def _rank(self, axes: Axes) -> int | None:
        """Rank of a linear layer."""
        flat = [one for axis in axes for one in (axis if isinstance(axis, tuple) else (axis,))]
        percent = next((self._percents[axis] for axis in flat if axis in self._percents), None)
        outputs, inputs = (self.layout.shapes.size(axis, self.sizes) for axis in axes)  # type: ignore[arg-type]
        return None if percent is None else factor_rank(outputs, inputs, percent)


def _is_skipped(kinds: Iterable[Kind]) -> bool:
    return any(isinstance(kind, Skipped) for kind in kinds)
