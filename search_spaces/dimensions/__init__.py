"""Every dimension by its name: one object each, one line here. Nothing here imports torch."""

from __future__ import annotations

from search_spaces.dimension import BLOCK_NAMES, Dimension, Reduced
from search_spaces.dimensions.attention import ATTENTION
from search_spaces.dimensions.bits import BITS
from search_spaces.dimensions.depth import NUM_DECODER_LAYERS, NUM_HIDDEN_LAYERS, STAGE_DEPTHS
from search_spaces.dimensions.embedding_bits import EMBEDDING_BITS
from search_spaces.dimensions.embedding_dim import EMBEDDING_DIM
from search_spaces.dimensions.embedding_rank import EMBEDDING_RANK
from search_spaces.dimensions.experts import NUM_EXPERTS
from search_spaces.dimensions.ffn import INTERMEDIATE_SIZE
from search_spaces.dimensions.heads import NUM_ATTENTION_HEADS
from search_spaces.dimensions.hidden import HIDDEN_SIZE
from search_spaces.dimensions.image_size import IMAGE_SIZE
from search_spaces.dimensions.key_value_heads import NUM_KEY_VALUE_HEADS
from search_spaces.dimensions.num_queries import NUM_QUERIES
from search_spaces.dimensions.ranks import ATTENTION_RANK, MLP_RANK
from search_spaces.dimensions.text_hidden import TEXT_HIDDEN_SIZE
from search_spaces.dimensions.vocabulary import VOCABULARY

DIMENSIONS: dict[str, Dimension] = {
    dimension.name: dimension
    for dimension in (
        NUM_HIDDEN_LAYERS,
        NUM_DECODER_LAYERS,
        *STAGE_DEPTHS,
        NUM_ATTENTION_HEADS,
        NUM_KEY_VALUE_HEADS,
        INTERMEDIATE_SIZE,
        NUM_EXPERTS,
        HIDDEN_SIZE,
        ATTENTION_RANK,
        MLP_RANK,
        ATTENTION,
        BITS,
        VOCABULARY,
        EMBEDDING_RANK,
        EMBEDDING_BITS,
        EMBEDDING_DIM,
        IMAGE_SIZE,
        TEXT_HIDDEN_SIZE,
        NUM_QUERIES,
    )
}
"""Name -> dimension, in the order in which a space draws them."""

DEPTHS = tuple(name for name, dimension in DIMENSIONS.items() if dimension.scope == "stack")
"""Depths of stacks."""


def depth_names(stacks: int) -> tuple[str, ...]:
    """The depth of each of so many stacks: the only one, two, of an encoder and a decoder or of towers, or stages."""
    names = DEPTHS[:2] if stacks <= 2 else tuple(depth.name for depth in STAGE_DEPTHS)
    return names[:stacks]


BLOCKS: dict[str, tuple[str, ...]] = {
    block: tuple(name for name, dimension in DIMENSIONS.items() if dimension.scope == block) for block in BLOCK_NAMES
}
"""Block of a layer -> its dimensions, the block's width first."""

PER_LAYER = (
    *(name for names in BLOCKS.values() for name in names),
    *(name for name, dimension in DIMENSIONS.items() if dimension.scope == "layer"),
)
"""Dimensions with one value per kept layer, block by block."""

NO_BLOCK = tuple(name for name, dimension in DIMENSIONS.items() if dimension.scope == "layer")
"""Dimensions of a layer that belong to no block."""

PER_SUBNET = tuple(name for name, dimension in DIMENSIONS.items() if dimension.scope == "subnetwork")
"""Dimensions with one value for the subnetwork."""

BLOCK_OF_AXIS = {
    axis: dimension.scope for dimension in DIMENSIONS.values() for axis in dimension.axes if dimension.scope in BLOCKS
}
"""Axis of weights -> the block of a layer that has it."""

WIDTH_OF = {name: names[0] for names in BLOCKS.values() for name in names} | {
    name: DIMENSIONS[name].depends_on for name in PER_SUBNET if DIMENSIONS[name].depends_on
}
"""Dimension of a block -> the width of that block; of the subnetwork -> the dimension that it depends on."""

OF_INPUTS = tuple(name for name in PER_SUBNET if isinstance(DIMENSIONS[name], Reduced))
"""Dimensions of the subnetwork that decide how its examples become inputs: in which pieces, of which size."""

COST_DIMENSIONS = tuple(name for name, dimension in DIMENSIONS.items() if dimension.is_cost)
"""Dimensions of the subnetwork whose value is also a cost."""
