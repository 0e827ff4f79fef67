"""Block-sparse attention: each token attends to a window, to a few global tokens and to a few random blocks.

The pattern is that of BigBird (Zaheer et al. 2020, arXiv 2007.14062). Without global tokens and random blocks it is
the sliding window of Longformer (Beltagy et al. 2020, arXiv 2004.05150). Keys are gathered per block of queries, so
time and memory are linear in the sequence length. The function is registered with transformers' attention interface.
Like `modeling_nas`, this file is copied into exports; it needs only torch and transformers.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import pad
from transformers import AttentionInterface

NAME = "nas_sparse"
"""Name of this attention in a module's config; ``nas_pattern`` in the config holds its graph."""


class Graph(NamedTuple):
    """The attention graph: which tokens attend to which.

    Attributes:
        window: Keys that a token attends to: in a decoder itself and those before it, in an encoder on each side.
        global_tokens: Number of tokens, from the first real one, that attend to all tokens and that all attend to.
        random_blocks: Number of random key blocks per block of queries, drawn from outside of its window.
        seed: Seed of the random blocks.
        block: Number of queries that share gathered keys.
    """

    window: int
    global_tokens: int
    random_blocks: int
    seed: int
    block: int


def sparse_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Computes the attention of one module, as transformers' attention interface calls it.

    Only padding is read from the mask, as in fused kernels: causality and the sliding window of a stock layer are
    arguments. A mask of anything else, such as of packed sequences, is refused. With a cache, the queries are the last
    tokens of the keys.

    Args:
        module: The attention module; its config holds the graph.
        query: (batch, heads, queries, channels).
        key: (batch, key and value heads, keys, channels).
        value: Of the shape of ``key``.
        attention_mask: (1 or batch, 1 or heads, queries, keys), true or 0 where a query may attend; None for all.
        dropout: Dropout probability of attention weights.
        scaling: Factor of the scores; by default 1 / sqrt(channels).
        is_causal: Whether tokens attend only to earlier ones; by default that of the module.
        sliding_window: Number of keys in the sliding window of a stock layer, including the token itself.
        kwargs: Ignored.

    Returns:
        (batch, queries, heads, channels), and None for the weights.

    Raises:
        ValueError: If the mask hides more than padding.
    """
    graph = Graph(*module.config.nas_pattern)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    window_radius = graph.window - 1 if causal else graph.window
    window_radius = window_radius if sliding_window is None else min(window_radius, sliding_window - 1)
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is None and 1 < queries < keys:  # an empty static cache
        key, value, keys = key[:, :, :queries], value[:, :, :queries], queries
    is_real, offset = read_padding(attention_mask, queries, keys)
    if attention_mask is not None and is_real is not None and not _is_traced(attention_mask):
        _require_padding_only(attention_mask, is_real, offset, causal, sliding_window)
    is_real = None if is_real is None else is_real.expand(query.shape[0], -1)
    options: dict[str, Any] = {"graph": graph, "window_radius": window_radius, "dropout": dropout, "scaling": scaling}
    if queries == 1 and causal:
        return _single_token_attention(query, key, value, is_real, offset, **options), None
    options["causal"] = causal
    if queries == keys:
        return sparse_attention(query, key, value, is_real, **options), None
    positions = torch.arange(queries, device=query.device) + offset
    scattered = query.new_zeros(*query.shape[:2], keys, query.shape[3]).index_copy(2, positions, query)
    return sparse_attention(scattered, key, value, is_real, **options).index_select(1, positions), None


def read_padding(mask: Tensor | None, queries: int, keys: int) -> tuple[Tensor | None, Tensor | int]:
    """Reads padding and the position of the queries from a mask.

    Every real token attends to itself, and a causal one to no later token.

    Returns:
        The mask of real tokens (1 or batch, keys), None if all are real; and the position of the first query in it.
    """
    if mask is None:
        return None, keys - queries
    visible = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] >= 0
    if queries == keys:
        return visible.diagonal(dim1=-2, dim2=-1), 0
    last = (visible * torch.arange(1, keys + 1, device=mask.device)).amax(-1)
    offset = (last - torch.arange(1, queries + 1, device=mask.device)).amax()
    return visible.any(-2), offset


def _is_traced(mask: Tensor) -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or mask.is_meta or type(mask) is not Tensor


def _require_padding_only(
    mask: Tensor, is_real: Tensor, offset: Tensor | int, causal: bool, sliding_window: int | None
) -> None:
    """Refuses a mask that hides more than padding, later tokens and those outside of a stock layer's window.

    A model passes one mask to all its layers, which is checked once.
    """
    rules = (causal, sliding_window)
    if rules in getattr(mask, "nas_checked", ()):
        return
    queries, keys = mask.shape[-2:]
    ahead = torch.arange(keys, device=mask.device) - (torch.arange(queries, device=mask.device)[:, None] + offset)
    expected = ahead <= 0 if causal else torch.ones_like(ahead, dtype=torch.bool)
    if sliding_window is not None:
        expected = expected & (ahead.abs() < sliding_window)
    rows = (torch.arange(queries, device=mask.device) + offset).clamp(max=keys - 1)
    visible = mask if mask.dtype == torch.bool else mask >= 0
    differs = (visible != (expected & is_real[:, None])[:, None]) & is_real[:, rows][:, None, :, None]
    if bool(differs.any()):
        raise ValueError(
            "sparse attention reads only padding from a mask, but this one hides other tokens too; packed sequences "
            "and custom masks need `full` attention in every layer."
        )
    mask.nas_checked = (*getattr(mask, "nas_checked", ()), rules)  # type: ignore[attr-defined]


def sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_real: Tensor | None,
    *,
    graph: Graph,
    window_radius: int,
    causal: bool,
    dropout: float = 0.0,
    scaling: float | None = None,
) -> Tensor:
    """Computes self-attention of a full sequence, one block of queries at a time.

    Args:
        query: (batch, heads, tokens, channels).
        key: (batch, key and value heads, tokens, channels).
        value: Of the shape of ``key``.
        is_real: (batch, tokens), false for padding; None without padding.
        graph: The attention graph.
        window_radius: Largest distance between a query and a key of its window.
        causal: Whether tokens attend only to earlier ones.
        dropout: Dropout probability of attention weights.
        scaling: Factor of the scores.

    Returns:
        (batch, tokens, heads, channels); padding attends to itself and to the real tokens in its window.
    """
    tokens, block = query.shape[2], graph.block
    start, length = _real_range(graph, is_real, tokens)
    all_positions = torch.arange((tokens + block - 1) // block * block, device=query.device)
    if start is None:
        aligned = pad(query, (0, 0, 0, all_positions.shape[0] - tokens))
    else:
        aligned = _gather_tokens(query, (start[:, None] + all_positions).clamp(max=tokens - 1)).transpose(1, 2)
    positions, valid, in_window = _block_keys(
        graph, all_positions[None, ::block], block, length, window_radius, causal
    )
    bias, index = _attention_bias(positions, valid, in_window, is_real, start, window_radius, key)
    only_windows = not (graph.global_tokens or graph.random_blocks)
    if only_windows and torch.onnx.is_in_onnx_export():
        keys, values = (_window_copies(states, block, window_radius, index.shape[-1]) for states in (key, value))
        out = _explicit_attention(aligned.unflatten(2, (-1, block)), keys, values, bias, scaling)
    elif not only_windows or torch.compiler.is_compiling():
        out = _blockwise_attention(
            aligned, _gather_keys(key, index), _gather_keys(value, index), bias, dropout, scaling
        )
    else:
        keys, values = (_window_views(states, block, window_radius, index.shape[-1]) for states in (key, value))
        out = _blockwise_attention(aligned, keys, values, bias, dropout, scaling)
    out = out[:, :tokens]
    if graph.global_tokens and not causal:
        global_queries = aligned[:, :, : min(graph.global_tokens, tokens)]
        padding_bias = None if is_real is None else _additive_mask(is_real[:, None, None], query.dtype)
        global_out = _grouped_attention(global_queries, key, value, padding_bias, dropout, scaling)
        out = torch.cat([global_out.transpose(1, 2), out[:, graph.global_tokens :]], 1)
    if start is not None:
        out = _gather_tokens(out.transpose(1, 2), (all_positions[:tokens] - start[:, None]).clamp(min=0))
    return out


def _single_token_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_real: Tensor | None,
    position: Tensor | int,
    *,
    graph: Graph,
    window_radius: int,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Computes the attention of one token to the keys of a cache: (batch, 1, heads, channels)."""
    start, length = _real_range(graph, is_real, key.shape[2])
    first = torch.zeros(1, 1, dtype=torch.long, device=query.device) + position
    first = first if start is None else first - start[:, None]
    bias, index = _attention_bias(
        *_block_keys(graph, first, 1, length, window_radius, True), is_real, start, window_radius, key
    )
    return _blockwise_attention(query, _gather_keys(key, index), _gather_keys(value, index), bias, dropout, scaling)


def _real_range(graph: Graph, is_real: Tensor | None, tokens: int) -> tuple[Tensor | None, Tensor | int]:
    """Returns the index of each sequence's first real token and the number of its tokens, (batch,).

    Graphs with only a window need neither; the index is then None.
    """
    if is_real is None or not (graph.global_tokens or graph.random_blocks):
        return None, tokens
    start = is_real.int().argmax(-1)
    return start, tokens - is_real.flip(-1).int().argmax(-1) - start


def _block_keys(
    graph: Graph, first: Tensor, n_queries: int, length: Tensor | int, window_radius: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the keys of blocks of queries: the window, random blocks and global tokens.

    Args:
        graph: The attention graph.
        first: (1 or batch, blocks): position of each block's first query, counted from the first real token.
        n_queries: Number of queries in a block.
        length: Number of real tokens of each sequence.
        window_radius: Largest distance between a query and a key of its window.
        causal: Whether tokens attend only to earlier ones.

    Returns:
        Positions of the keys (1 or batch, blocks, keys); a mask of the same shape, false for positions outside of the
        sequence and for duplicates; and a mask of the keys that each query attends to, (1 or batch, 1 or blocks,
        queries, keys).
    """
    device, queries = first.device, torch.arange(n_queries, device=first.device)
    window = torch.arange(-window_radius, n_queries if causal else n_queries + window_radius, device=device)
    distance = queries[:, None] - window
    in_window = (distance <= window_radius) & (distance >= (0 if causal else -window_radius))
    positions = first[..., None] + window
    limit = length[:, None, None] if isinstance(length, Tensor) else length
    if graph.random_blocks:
        blocks = _random_blocks(graph, first // graph.block, length, window_radius, causal)
        drawn = blocks[..., None] * graph.block + torch.arange(graph.block, device=device)
        positions = _broadcast_cat(positions, drawn.flatten(-2))
        in_window = _broadcast_cat(in_window, in_window.new_ones(1, drawn.shape[-1] * drawn.shape[-2]))
    valid = (positions >= graph.global_tokens) & (positions < limit)
    in_window = in_window[None, None]
    if graph.global_tokens:
        global_positions = torch.arange(graph.global_tokens, device=device)
        positions, valid = _broadcast_cat(positions, global_positions), _broadcast_cat(valid, global_positions < limit)
        in_window = _broadcast_cat(
            in_window,
            global_positions <= (first[..., None] + queries)[..., None]
            if causal
            else in_window.new_ones(len(global_positions)),
        )
    return positions, valid, in_window


def _random_blocks(graph: Graph, block: Tensor, length: Tensor | int, window_radius: int, causal: bool) -> Tensor:
    """Draws blocks of keys for blocks of queries: (1 or batch, blocks, draws), -1 if there are too few.

    The blocks outside of the window are split into as many equal ranges as there are draws; each draw takes one range.
    """
    draws = torch.arange(graph.random_blocks, device=block.device)
    window_blocks = -(-window_radius // graph.block)
    block = block[..., None]
    before = (block - window_blocks).clamp(min=0)
    after = torch.zeros_like(before)
    if not causal:
        n_blocks = (length + graph.block - 1) // graph.block
        after = (n_blocks[:, None, None] if isinstance(n_blocks, Tensor) else n_blocks) - 1 - block - window_blocks
    outside = before + after.clamp(min=0)
    low, high = draws * outside // graph.random_blocks, (draws + 1) * outside // graph.random_blocks
    drawn = low + _hash(block, draws, graph.seed) % (high - low).clamp(min=1)
    blocks = torch.where(drawn < before, drawn, drawn - before + block + window_blocks + 1)
    return torch.where(high > low, blocks, -1)


def _hash(block: Tensor, draw: Tensor, seed: int) -> Tensor:
    """Returns pseudo-random integers below 2**31, equal on all devices: a mixed linear congruential generator."""
    state = block * 7919 + draw * 104729 + seed * 1299709 + 1
    for _ in range(3):
        state = (state * 1103515245 + 12345) % 2**31
        state = state ^ (state // 2**15)  # a right shift; not every runtime has one
    return state


def _attention_bias(
    positions: Tensor,
    valid: Tensor,
    in_window: Tensor,
    is_real: Tensor | None,
    start: Tensor | None,
    window_radius: int,
    key: Tensor,
) -> tuple[Tensor, Tensor]:
    """Returns the bias of the scores of blocks of queries, (batch, blocks, queries, keys), and the index of each key.

    The first three arguments come from `_block_keys`. Padding attends to itself, so that every query has a key.
    """
    batch, _, tokens, _ = key.shape
    index = positions if start is None else positions + start[:, None, None]
    index = index.clamp(0, tokens - 1).expand(batch, -1, -1)
    valid = valid[:, :, None]
    if is_real is not None:
        queries, keys = (torch.arange(n, device=key.device) for n in in_window.shape[-2:])
        is_self = keys == queries[:, None] + window_radius
        valid = valid & (is_real.gather(1, index.flatten(1)).view(index.shape)[:, :, None] | is_self)
    return _additive_mask(in_window & valid, key.dtype).expand(batch, -1, -1, -1), index


def _gather_keys(states: Tensor, index: Tensor) -> Tensor:
    """Gathers keys or values of each block by index (batch, blocks, n): (batch x blocks, heads, n, channels)."""
    rows = _gather_tokens(states, index.flatten(1))
    return rows.unflatten(1, index.shape[1:]).flatten(0, 1).transpose(1, 2)


def _window_views(states: Tensor, block: int, window_radius: int, keys: int) -> Tensor:
    """Gathers keys or values of graphs with only a window, without a copy, as overlapping views of all sequences.

    At the ends of a sequence the views hold tokens of neighbouring sequences; these are masked as invalid.
    """
    rows = pad(states.transpose(1, 2), (0, 0, 0, 0, 0, -states.shape[2] % block)).flatten(0, 1)
    rows = pad(rows, (0, 0, 0, 0, window_radius, keys - window_radius - block))
    return rows.unfold(0, keys, block).transpose(2, 3)


def _window_copies(states: Tensor, block: int, window_radius: int, keys: int) -> Tensor:
    """Copies keys or values of windows, for ONNX, which has no views: (batch, heads, blocks, keys, channels).

    It copies complete blocks in the layout they have, so that no token is gathered alone and nothing is transposed.
    """
    tokens, blocks_per_window = states.shape[2], -(-keys // block)
    blocks = (tokens + block - 1) // block
    after = (blocks + blocks_per_window - 1) * block - window_radius - tokens
    rows = pad(states, (0, 0, window_radius, after)).unflatten(2, (-1, block))
    first, piece = torch.arange(blocks, device=rows.device), torch.arange(blocks_per_window, device=rows.device)
    copies = (
        rows.index_select(2, (first[:, None] + piece).flatten()).unflatten(2, (-1, blocks_per_window)).flatten(3, 4)
    )
    return copies if keys == blocks_per_window * block else copies[:, :, :, :keys]


def _explicit_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float | None) -> Tensor:
    """Computes attention of blocks of queries (batch, heads, blocks, queries, channels) as explicit products.

    ONNX Runtime fuses these products with the transposition of the keys; a traced SDPA would copy the keys first.
    """
    scaled_query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scaled_query = scaled_query.unflatten(1, (key.shape[1], -1))
    weights = (scaled_query @ key[:, :, None].transpose(-1, -2) + bias[:, None, None]).softmax(-1)
    return (weights @ value[:, :, None]).flatten(1, 2).flatten(2, 3).transpose(1, 2)


def _blockwise_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """Computes attention of blocks of queries (batch, heads, blocks x queries, channels), each to its own keys."""
    batch, n_queries = query.shape[0], bias.shape[2]
    query_blocks = query.unflatten(2, (-1, n_queries)).transpose(1, 2).flatten(0, 1)
    out = _grouped_attention(query_blocks, key, value, bias.flatten(0, 1)[:, None], dropout, scaling)
    return out.unflatten(0, (batch, -1)).transpose(2, 3).flatten(1, 2)


def _grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    """Computes dense grouped-query attention; the result has the shape of ``query``.

    Heads that share a key and value head become additional queries, so that no key is copied.
    """
    shared = query.shape[1] // key.shape[1]
    grouped_query = query.reshape(query.shape[0], key.shape[1], shared * query.shape[2], query.shape[3])
    if bias is not None and bias.shape[2] > 1 and shared > 1:
        bias = bias.repeat(1, 1, shared, 1)
    out = F.scaled_dot_product_attention(
        grouped_query, key, value, bias, dropout, scale=scaling
    )  # exporters patch it there
    return out.reshape(query.shape)


def _additive_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns 0 for visible keys and the lowest finite number for others; finite, so that no key gives no NaN."""
    lowest = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=visible.device)
    return torch.where(visible, torch.zeros_like(lowest), lowest)


def _gather_tokens(states: Tensor, index: Tensor) -> Tensor:
    """Gathers tokens of (batch, heads, tokens, channels) by index (1 or batch, n): (batch, n, heads, channels)."""
    batch, heads, tokens, channels = states.shape
    flat = (index + torch.arange(batch, device=index.device)[:, None] * tokens).flatten()
    return states.transpose(1, 2).reshape(-1, heads, channels).index_select(0, flat).unflatten(0, (batch, -1))


def _broadcast_cat(left: Tensor, right: Tensor) -> Tensor:
    """Concatenates tensors along the last dimension after broadcasting the others."""
    shape = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    return torch.cat([left.expand(*shape, -1), right.expand(*shape, -1)], -1)


AttentionInterface.register(NAME, sparse_attention_forward)
