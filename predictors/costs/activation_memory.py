"""Activation memory of a subnetwork: the tensors alive at once while a block runs, and the key-value cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from search_spaces import Layout, SubnetConfig
from search_spaces.family import Axes, RunsOn, Stack

ATTENTION_AXES = {"heads", "kv_heads", "qkv_heads"}
"""Output axes of the projections of self-attention."""

ACTIVATION_COPIES = {"gelu_new": 3, "gelu_fast": 3, "quick_gelu": 2, "gated-gelu": 3}
"""Activation function made of several operations -> tensors of its input's size alive at once; 1 for all others."""

ACTIVATION_FIELDS = ("hidden_act", "hidden_activation", "activation_function", "activation", "feed_forward_proj")
"""Config fields that name the activation function of a feed-forward block."""


def count_live_activations(
    layout: Layout,
    subnet: SubnetConfig,
    position: int,
    block: str,
    runs: Mapping[RunsOn, int],
    modules: Collection[str],
) -> int:
    """Number of elements in the tensors alive at once while a block of a layer runs in eager PyTorch, for one sample.

    The embeddings, the block's input and their sums are always alive. Attention adds its queries, keys, values and
    output, two more copies of the queries with rotary positions, and three copies of the scores if it is not fused. A
    feed-forward block adds its projections, the output of the activation function, and the product with a gate.

    Args:
        layout: Layout of the parent.
        subnet: The subnetwork.
        position: Position of the layer among the kept layers.
        block: ``attention`` or ``mlp``; the layer must not skip it.
        runs: How often modules run per sample.
        modules: Paths of the parent's modules, relative to a layer; the family's table may list more.
    """
    number, _ = layout.stack_of(subnet.layers[position])
    stack, sizes = layout.family.stacks[number], layout.blueprint(subnet).layers[position].sizes
    tokens = runs[layout.family.stack_runs_on(number)]
    attended = layout.inputs.stages[number].attended if layout.inputs.stages else tokens
    axes = ATTENTION_AXES if block == "attention" else {"ffn"}
    projected = [
        layout.shapes.size(output, sizes)
        for path, (*of_experts, output, read) in _matrices(stack)
        if (path.rpartition(".")[0] if of_experts else path) in modules
        and read == layout.family.hidden_axis(number)
        and output
        and axes >= set(axes_of(output))
    ]
    width = sizes[layout.family.hidden_axis(number)]
    if block == "attention":
        return tokens * _attention(layout, stack, sizes, width, projected, attended)
    return tokens * _mlp(layout, stack, sizes, width, projected)


def _matrices(stack: Stack) -> list[tuple[str, Axes]]:
    """Paths below a layer of linear layers, and of the matrices of all experts, with their axes."""
    return [(path, axes) for path, axes in stack.modules.items() if len(axes) == 2 or axes[0] == "experts"]


def _attention(
    layout: Layout, stack: Stack, sizes: Mapping[str, int], width: int, projected: list[int], attended: int
) -> int:
    heads, streams = sizes["heads"], 2 if is_post_norm(stack) else 4
    queries = heads * layout.head_dim
    rotated = 2 * queries if hasattr(layout.sizes, "rope_parameters") else 0
    scores = 0 if stack.attention_module else (6 if layout.family.extra_macs else 3) * heads * attended
    return streams * width + sum(projected) + queries + rotated + scores


def _mlp(layout: Layout, stack: Stack, sizes: Mapping[str, int], width: int, projected: list[int]) -> int:
    neurons, streams = sizes["ffn"], 3 if is_post_norm(stack) else 4
    names = (getattr(layout.sizes, key, None) for key in ACTIVATION_FIELDS)
    copies = ACTIVATION_COPIES.get(next((name for name in names if isinstance(name, str)), ""), 1)
    is_gated, is_fused = sum(projected) > neurons, len(projected) == 1
    tensors = (2 if is_gated and is_fused else 1) + max(copies, 2 if is_gated else 1)
    per_token = layout.shapes.attribute_value("experts_per_token", sizes) or 1
    return streams * width + tensors * neurons * per_token


def is_post_norm(stack: Stack) -> bool:
    """Whether the norm follows the residual connection; a skipped block then returns its input instead of zeros."""
    return any(returned.startswith("input") for returned in stack.skips.get("attention", {}).values())


def count_kv_cache(layout: Layout, subnet: SubnetConfig, position: int, runs: Mapping[RunsOn, int]) -> int:
    """Number of elements in the key-value cache of a decoder layer for one sample, cross-attention included.

    A layer that skips its attention caches one channel, from which the number of tokens is read.
    """
    number, index = layout.stack_of(subnet.layers[position])
    if not layout.family.is_causal(number):
        return 0
    sizes = layout.blueprint(subnet).layers[position].sizes
    channels = [max(layout.head_dim * sizes[axis], 1) for axis in ("kv_heads", "heads")]
    source_tokens = runs["source"] if layout.family.stacks[number].source_modules else 0
    return 2 * (_cached_tokens(layout, index, runs["token"]) * channels[0] + source_tokens * channels[1])


def _cached_tokens(layout: Layout, layer: int, tokens: int) -> int:
    """Tokens in the cache of a layer; a sliding window caches one token less than its size."""
    layer_types, window = (getattr(layout.sizes, name, None) for name in ("layer_types", "sliding_window"))
    is_sliding = "sliding" in layer_types[layer] if layer_types else window is not None
    return min(tokens, window - 1) if is_sliding and window is not None else tokens


def axes_of(axis: Any) -> tuple[Any, ...]:
    """The axes in an entry of a family's table: one, or several that are concatenated."""
    return axis if isinstance(axis, tuple) else (axis,)
