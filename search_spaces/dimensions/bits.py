"""Bits: the dtype of the linear layers of a layer, and the tensors stored for their weights."""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.errors import InputError, did_you_mean

FULL_PRECISION = "float32"
"""The dtype of the parent: nothing is quantized."""

BITS = (FULL_PRECISION, "bfloat16", "int8-weight", "int8", "int4-weight")
"""Every dtype, most precise first. ``int8`` is dynamic quantization: activations are quantized at run time and
multiplied as integers. Names that end in ``weight`` are weight-only quantization: weights are stored in fewer bits and
dequantized before they are multiplied."""

ROUNDS_ACTIVATIONS = ("bfloat16", "int8")
"""Dtypes that also round activations; runtimes differ slightly in how they round."""

StoredTensor = tuple[tuple[int, ...], str, int]
"""Shape of a tensor in a file, its dtype in the safetensors header, and bytes per element."""


def check_bits(bits: str) -> str:
    """Returns a dtype unchanged.

    Raises:
        InputError: If it is not in `BITS`.
    """
    if bits not in BITS:
        raise InputError(f"`bits` must be a known dtype, but got `{bits}`; {did_you_mean(str(bits), BITS)}.")
    return bits


def sorted_by_precision(dtypes: Sequence[str]) -> tuple[str, ...]:
    """Distinct dtypes, least precise first, so that the parent's is last."""
    return tuple(sorted(set(map(check_bits, dtypes)), key=BITS.index, reverse=True))


def stored_weight(outputs: int, inputs: int, bits: str) -> dict[str, StoredTensor]:
    """Tensors that a file holds for the weight of a linear layer, as `nas.modeling.quantized.quantize` makes them."""
    if bits == "bfloat16":
        return {"qweight": ((outputs, inputs), "BF16", 2)}
    columns, dtype = ((inputs + 1) // 2, "U8") if bits == "int4-weight" else (inputs, "I8")
    return {"qweight": ((outputs, columns), dtype, 1), "scales": ((outputs, 1), "F32", 4)}
