"""Depth: how many layers each stack keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search_spaces.dimension import Dimension, Facts, fractions_of

if TYPE_CHECKING:
    from search_spaces.family import Family
    from search_spaces.layout import Layout

FRACTIONS = (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)
"""Proposed depths, relative to the parent's."""


@dataclass(frozen=True)
class Depth(Dimension):
    """The depth of a stack.

    Attributes:
        stack: Number of the stack.
    """

    stack: int = 0

    def propose(self, layout: Layout, facts: Facts) -> list[Any] | str:
        """Fractions of the stack's depth."""
        return fractions_of(layout.depths[self.stack], FRACTIONS)

    def varies_in(self, family: Family) -> bool:
        """Whether there is such a stack, and it is no stage."""
        return family.stages is None and len(family.stacks) > self.stack


class StageDepth(Depth):
    """The depth of one of several stages."""

    def varies_in(self, family: Family) -> bool:
        """Whether there is such a stage."""
        return family.stages is not None and len(family.stacks) > self.stack


NUM_HIDDEN_LAYERS = Depth(
    "num_hidden_layers",
    label="layers",
    meaning="How many layers are kept; of the encoder in an encoder-decoder, of the image tower beside a text tower.",
    scope="stack",
)
NUM_DECODER_LAYERS = Depth(
    "num_decoder_layers",
    label="decoder layers",
    meaning="How many layers of the decoder are kept, or of the text tower beside an image tower.",
    scope="stack",
    stack=1,
)
STAGE_DEPTHS = tuple(
    StageDepth(
        f"num_stage{stage}_layers",
        label=f"stage {stage} layers",
        meaning=f"How many layers of stage {stage} are kept, in a model of images with several stages.",
        scope="stack",
        stack=stage - 1,
    )
    for stage in (1, 2, 3, 4)
)
