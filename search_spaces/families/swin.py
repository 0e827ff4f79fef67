"""Swin (Liu et al. 2021, arXiv 2103.14030): four stages over ever fewer and wider patches, with attention in windows.

Every second layer of a stage shifts its windows, and keeps its shift when others are dropped. Each layer has biases of
relative positions in a window. The widths of the stages are fixed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from search_spaces.families.segformer import STAGES, per_stage
from search_spaces.family import Family, Stack, Stage
from search_spaces.tasks import IMAGE_ENCODER_TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BIASES = "attention.relative_position_bias.relative_position_bias_table"


def _stack(stage: int) -> Stack:
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    return Stack(
        layers=f"encoder.layers.{stage}.blocks",
        modules={
            "attention.q_proj": ("heads", "stage"),
            "attention.k_proj": ("heads", "stage"),
            "attention.v_proj": ("heads", "stage"),
            BIASES: (None, "head_biases"),
            "attention.o_proj": ("stage", "heads"),
            "mlp.fc1": ("ffn", "stage"),
            "mlp.fc2": ("stage", "ffn"),
            "layernorm_before": ("stage",),
            "layernorm_after": ("stage",),
        },
        attributes={"attention": {"num_attention_heads": "heads"}},
        skips={
            "attention": {"layernorm_before": "identity", "attention": "zeros, None"},
            "mlp": {"layernorm_after": "identity", "mlp": "zeros"},
        },
        runs_on={f"attention.{name}": f"queries {stage}" for name in projections},
        by_index={"shift_size": lambda config, index: config.window_size // 2 if index % 2 else 0},
    )


def _stages(config: PreTrainedConfig) -> tuple[Stage, ...]:
    """Patches are padded to whole windows, which are no larger than the grid; each merging halves it."""
    image, patch = (
        (size, size) if isinstance(size, int) else (size[0], size[1])
        for size in (config.image_size, config.patch_size)
    )
    grid, stages = tuple(math.ceil(side / length) for side, length in zip(image, patch, strict=True)), []
    for number in STAGES:
        window = min(config.window_size, *grid)
        queries = math.prod(math.ceil(side / window) * window for side in grid)
        stages.append(Stage(config.embed_dim * 2**number, math.prod(grid), queries, queries, window * window))
        grid = tuple((side + 1) // 2 for side in grid)
    return tuple(stages)


SWIN = Family(
    model_type="swin",
    tasks=IMAGE_ENCODER_TASKS,
    stacks=tuple(_stack(stage) for stage in STAGES),
    outside_layers={},
    runs_on={
        "patch_embeddings.projection": "stage 0",
        **{f"encoder.layers.{stage}.downsample.reduction": f"stage {stage + 1}" for stage in STAGES[:-1]},
        "classifier": "once",
    },
    head_dim_in_config=False,
    config_names={
        "num_hidden_layers": per_stage("depths"),
        "num_attention_heads": per_stage("num_heads"),
        "intermediate_size": ("mlp_ratio",),
    },
    ffn_from_ratio=lambda config, width, ratio: int(width * ratio),
    stages=_stages,
    required_values={"num_layers": len(STAGES)},
    fixed_reasons={
        "hidden_size": "each stage has a width of its own",
        "image_size": "its tables of relative positions have the size of the windows",
    },
    special_tokens=0,
)
