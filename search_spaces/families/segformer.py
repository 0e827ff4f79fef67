"""SegFormer (Xie et al. 2021, arXiv 2105.15203): four stages over ever fewer and wider patches, each pre-norm.

Queries attend to keys of which a strided convolution leaves few, and a depthwise convolution in the feed-forward block
stands for positions. The widths of the stages are fixed; a head for segmentation reads all of them.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING

from search_spaces.family import Family, Stack, Stage
from search_spaces.tasks import IMAGE_ENCODER_TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

STAGES = range(4)
DEFAULT_IMAGE_SIZE = 224
"""Pixels a side where nothing says how large images are: SegFormer reads any size."""


def per_stage(name: str) -> tuple[str, ...]:
    """The entries of a list in the config, one for each stage."""
    return tuple(f"{name}.{stage}" for stage in STAGES)


def _stack(stage: int) -> Stack:
    on_keys = ("k_proj", "v_proj", "sequence_reduction.sequence_reduction")
    return Stack(
        layers=f"stages.{stage}.blocks",
        modules={
            "attention.q_proj": ("heads", "stage"),
            "attention.k_proj": ("heads", "stage"),
            "attention.v_proj": ("heads", "stage"),
            "attention.sequence_reduction.sequence_reduction": ("stage", "stage"),
            "attention.o_proj": ("stage", "heads"),
            "mlp.fc1": ("ffn", "stage"),
            "mlp.dwconv.dwconv": ("ffn",),
            "mlp.fc2": ("stage", "ffn"),
            "layernorm_before": ("stage",),
            "layernorm_after": ("stage",),
        },
        attributes={"attention": {"num_attention_heads": "heads"}, "mlp.dwconv.dwconv": {"groups": "ffn"}},
        skips={
            "attention": {"layernorm_before": "identity", "attention": "zeros, None"},
            "mlp": {"layernorm_after": "identity", "mlp": "zeros"},
        },
        runs_on={f"attention.{name}": f"keys {stage}" for name in on_keys},
    )


def _stages(config: PreTrainedConfig) -> tuple[Stage, ...]:
    """Each convolution before a stage pads by half of its patches; that before the keys does not."""
    size = getattr(config, "image_size", DEFAULT_IMAGE_SIZE)
    image = (size, size) if isinstance(size, int) else (size[0], size[1])
    convolutions = zip(config.patch_sizes, config.strides, strict=True)
    grids = [*accumulate(convolutions, lambda grid, each: _convolved(grid, *each), initial=image)][1:]
    stages = []
    for width, grid, ratio in zip(config.hidden_sizes, grids, config.sr_ratios, strict=True):
        tokens, keys = math.prod(grid), math.prod(side // ratio for side in grid)
        stages.append(Stage(width, tokens, tokens, keys, keys))
    return tuple(stages)


def _convolved(grid: tuple[int, int], patch: int, stride: int) -> tuple[int, int]:
    height, width = ((side + 2 * (patch // 2) - patch) // stride + 1 for side in grid)
    return height, width


SEGFORMER = Family(
    model_type="segformer",
    tasks=(*IMAGE_ENCODER_TASKS, "semantic-segmentation"),
    stacks=tuple(_stack(stage) for stage in STAGES),
    outside_layers={},
    runs_on={
        **{f"stages.{stage}.patch_embeddings.proj": f"stage {stage}" for stage in STAGES},
        **{f"linear_projections.{stage}.proj": f"stage {stage}" for stage in STAGES},
        "linear_fuse": "stage 0",
        "classifier": "label",
    },
    head_dim_in_config=False,
    config_names={
        "num_hidden_layers": per_stage("depths"),
        "num_attention_heads": per_stage("num_attention_heads"),
        "intermediate_size": per_stage("mlp_ratios"),
    },
    ffn_from_ratio=lambda config, width, ratio: int(width * ratio),
    stages=_stages,
    required_values={"num_encoder_blocks": len(STAGES)},
    fixed_reasons={
        "hidden_size": "each stage has a width of its own",
        "image_size": "its maps of labels have the size of the images",
    },
    special_tokens=0,
    any_image_size=True,
)
