"""SubnetConfig: one point of a search space, as a value."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from search_spaces.dimensions.attention import FULL, AttentionPattern
from search_spaces.dimensions.bits import FULL_PRECISION, check_bits
from search_spaces.dimensions.ranks import FULL_RANK
from search_spaces.errors import InputError

BLOCKS: dict[str, tuple[str, ...]] = {
    "attention": ("num_attention_heads", "num_key_value_heads", "attention_rank", "attention"),
    "mlp": ("intermediate_size", "mlp_rank"),
}
"""Block of a layer -> its fields, named as in Hugging Face configs. The first is its width; where that is 0, the block
is skipped and the other numbers are 0 too."""

PER_LAYER = (*(field for fields in BLOCKS.values() for field in fields), "bits")
"""Fields that hold one value per kept layer."""

CATEGORICAL = {"attention": FULL, "bits": FULL_PRECISION}
"""Per-layer fields whose values are names -> the name that changes nothing."""

NUMERIC = tuple(field for field in PER_LAYER if field not in CATEGORICAL)
"""Per-layer fields whose values are numbers."""

RANK_FIELDS = {"attention_rank": "num_attention_heads", "mlp_rank": "intermediate_size"}
"""Field of the rank of a block's linear layers -> field of the block's width."""

GLOBAL_FIELDS = ("hidden_size", "embedding_rank")
"""Fields that hold one value for the subnetwork."""


@dataclass(frozen=True)
class SubnetConfig:
    """One subnetwork: which layers of the parent stay, and the values of each layer.

    Layers of an encoder-decoder are numbered encoder first, then decoder. In a decoder layer, ``num_attention_heads``
    is the number of heads of both self-attention and cross-attention.

    Attributes:
        layers: Indices of the kept parent layers, ascending.
        num_attention_heads: Attention heads of each kept layer, 0 where its attention is skipped.
        intermediate_size: Feed-forward neurons of each kept layer, 0 where its feed-forward block is skipped.
        hidden_size: Channels of the residual stream.
        num_key_value_heads: Key and value heads of each kept layer; by default as many as attention heads.
        attention_rank: Rank of the linear layers in each kept layer's attention, in percent of the break-even rank,
            out * in / (out + in), at which two factors have as many weights as one matrix; by default `FULL_RANK`.
        mlp_rank: The same for its feed-forward block.
        attention: Attention pattern of each kept layer (see `AttentionPattern`); ``full`` by default and where the
            attention is skipped.
        bits: Dtype of the weights (and activations) of the linear layers of each kept layer, one of
            `search_spaces.dimensions.bits.BITS`; by default the parent's.
        embedding_rank: Rank of the table of token embeddings, in percent of the break-even rank,
            vocabulary * channels / (vocabulary + channels); by default `FULL_RANK`.

    Raises:
        InputError: If the lengths differ, a layer repeats or has neither block, key and value heads do not divide the
            attention heads, a rank is not between 1 and `FULL_RANK`, an attention pattern or dtype is unknown, or no
            layer is kept.
    """

    layers: tuple[int, ...]
    num_attention_heads: tuple[int, ...]
    intermediate_size: tuple[int, ...]
    hidden_size: int
    num_key_value_heads: tuple[int, ...] = ()
    attention_rank: tuple[int, ...] = ()
    mlp_rank: tuple[int, ...] = ()
    attention: tuple[str, ...] = ()
    bits: tuple[str, ...] = ()
    embedding_rank: int = FULL_RANK

    def __post_init__(self) -> None:
        if not self.num_key_value_heads:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        for rank, width in RANK_FIELDS.items():
            sizes = getattr(self, width)
            ranks = getattr(self, rank) or (FULL_RANK,) * len(sizes)
            if len(ranks) == len(sizes):
                ranks = tuple(percent if size else 0 for percent, size in zip(ranks, sizes, strict=True))
            object.__setattr__(self, rank, ranks)
        patterns = map(AttentionPattern.parse, self.attention or (FULL,) * len(self.layers))
        object.__setattr__(self, "attention", tuple(FULL if p is None else str(p) for p in patterns))
        object.__setattr__(self, "bits", tuple(map(check_bits, self.bits or (FULL_PRECISION,) * len(self.layers))))
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise InputError(f"`layers` must be ascending and not empty, but got {list(self.layers)}.")
        if self.hidden_size < 1:
            raise InputError(f"`hidden_size` must be at least 1, but got {self.hidden_size}.")
        for field in PER_LAYER:
            values = getattr(self, field)
            if len(values) != len(self.layers) or (field in NUMERIC and min(values) < 0):
                raise InputError(
                    f"`{field}` must hold one value for each of the {len(self.layers)} kept layers, none below 0, "
                    f"but got {list(values)}."
                )
        patterns_and_heads = zip(self.attention, self.num_attention_heads, strict=True)
        object.__setattr__(self, "attention", tuple(text if heads else FULL for text, heads in patterns_and_heads))
        self._check_layers()

    def _check_layers(self) -> None:
        columns = self.layers, self.num_attention_heads, self.num_key_value_heads, self.intermediate_size
        for layer, heads, groups, width in zip(*columns, strict=True):
            if not heads and not width:
                raise InputError(
                    f"a layer must keep its attention or its feed-forward block, but {layer} has neither."
                )
            if not is_grouping(heads, groups):
                raise InputError(
                    f"`num_key_value_heads` must divide `num_attention_heads`, but layer {layer} has {groups} and "
                    f"{heads}."
                )
        ranks_of = {"embedding_rank": [self.embedding_rank]}
        for rank, name in RANK_FIELDS.items():
            ranks_of[rank] = [n for n, size in zip(getattr(self, rank), getattr(self, name), strict=True) if size]
        for rank, ranks in ranks_of.items():
            if any(not 1 <= percent <= FULL_RANK for percent in ranks):
                raise InputError(
                    f"`{rank}` must lie between 1 and {FULL_RANK} percent of break-even, but got {ranks}."
                )

    @classmethod
    def uniform(
        cls,
        layers: tuple[int, ...],
        *,
        num_attention_heads: int,
        intermediate_size: int,
        hidden_size: int,
        num_key_value_heads: int | None = None,
        embedding_rank: int = FULL_RANK,
        **others: Any,
    ) -> SubnetConfig:
        """The subnetwork whose kept layers all have these values; ``others`` are more fields of `PER_LAYER`."""
        n = len(layers)
        groups = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        widths = (num_attention_heads,) * n, (intermediate_size,) * n, hidden_size, (groups,) * n
        further: dict[str, Any] = {field: (value,) * n for field, value in others.items()}
        return cls(tuple(sorted(layers)), *widths, **further, embedding_rank=embedding_rank)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> SubnetConfig:
        """The subnetwork of a dict from `to_dict`."""
        lists: dict[str, Any] = {
            name: tuple(int(v) for v in data[name]) for name in ("layers", *NUMERIC) if name in data
        }
        names: dict[str, Any] = {name: tuple(data.get(name, ())) for name in CATEGORICAL}
        global_values: dict[str, Any] = {name: int(data[name]) for name in GLOBAL_FIELDS if name in data}
        return cls(**global_values, **lists, **names)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists for JSON; ranks, attention and bits only where they are not the default."""
        defaults = [rank for rank in RANK_FIELDS if set(getattr(self, rank)) <= {0, FULL_RANK}]
        defaults += [name for name, default in CATEGORICAL.items() if set(getattr(self, name)) == {default}]
        defaults += ["embedding_rank"] * (self.embedding_rank == FULL_RANK)
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items() if n not in defaults}

    @cached_property
    def key(self) -> str:
        """Ten hexadecimal digits that identify this subnetwork in files and folders."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:10]

    @property
    def num_hidden_layers(self) -> int:
        """Number of kept layers."""
        return len(self.layers)

    @property
    def is_sparse(self) -> bool:
        """Whether a layer has sparse attention."""
        return any(pattern != FULL for pattern in self.attention)

    @property
    def is_quantized(self) -> bool:
        """Whether a layer has another dtype than the parent."""
        return any(bits != FULL_PRECISION for bits in self.bits)

    @property
    def is_uniform(self) -> bool:
        """Whether all kept layers have the same values."""
        return all(len(set(getattr(self, field))) == 1 for field in PER_LAYER)

    def layer_values(self, position: int) -> dict[str, int]:
        """Numeric values of the kept layer at a position of ``layers``: field -> value, with ``hidden_size``."""
        return {**{field: getattr(self, field)[position] for field in NUMERIC}, "hidden_size": self.hidden_size}

    @property
    def parts(self) -> dict[str, str]:
        """Name -> text of each field; one value where all layers have the same."""
        widths = {"heads": self.num_attention_heads, "ffn": self.intermediate_size}
        if self.num_key_value_heads != self.num_attention_heads:
            widths["kv heads"] = self.num_key_value_heads
        given = self.to_dict()
        widths |= {f"{rank.replace('_', ' ')} %": getattr(self, rank) for rank in RANK_FIELDS if rank in given}
        alike = {name: str(v[0]) if len(set(v)) == 1 else ",".join(map(str, v)) for name, v in widths.items()}
        for name in (name for name in CATEGORICAL if name in given):
            values = getattr(self, name)
            alike[name] = values[0] if len(set(values)) == 1 else "; ".join(values)
        alike["hidden"] = str(self.hidden_size)
        if self.embedding_rank != FULL_RANK:
            alike["embedding rank %"] = str(self.embedding_rank)
        return {"layers": ",".join(map(str, self.layers)), **alike}

    def _repr_html_(self) -> str:
        from search_spaces.svg import svg

        return f"<p><code>{self.key}</code> {self}</p>{svg(self)}"

    def __str__(self) -> str:
        return " · ".join(f"{name} {value}" for name, value in self.parts.items())


def is_grouping(heads: int, groups: int) -> bool:
    """Whether ``heads`` attention heads can share ``groups`` key and value heads; 0 heads need 0 groups."""
    return heads % groups == 0 if heads and groups else heads == groups
