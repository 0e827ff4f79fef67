"""Kinds of module that can take the place of a stock one; their PyTorch side is `nas.modeling.module_kinds`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

Shape = tuple[int, ...]
StoredTensor = tuple[Shape, str, int]
"""Shape of a tensor in a file, its dtype in the safetensors header, and bytes per element."""


@dataclass(frozen=True)
class Kind:
    """What one module becomes. A module may have several, in order: two factors, each of them quantized."""


@dataclass(frozen=True)
class Skipped(Kind):
    """Nothing: the module's block is skipped.

    Attributes:
        returns: What the module returns instead (see `search_spaces.family.Skip`).
    """

    returns: str


@dataclass(frozen=True)
class SparseAttention(Kind):
    """Attention over some of the tokens only.

    Attributes:
        graph: The pattern, as `nas.modeling.sparse_attention.Graph` stores it.
        block: Queries that share one gathered set of keys.
    """

    graph: tuple[int, ...]

    @property
    def block(self) -> int:
        """Queries that share one gathered set of keys."""
        return self.graph[-1]

    def keys_per_block(self, *, causal: bool) -> int:
        """Keys that are gathered for one block of queries."""
        window, global_tokens, random_blocks, _, block = self.graph
        return block + (window - 1 if causal else 2 * window) + random_blocks * block + global_tokens

    def computed_pairs(self, tokens: int, *, causal: bool) -> int:
        """Query-key pairs that are computed for a sequence, including gathered pairs that are then masked."""
        blocks = -(-tokens // self.block) * self.block
        global_pairs = 0 if causal else min(self.graph[1], tokens) * tokens
        return blocks * self.keys_per_block(causal=causal) + global_pairs


@dataclass(frozen=True)
class TruncatedOutput(Kind):
    """A model that returns the first channels of its hidden states.

    Attributes:
        size: Their number.
    """

    size: int


@dataclass(frozen=True)
class LowRank(Kind):
    """Two factors in the place of a linear layer.

    Attributes:
        rank: Their common size.
    """

    rank: int

    NAMES: ClassVar[dict[str, tuple[str, ...]]] = {"weight": ("down.weight", "up.weight"), "bias": ("up.bias",)}
    """Parameter of the module -> the parameters that replace it."""

    def tensors(self, outputs: int, inputs: int) -> dict[str, Shape]:
        """Name in the module -> shape, of a linear layer with a bias."""
        return {"down.weight": (self.rank, inputs), "up.weight": (outputs, self.rank), "up.bias": (outputs,)}


@dataclass(frozen=True)
class LowRankEmbedding(LowRank):
    """A table of fewer channels and a linear layer in the place of the table of token embeddings."""

    def tensors(self, outputs: int, inputs: int) -> dict[str, Shape]:
        """Name in the module -> shape; ``outputs`` are the channels, ``inputs`` the tokens of the vocabulary."""
        return {"down.weight": (inputs, self.rank), "up.weight": (outputs, self.rank)}


@dataclass(frozen=True)
class Packed(Kind):
    """A module that stores other tensors than weights of the parent's dtype."""

    WEIGHTS: ClassVar[tuple[str, ...]]
    """Weights that it replaces, by their names in the module."""
    NAMES: ClassVar[tuple[str, ...]]
    """Tensors that can replace a weight."""

    def packed(self, weight: StoredTensor) -> dict[str, StoredTensor]:
        """Tensors that a file holds for a weight (outputs or rows, inputs or channels) of the parent's dtype."""
        raise NotImplementedError


@dataclass(frozen=True)
class Quantized(Packed):
    """A linear layer whose weight, and perhaps activations, are of another dtype than the parent's.

    Attributes:
        dtype: One of `search_spaces.dimensions.bits.DTYPES`.
    """

    dtype: str

    WEIGHTS: ClassVar[tuple[str, ...]] = ("weight", "down.weight", "up.weight")
    NAMES: ClassVar[tuple[str, ...]] = ("qweight", "scales", "offsets")
    GROUP: ClassVar[int] = 32
    """Inputs that share a scale and an offset in four bits."""

    @property
    def form(self) -> str:
        """The dtype and, in four bits, the inputs that share a scale, and that they share an offset too."""
        return f"{self.dtype}:{self.GROUP}:offsets" if self.dtype == "int4-weight" else self.dtype

    def packed(self, weight: StoredTensor) -> dict[str, StoredTensor]:
        """See `Packed.packed`; as `nas.modeling.quantized.quantize` makes them."""
        outputs, inputs = weight[0]
        if self.dtype == "bfloat16":
            return {"qweight": ((outputs, inputs), "BF16", 2)}
        if self.dtype == "int4-weight":
            of_groups = ((outputs, -(-inputs // self.GROUP)), "BF16", 2)
            return {"qweight": ((outputs, (inputs + 1) // 2), "U8", 1), "scales": of_groups, "offsets": of_groups}
        return {"qweight": ((outputs, inputs), "I8", 1), "scales": ((outputs, 1), "F32", 4)}


@dataclass(frozen=True)
class CompressedTable(Packed):
    """A table of token embeddings, or the first of its two factors, in fewer bits than the parent's.

    Attributes:
        bits: Bits of a value: 16 (float16), 8 or 4 (integers with scales); 0 for a product quantization.
        part: Channels of a row that one code of a product quantization stands for.
        centroids: Values that a code can have.
    """

    bits: int
    part: int = 0
    centroids: int = 0

    WEIGHTS: ClassVar[tuple[str, ...]] = ("weight", "down.weight")
    NAMES: ClassVar[tuple[str, ...]] = ("qweight", "scales", "codebook")
    GROUP: ClassVar[int] = 64
    """Channels that share a scale in 4 bits; in 8 bits a row has one."""

    @property
    def group(self) -> int:
        """Channels that share a scale; 0: all of a row."""
        return self.GROUP if self.bits == 4 else 0

    def packed(self, weight: StoredTensor) -> dict[str, StoredTensor]:
        """See `Packed.packed`; as `nas.modeling.compressed_table.compress` makes them."""
        (rows, channels), dtype, size = weight
        if self.bits == 16:
            return {"qweight": ((rows, channels), "F16", 2)}
        if not self.bits:
            parts = -(-channels // self.part)
            codebook = (parts, self.centroids, self.part)
            return {"qweight": ((rows, parts), "U8", 1), "codebook": (codebook, dtype, size)}
        scales = ((rows, -(-channels // (self.group or channels))), "F16", 2)
        columns, name = ((channels + 1) // 2, "U8") if self.bits == 4 else (channels, "I8")
        return {"qweight": ((rows, columns), name, 1), "scales": scales}
