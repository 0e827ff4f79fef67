"""RT-DETR and RT-DETRv2 (Zhao et al. 2023, arXiv 2304.08069; Lv et al. 2024, arXiv 2407.17140): a ResNet, an encoder
over its smallest map, convolutions that mix the maps, and a decoder whose queries sample points of all of them.

The decoder starts from the places that score best, and each of its layers refines the boxes with heads of its own. The
convolutions stay whole; they are counted. The encoder and the decoder are post-norm.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from search_spaces.family import Axes, Family, Skip, Stack
from search_spaces.tasks import DETECTION_TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from search_spaces.blueprint import LayerBlueprint
    from search_spaces.layout import Layout
    from search_spaces.subnet import SubnetConfig

ENCODER: dict[str, Axes] = {
    "self_attn.q_proj": ("heads", "hidden"),
    "self_attn.k_proj": ("heads", "hidden"),
    "self_attn.v_proj": ("heads", "hidden"),
    "self_attn.o_proj": ("hidden", "heads"),
    "self_attn_layer_norm": ("hidden",),
    "mlp.fc1": ("ffn", "hidden"),
    "mlp.fc2": ("hidden", "ffn"),
    "final_layer_norm": ("hidden",),
}
DECODER: dict[str, Axes] = {
    **ENCODER,
    "encoder_attn.sampling_offsets": ("cross_offsets", "hidden"),
    "encoder_attn.attention_weights": ("cross_points", "hidden"),
    "encoder_attn.value_proj": ("cross_heads", "hidden"),
    "encoder_attn.output_proj": ("hidden", "cross_heads"),
    "encoder_attn_layer_norm": ("hidden",),
}
NO_SELF_ATTENTION: dict[str, Skip] = {"self_attn": "zeros, None", "self_attn_layer_norm": "identity"}
NO_CROSS_ATTENTION: dict[str, Skip] = {"encoder_attn": "zeros, None", "encoder_attn_layer_norm": "identity"}
NO_FEED_FORWARD: dict[str, Skip] = {"mlp": "zeros", "final_layer_norm": "identity"}

HEADS = ("class_embed", *(f"bbox_embed.layers.{number}" for number in range(3)))
STACKS = (
    Stack(
        layers="encoder.aifi.0.layers",
        modules=ENCODER,
        skips={"attention": NO_SELF_ATTENTION, "mlp": NO_FEED_FORWARD},
    ),
    Stack(
        layers="decoder.layers",
        modules=DECODER,
        attributes={"encoder_attn": {"n_heads": "heads", "d_model": "heads*head_dim"}},
        skips={"attention": {**NO_SELF_ATTENTION, **NO_CROSS_ATTENTION}, "mlp": NO_FEED_FORWARD},
        lists=("decoder.class_embed", "decoder.bbox_embed", "class_embed", "bbox_embed"),
        runs_on={"encoder_attn.value_proj": "memory", **dict.fromkeys(HEADS, "never")},  # the decoder runs its own
    ),
)

FIRST_STRIDE = 4
"""Pixels a side for each output of the first stage of a ResNet."""


def stride_of(config: PreTrainedConfig, module: str) -> int:
    """Pixels of an image, along a side, for each output of a convolution; 0 for any other module."""
    if match := re.search(r"backbone\.model\.embedder\.", module):
        return FIRST_STRIDE // 2
    if match := re.search(r"backbone\.model\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(layer\.0)?", module):
        return _backbone_stride(config.backbone_config, int(match[1]), is_first=match[2] == "0" and bool(match[3]))
    match = re.search(
        r"\.(encoder_input_proj|decoder_input_proj|lateral_convs|fpn_blocks|downsample_convs|pan_blocks)\.(\d+)",
        module,
    )
    if match is None:
        return 0
    last, number = len(config.feat_strides) - 1, int(match[2])
    downwards = {"lateral_convs": last - number, "fpn_blocks": last - 1 - number}
    upwards = {"downsample_convs": number + 1, "pan_blocks": number + 1}
    return int(config.feat_strides[{**downwards, **upwards}.get(match[1], number)])


def _backbone_stride(backbone: PreTrainedConfig, stage: int, *, is_first: bool) -> int:
    """Of a convolution in a stage of a ResNet; the first one of a bottleneck may run before the map is reduced."""
    own = FIRST_STRIDE * 2 ** (stage + backbone.downsample_in_first_stage)
    reduces = stage > 0 or backbone.downsample_in_first_stage
    is_before = is_first and reduces and backbone.layer_type == "bottleneck" and not backbone.downsample_in_bottleneck
    return own // 2 if is_before else own


def position_macs(layout: Layout, layer: LayerBlueprint, tokens: int) -> int:
    """The positions of the boxes of queries, which are computed before each layer of the decoder."""
    hidden = int(layout.sizes.d_model)
    return tokens * (4 * 2 * hidden + 2 * hidden * hidden) if layer.stack == 1 else 0


def has_stock_config(layout: Layout, subnet: SubnetConfig) -> bool:
    """Whether transformers builds the model: its RT-DETRv2 needs two layers in the decoder."""
    return len(layout.kept_positions(subnet)[1]) > 1


RT_DETR_V2 = Family(
    model_type="rt_detr_v2",
    tasks=DETECTION_TASKS,
    stacks=STACKS,
    outside_layers={},
    runs_on={
        "enc_output.0": "memory",
        "enc_score_head": "memory",
        **{f"enc_bbox_head.layers.{number}": "memory" for number in range(3)},
    },
    head_dim_in_config=False,
    config_names={
        "num_hidden_layers": ("encoder_layers", "decoder_layers"),
        "num_attention_heads": ("encoder_attention_heads", "decoder_attention_heads"),
        "intermediate_size": ("encoder_ffn_dim", "decoder_ffn_dim"),
    },
    equal_to_hidden_size=("encoder_hidden_dim",),
    stride_of=stride_of,
    map_strides=lambda config: tuple(config.feat_strides),
    required_values={
        "backbone_config.model_type": "rt_detr_resnet",
        "encode_proj_layers": [2],
        "feat_strides": [8, 16, 32],
        "num_feature_levels": 3,
        "decoder_n_levels": 3,
        "normalize_before": False,
        "eval_size": None,
        "anchor_image_size": None,
        "learn_initial_query": False,
    },
    fixed_reasons={"hidden_size": "the convolutions between its layers have it too"},
    special_tokens=0,
    any_image_size=True,
    patch_size=32,
    has_stock_config=has_stock_config,
    extra_macs=position_macs,
)
RT_DETR = replace(RT_DETR_V2, model_type="rt_detr", has_stock_config=None)
