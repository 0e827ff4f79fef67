"""Bits: the dtype of the linear layers of a layer, and the tensors stored for their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import Category, Facts
from search_spaces.errors import InputError, did_you_mean
from search_spaces.module_kinds import Quantized

if TYPE_CHECKING:
    from search_spaces.blueprint import LayerDraft
    from search_spaces.layout import Layout

FULL_PRECISION = "float32"
"""The dtype of the parent: nothing is quantized."""

DTYPES = (FULL_PRECISION, "bfloat16", "int8-weight", "int8", "int4-weight")
"""Every dtype, most precise first. ``int8`` is dynamic quantization: activations are quantized at run time and
multiplied as integers. Names that end in ``weight`` are weight-only quantization: weights are stored in fewer bits and
dequantized before they are multiplied."""

ROUNDS_ACTIVATIONS = ("bfloat16", "int8")
"""Dtypes that also round activations; runtimes differ slightly in how they round."""

CALIBRATED = "int4-weight"
"""The dtype whose integers are fitted to activations: with eight bits nothing is left to gain."""

PROPOSED = ("int8", "bfloat16", "int8-weight")
"""Dtypes that are proposed: the first that is useful."""
PROPOSED_IN_DECODERS = ("int8-weight", "bfloat16")
"""The same in decoders: a few of their activations are huge, and ``int8`` has one range for those of all tokens."""
QUANTIZED_FROM_HIDDEN = 256
"""Hidden size from which they are proposed: quantizing the inputs of small products takes longer than it saves."""


def check_bits(bits: str) -> str:
    """Returns a dtype unchanged; ``full``, the name of what changes nothing, is `FULL_PRECISION`.

    Raises:
        InputError: If it is not in `DTYPES`.
    """
    if bits == "full":
        return FULL_PRECISION
    if bits not in DTYPES:
        raise InputError(f"`bits` must be a known dtype, but got `{bits}`; {did_you_mean(str(bits), DTYPES)}.")
    return bits


class Bits(Category):
    """The dtype of the weights (and activations) of a layer's linear layers."""

    def parse(self, value: Any) -> str:
        """The dtype."""
        return check_bits(value)

    def apply(self, value: Any, draft: LayerDraft) -> None:
        """Makes the linear layers quantized."""
        if value != FULL_PRECISION:
            draft.replace_linear_layers(Quantized(value))

    def encode(self, value: Any) -> int:
        """Its index in `DTYPES`."""
        return DTYPES.index(value)

    def decode(self, code: int) -> str:
        """The dtype of an index."""
        return DTYPES[code]

    def sort(self, values: Sequence[str]) -> tuple[str, ...]:
        """Distinct dtypes, least precise first, so that the parent's is last."""
        return tuple(sorted(set(map(check_bits, values)), key=DTYPES.index, reverse=True))

    def needs_calibration(self, choices: Sequence[Any]) -> bool:
        """Whether one has four bits: their integers come from activations."""
        return CALIBRATED in choices

    def useful(self, values: Sequence[Any], facts: Facts) -> tuple[list[Any], list[str]]:
        """Dtypes that the workload can run and that are worthwhile there."""
        dtypes = [check_bits(dtype) for dtype in values]
        unsupported = {dtype: why for dtype, why in (facts.unsupported_dtypes or {}).items() if dtype in dtypes}
        kept = [dtype for dtype in dtypes if dtype not in unsupported] or [FULL_PRECISION] * bool(dtypes)
        return kept, [f"{dtype} dropped: {why}" for dtype, why in unsupported.items()]

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """One dtype that the workload runs and that improves an objective or a constrained cost."""
        if layout.parent.hidden_size < QUANTIZED_FROM_HIDDEN:
            return f"a hidden size below {QUANTIZED_FROM_HIDDEN} has little to gain"
        unsupported = facts.unsupported_dtypes or {}
        proposed = PROPOSED_IN_DECODERS if layout.family.is_causal(0) else PROPOSED
        useful = next((dtype for dtype in proposed if dtype not in unsupported), None)
        return [useful, FULL_PRECISION] if useful else f"{proposed[0]}: {unsupported[proposed[0]]}"


BITS = Bits(
    "bits",
    label="bits",
    meaning="Dtype of the linear layers: `float32` (or `full`), `bfloat16`, `int8`, `int8-weight` or `int4-weight`.",
    scope="layer",
    neutral=FULL_PRECISION,
)
