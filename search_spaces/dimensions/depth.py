"""Depth: how many layers each stack keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from search_spaces.dimension import Dimension

if TYPE_CHECKING:
    from search_spaces.family import Family


class DecoderDepth(Dimension):
    """The depth of the second stack."""

    def varies_in(self, family: Family) -> bool:
        """Whether there is a second stack."""
        return len(family.stacks) > 1


NUM_HIDDEN_LAYERS = Dimension(
    "num_hidden_layers",
    label="layers",
    meaning="How many layers are kept; of the encoder in an encoder-decoder.",
    scope="stack",
)
NUM_DECODER_LAYERS = DecoderDepth(
    "num_decoder_layers",
    label="decoder layers",
    meaning="How many layers of the decoder are kept.",
    scope="stack",
)
