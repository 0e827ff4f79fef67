"""Bits: in what numbers the linear layers of a layer are stored and multiplied, and what those take on disk."""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.errors import InputError, did_you_mean

FULL_PRECISION = "float32"
"""The numbers of the parent."""

BITS = (FULL_PRECISION, "bfloat16", "int8-weight", "int8", "int4-weight")
"""Every kind, the most faithful first. ``int8`` rounds activations as they come and multiplies whole numbers (dynamic
quantization); of the kinds that end in ``weight``, weights are stored in fewer bits and multiplied as before."""

ROUNDS_ACTIVATIONS = ("bfloat16", "int8")
"""Kinds in which a layer also rounds what it is given, and every runtime a little differently."""

StoredTensor = tuple[tuple[int, ...], str, int]
"""Shape of a tensor, the name of its type in a safetensors header, and bytes of one number."""


def check_bits(bits: str) -> str:
    """A kind as it is.

    Raises:
        InputError: If it is none.
    """
    if bits not in BITS:
        raise InputError(f"`bits` must be known ones, but got `{bits}`; {did_you_mean(str(bits), BITS)}.")
    return bits


def sorted_by_precision(kinds: Sequence[str]) -> tuple[str, ...]:
    """Distinct kinds, the coarsest first and those of the parent last."""
    return tuple(sorted(set(map(check_bits, kinds)), key=BITS.index, reverse=True))


def stored_weight(outputs: int, inputs: int, bits: str) -> dict[str, StoredTensor]:
    """What stands in a file for the weight of a linear layer, as `nas.modeling.quantized.quantize` writes it."""
    if bits == "bfloat16":
        return {"qweight": ((outputs, inputs), "BF16", 2)}
    halves, number = ((inputs + 1) // 2, "U8") if bits == "int4-weight" else (inputs, "I8")
    return {"qweight": ((outputs, halves), number, 1), "scales": ((outputs, 1), "F32", 4)}
