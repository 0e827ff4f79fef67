"""Activations of a subnetwork: the tensors alive at once while a block runs, and the keys and values it keeps."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from search_spaces import Layout, SubnetConfig
from search_spaces.family import RunsOn, Stack

ATTENTION_AXES = {"heads", "kv_heads", "qkv_heads"}
"""Output axes of what self-attention projects its input to."""

ACTIVATION_COPIES = {"gelu_new": 3, "gelu_fast": 3, "quick_gelu": 2, "gated-gelu": 3}
"""Activation that is written in several operations -> tensors of its input's size that it needs at once; else one."""

ACTIVATION_FIELDS = ("hidden_act", "hidden_activation", "activation_function", "activation", "feed_forward_proj")
"""What configs call the activation of a feed-forward block."""


def count_live_activations(
    layout: Layout,
    subnet: SubnetConfig,
    position: int,
    block: str,
    runs: Mapping[RunsOn, int],
    modules: Collection[str],
) -> int:
    """Numbers in the tensors that are alive at once while a block of a layer runs in eager PyTorch, on one sample.

    The model's embeddings, the block's input and their sums are always held. Attention holds its queries, keys, values
    and output besides; where positions are rotary, queries twice more; and where it is not fused, its scores three
    times. A feed-forward block holds what it projects to, the activation of it, and a gate's product.

    Args:
        layout: Table of the parent.
        subnet: What runs.
        position: Of a kept layer.
        block: ``attention`` or ``mlp``, not skipped there.
        runs: How often modules run on one sample.
        modules: Paths below a layer of the modules that the parent has; a table may list more.
    """
    number, _ = layout.stack_of(subnet.layers[position])
    stack, width = layout.family.stacks[number], subnet.layer_values(position)
    tokens = runs[layout.family.stack_runs_on(number)]
    axes = ATTENTION_AXES if block == "attention" else {"ffn"}
    projected = [
        layout.shapes.size(axes_of_module[0], width)
        for path, axes_of_module in stack.modules.items()
        if path in modules
        and len(axes_of_module) == 2
        and axes_of_module[1] == "hidden"
        and axes_of_module[0]
        and axes >= set(_as_tuple(axes_of_module[0]))
    ]
    count = _attention if block == "attention" else _mlp
    return tokens * count(layout, stack, width, projected, tokens)


def _attention(layout: Layout, stack: Stack, width: Mapping[str, int], projected: list[int], tokens: int) -> int:
    heads, streams = width["num_attention_heads"], 2 if is_post_norm(stack) else 4
    queries = heads * layout.head_dim
    rotated = 2 * queries if hasattr(layout.sizes, "rope_parameters") else 0
    scores = 0 if stack.attention_module else (6 if layout.family.extra_macs else 3) * heads * tokens
    return streams * width["hidden_size"] + sum(projected) + queries + rotated + scores


def _mlp(layout: Layout, stack: Stack, width: Mapping[str, int], projected: list[int], tokens: int) -> int:
    neurons, streams = width["intermediate_size"], 3 if is_post_norm(stack) else 4
    names = (getattr(layout.sizes, key, None) for key in ACTIVATION_FIELDS)
    copies = ACTIVATION_COPIES.get(next((name for name in names if isinstance(name, str)), ""), 1)
    is_gated, is_fused = sum(projected) > neurons, len(projected) == 1
    tensors = (2 if is_gated and is_fused else 1) + max(copies, 2 if is_gated else 1)
    return streams * width["hidden_size"] + tensors * neurons


def is_post_norm(stack: Stack) -> bool:
    """Whether the sum of a block and its input is normed: a skipped block then returns its input, not zeros."""
    return any(returned.startswith("input") for returned in stack.skips.get("attention", {}).values())


def count_kv_cache(layout: Layout, subnet: SubnetConfig, position: int, runs: Mapping[RunsOn, int]) -> int:
    """Numbers in the keys and values that a decoder's layer keeps of one sample, those of the encoder included.

    One whose attention is skipped keeps one channel, which counts the tokens.
    """
    number, index = layout.stack_of(subnet.layers[position])
    if not layout.family.is_causal(number):
        return 0
    width = subnet.layer_values(position)
    channels = [max(layout.head_dim * width[f"num_{name}_heads"], 1) for name in ("key_value", "attention")]
    source_tokens = runs["source"] if layout.family.stacks[number].source_modules else 0
    return 2 * (_cached_tokens(layout, index, runs["token"]) * channels[0] + source_tokens * channels[1])


def _cached_tokens(layout: Layout, layer: int, tokens: int) -> int:
    """Tokens whose keys and values a layer keeps: of a sliding window, all but the next one's place."""
    layer_types, window = (getattr(layout.sizes, name, None) for name in ("layer_types", "sliding_window"))
    is_sliding = "sliding" in layer_types[layer] if layer_types else window is not None
    return min(tokens, window - 1) if is_sliding and window is not None else tokens


def _as_tuple(axis: object) -> tuple[str, ...]:
    return axis if isinstance(axis, tuple) else (str(axis),)
