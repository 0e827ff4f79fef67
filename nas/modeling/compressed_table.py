"""Tables of embeddings in fewer bits: how rows are rounded and stored, and how they are looked up.

Integers are uniform and symmetric, with one scale for a group of channels. Product quantization (Jégou et al. 2011,
doi 10.1109/TPAMI.2010.57) splits a row into parts and stores for each the number of the nearest vector of a codebook.
Like `modeling_nas`, this file is copied into exports; it needs only torch.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from .quantized import Stored, in_groups, pack_pairs, unpack

MAX_INTEGER = {8: 127, 4: 7}
"""Bits -> the largest integer."""

ROWS_AT_ONCE = 1024
"""Rows whose distances to all vectors of a codebook are in memory at once."""


def compress(table: Tensor, bits: int, group: int, codebook: Tensor | None) -> dict[str, Tensor]:
    """Compresses the rows of a table (rows, channels) to the tensors that are stored.

    Args:
        table: Rows; all of their dimensions but the last are kept.
        bits: 16, 8, 4, or 0 for a product quantization.
        group: Channels that share a scale; 0: all of a row.
        codebook: (parts, vectors, channels of a part) of a product quantization.

    Returns:
        ``qweight`` and, for integers, ``scales`` (rows, groups) float16; the codebook is stored as it is.
    """
    if codebook is not None:
        return {"qweight": nearest(table, codebook).to(torch.uint8), "codebook": codebook}
    if bits == 16:
        return {"qweight": table.to(torch.float16)}
    groups = in_groups(table.float(), group or table.shape[-1])
    scales = (groups.abs().amax(-1) / MAX_INTEGER[bits]).to(torch.float16)
    scales = scales.clamp(min=torch.finfo(torch.float16).tiny)
    integers = (groups / scales[..., None].float()).round().clamp(-MAX_INTEGER[bits], MAX_INTEGER[bits])
    rows = integers.flatten(-2)[..., : table.shape[-1]].to(torch.int8)
    return {"qweight": pack_pairs(rows) if bits == 4 else rows, "scales": scales}


def restore(channels: int, group: int, qweight: Tensor, scales: Tensor | None, codebook: Tensor | None) -> Tensor:
    """Returns rows (.., channels) from stored ones, in the dtype of the codebook, else in float32.

    Args:
        channels: Of a row.
        group: Channels that share a scale; 0: all of a row.
        qweight: Stored rows.
        scales: Scales of integers.
        codebook: Of a product quantization.
    """
    if codebook is not None:
        parts, vectors, size = codebook.shape
        first = torch.arange(parts, device=qweight.device) * vectors
        rows = embedding(qweight.long() + first, codebook.reshape(parts * vectors, size))
        return rows.flatten(-2)[..., :channels]
    if scales is None:
        return qweight.float()
    groups = in_groups(unpack(qweight, channels).float(), group or channels) * scales[..., None].float()
    return groups.flatten(-2)[..., :channels]


def nearest(rows: Tensor, codebook: Tensor) -> Tensor:
    """Returns the number of the nearest vector for each part of rows (.., channels): (.., parts)."""
    offsets = codebook.float().square().sum(-1)
    codes = [
        (
            offsets - 2 * torch.einsum("npd,pkd->npk", in_groups(some.float(), codebook.shape[2]), codebook.float())
        ).argmin(-1)
        for some in rows.reshape(-1, rows.shape[-1]).split(ROWS_AT_ONCE)
    ]
    return torch.cat(codes).reshape(*rows.shape[:-1], len(codebook))


def of_channels(codebook: Tensor, channels: int) -> Tensor:
    """Returns the part of a codebook that rows of the first channels use; channels that they lack are zero."""
    parts, size = -(-channels // codebook.shape[2]), codebook.shape[2]
    used = codebook[:parts].clone()
    used[-1, :, channels - (parts - 1) * size :] = 0
    return used


class CompressedEmbedding(Stored, nn.Embedding):
    """An embedding whose rows are stored in fewer bits; see `compress`.

    Of a product quantization the codebook can be trained, of integers nothing; gradients pass to what comes after.
    """

    qweight: Tensor
    scales: Tensor | None
    codebook: Tensor | None
    channels: int
    group: int

    def forward(self, input: Tensor) -> Tensor:
        """Looks up rows and restores them: ids -> (.., channels) in the dtype of the module."""
        if torch.onnx.is_in_onnx_export() and self.group and self.channels % self.group == 0:
            return self._onnx_rows(input)
        scales = None if self.scales is None else embedding(input, self.scales)
        rows = restore(self.channels, self.group, embedding(input, self.qweight), scales, self.codebook)
        return rows.to(self.weight.dtype)

    def _onnx_rows(self, input: Tensor) -> Tensor:
        """Emits ONNX Runtime's look-up in a table of four bits in groups."""
        assert self.scales is not None
        operands = self.qweight, input, self.scales.to(self.weight.dtype)
        layout: Any = {"gather_axis": 0, "quantize_axis": 1, "block_size": self.group, "bits": 4}
        result: Any = {"dtype": self.weight.dtype, "shape": (*input.shape, self.channels), "version": 1}
        return torch.onnx.ops.symbolic("com.microsoft::GatherBlockQuantized", operands, layout, **result)


def compress_embedding(module: Any, bits: int, part: int, centroids: int, group: int) -> None:
    """Makes an embedding a compressed one, in place; it keeps its class, which may scale its outputs.

    Args:
        module: An embedding; its weight is dropped.
        bits: 16, 8, 4, or 0 for a product quantization.
        part: Channels of a part.
        centroids: Vectors of a codebook.
        group: Channels that share a scale; 0: all of a row.
    """
    stock, (rows, channels) = type(module), module.weight.shape
    dtype, device = module.weight.dtype, {"device": module.weight.device}
    del module.weight
    is_plain = stock is nn.Embedding
    module.__class__ = CompressedEmbedding if is_plain else type(stock.__name__, (stock, CompressedEmbedding), {})
    module.channels, module.group, module.padding_idx, module.codebook = channels, group, None, None
    columns, stored = {16: (channels, torch.float16), 8: (channels, torch.int8)}.get(
        bits, ((channels + 1) // 2, torch.uint8)
    )
    parts = -(-channels // part) if part else 0
    module.register_buffer("qweight", torch.zeros(rows, parts or columns, dtype=stored, **device))
    has_scales, groups = bits in MAX_INTEGER, -(-channels // (group or channels))
    module.register_buffer("scales", torch.ones(rows, groups, dtype=torch.float16, **device) if has_scales else None)
    if part:
        module.codebook = nn.Parameter(torch.zeros(parts, centroids, part, dtype=dtype, **device))
    module.register_buffer("weight", torch.empty(0, dtype=dtype, **device), persistent=False)
