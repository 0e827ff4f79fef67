"""The PyTorch side of each kind of module: how it is active in a supernet, and how an export stores and describes it.

`search_spaces.module_kinds` says what a kind is; `modeling_nas.EDITS` applies the description when an export loads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from nas.modeling.calibrated import quantize_on
from nas.modeling.compressed_table import compress, of_channels
from nas.modeling.elastic import low_rank_factors
from nas.modeling.modeling_nas import set_output_size, set_sparse_attention
from search_spaces.dimensions.bits import CALIBRATED, FULL_PRECISION
from search_spaces.module_kinds import (
    CompressedTable,
    Kind,
    LowRank,
    LowRankEmbedding,
    Quantized,
    Shape,
    Skipped,
    SparseAttention,
    TruncatedOutput,
)

Tensors = dict[str, torch.Tensor]


class Fitted(Protocol):
    """What is fitted to the data or the weights of one module."""

    def basis(self, rank: int) -> torch.Tensor:
        """Returns orthonormal directions (outputs, rank) that the module's outputs keep."""

    def moment(self) -> torch.Tensor | None:
        """Returns the mean of x x^T over the module's inputs x (inputs, inputs); None if it was not calibrated."""

    def codebook(self, kind: CompressedTable) -> torch.Tensor:
        """Returns the codebook (parts, vectors, channels of a part) of the module's rows."""


def _keep(kind: Kind, name: str, tensor: torch.Tensor, fitted: Fitted) -> Tensors:
    return {name: tensor}


@dataclass(frozen=True)
class ElasticKind:
    """How a kind of module is computed, stored and described.

    Attributes:
        activate: Module, the kind (None: the module stays what it is), what is fitted -> makes the module compute it.
        section: Section of ``nas_arch`` that describes it.
        describe: The kind, shapes of the tensors that the module then has -> what that section holds for the module.
        store: The kind, name and value of a tensor of the module (a weight is (outputs, inputs)), what is fitted ->
            what a file has in its place.
        has_weights: Whether it replaces a weight of the parent, whose shape its description needs.
        of_model: Whether it is a kind of a whole model, one without a head.
        impossible: Why a ``{model}`` may not have it, for a kind outside the layers.
    """

    activate: Callable[[nn.Module, Any, Fitted], None]
    section: str
    describe: Callable[[Any, dict[str, Shape]], Any]
    store: Callable[[Any, str, torch.Tensor, Fitted], Tensors] = _keep
    has_weights: bool = True
    of_model: bool = False
    impossible: str = ""


def _skip(module: nn.Module, kind: Skipped | None, fitted: Fitted) -> None:
    module.__dict__["skip"] = None if kind is None else kind.returns


def _attend(module: nn.Module, kind: SparseAttention | None, fitted: Fitted) -> None:
    set_sparse_attention(module, None if kind is None else list(kind.graph))


def _factorize(module: nn.Module, kind: LowRank | None, fitted: Fitted) -> None:
    module.__dict__["basis"] = None if kind is None else fitted.basis(kind.rank)


def _store_factors(kind: LowRank, name: str, tensor: torch.Tensor, fitted: Fitted) -> Tensors:
    if name != "weight":
        return {f"up.{name}": tensor}
    up, down = low_rank_factors(tensor, fitted.basis(kind.rank))
    return {"up.weight": up, "down.weight": down}


def _store_table(kind: LowRankEmbedding, name: str, tensor: torch.Tensor, fitted: Fitted) -> Tensors:
    up, down = low_rank_factors(tensor.T, fitted.basis(kind.rank))
    return {"up.weight": up, "down.weight": down.T}


def _quantize(module: nn.Module, kind: Quantized | None, fitted: Fitted) -> None:
    module.__dict__["bits"] = FULL_PRECISION if kind is None else kind.dtype
    module.__dict__["moment"] = fitted.moment() if kind is not None and kind.dtype == CALIBRATED else None


def _store_quantized(kind: Quantized, name: str, tensor: torch.Tensor, fitted: Fitted) -> Tensors:
    start, is_weight, _ = name.partition("weight")
    if not is_weight:
        return {name: tensor}
    moment = fitted.moment() if kind.dtype == CALIBRATED and start != "up." else None
    return {start + end: stored for end, stored in quantize_on(tensor, kind.dtype, moment).items()}


def _compress(module: nn.Module, kind: CompressedTable | None, fitted: Fitted) -> None:
    module.__dict__["table"] = None if kind is None else (kind, fitted.codebook(kind) if kind.part else None)


def _store_compressed(kind: CompressedTable, name: str, tensor: torch.Tensor, fitted: Fitted) -> Tensors:
    if name not in kind.WEIGHTS:
        return {name: tensor}
    codebook = of_channels(fitted.codebook(kind), tensor.shape[1]) if kind.part else None
    stored = compress(tensor, kind.bits, kind.group, codebook)
    return {name.removesuffix("weight") + end: one for end, one in stored.items()}


def _truncate(module: nn.Module, kind: TruncatedOutput | None, fitted: Fitted) -> None:
    set_output_size(module, None if kind is None else kind.size)


def _describe_factors(kind: LowRank, shapes: dict[str, Shape]) -> list[int]:
    """Inputs, outputs and rank of a linear layer's factors."""
    return [shapes["down.weight"][1], shapes["up.weight"][0], kind.rank]


KINDS: dict[type[Kind], ElasticKind] = {
    Skipped: ElasticKind(_skip, "skip", lambda kind, shapes: kind.returns, has_weights=False),
    SparseAttention: ElasticKind(_attend, "attention", lambda kind, shapes: list(kind.graph), has_weights=False),
    TruncatedOutput: ElasticKind(
        _truncate,
        "output",
        lambda kind, shapes: kind.size,
        has_weights=False,
        of_model=True,
        impossible="the hidden states must stay whole: the head of {model} reads them",
    ),
    LowRank: ElasticKind(_factorize, "low_rank", _describe_factors, _store_factors),
    LowRankEmbedding: ElasticKind(
        _factorize,
        "embedding",
        lambda kind, shapes: [shapes["up.weight"][0], kind.rank],
        _store_table,
        impossible="the embeddings must stay as they are: the output head of {model} shares the embedding table",
    ),
    CompressedTable: ElasticKind(
        _compress,
        "table",
        lambda kind, shapes: [kind.bits, kind.part, kind.centroids, kind.group],
        _store_compressed,
        impossible="the embeddings must stay as they are: the output head of {model} shares the embedding table",
    ),
    Quantized: ElasticKind(_quantize, "bits", lambda kind, shapes: kind.form, _store_quantized),
}
"""Kind -> how it is computed, stored and described."""
