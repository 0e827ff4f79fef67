"""Sparse attention in blocks: each token attends to a window, to a few global tokens and to a few random blocks.

The graph is that of BigBird (Zaheer et al. 2020, arXiv 2007.14062); without global tokens and random blocks it is the
sliding window of Longformer (Beltagy et al. 2020, arXiv 2004.05150). Keys are gathered for one block of queries at a
time, so that time and memory grow linearly with the sequence. Like the modelling file, which names it to transformers'
attention interface, this file travels with exports and needs torch and transformers only.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import pad
from transformers import AttentionInterface

NAME = "nas_sparse"
"""What a module's config calls this attention; its graph is the config's ``nas_pattern``."""


class Graph(NamedTuple):
    """Who attends to whom.

    Attributes:
        window: Of a decoder, how many keys a token attends to, its own and those before it; of an encoder, how many to
            each side.
        global_tokens: How many tokens, from the first real one, attend to all and are attended by all.
        random_blocks: Blocks of keys that each block of queries attends to, drawn from outside its window.
        seed: Of the draw.
        block: Queries that share a gathered set of keys.
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
    """Attention of one module, as transformers' attention interface calls it.

    Of the mask, padding is read, as fused kernels do: whether it is causal, and a window that the stock layer has of
    its own, are arguments. Of keys in a cache, the queries are the last.

    Args:
        module: The attention module; its config holds the graph.
        query: (batch, heads, queries, channels).
        key: (batch, key and value heads, keys, channels).
        value: Of the shape of ``key``.
        attention_mask: (1 or batch, 1 or heads, queries, keys), true or 0 where a query may attend; None for all.
        dropout: Probability to drop a weight.
        scaling: Factor of the scores; by default one over the root of the channels.
        is_causal: Whether no token attends to a later one; by default what the module says.
        sliding_window: Keys in reach of a stock layer, with its own one.
        kwargs: Ignored.

    Returns:
        (batch, queries, heads, channels), and no weights.
    """
    graph = Graph(*module.config.nas_pattern)
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    window_radius = graph.window - 1 if causal else graph.window
    window_radius = window_radius if sliding_window is None else min(window_radius, sliding_window - 1)
    queries, keys = query.shape[2], key.shape[2]
    if attention_mask is None and 1 < queries < keys:  # a static cache that is empty so far
        key, value, keys = key[:, :, :queries], value[:, :, :queries], queries
    is_real, offset = read_padding(attention_mask, queries, keys)
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
    """Which keys are real tokens, (1 or batch, keys) or None for all, and the position of the first query among them.

    A real token attends to itself whatever else it may attend to, and a causal one to none after it.
    """
    if mask is None:
        return None, keys - queries
    visible = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] >= 0
    if queries == keys:
        return visible.diagonal(dim1=-2, dim2=-1), 0
    last = (visible * torch.arange(1, keys + 1, device=mask.device)).amax(-1)
    offset = (last - torch.arange(1, queries + 1, device=mask.device)).amax()
    return visible.any(-2), offset


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
    """Attention of a whole sequence to itself, block by block of queries.

    Args:
        query: (batch, heads, tokens, channels).
        key: (batch, key and value heads, tokens, channels).
        value: Of the shape of ``key``.
        is_real: (batch, tokens), false for padding; None where there is none.
        graph: Who attends to whom.
        window_radius: How far a token of the window may be away.
        causal: Whether no token attends to a later one.
        dropout: Probability to drop a weight.
        scaling: Factor of the scores.

    Returns:
        (batch, tokens, heads, channels); padding attends to itself and to real tokens in its reach.
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
    """Attention of one token at a position among the keys of a cache: (batch, 1, heads, channels)."""
    start, length = _real_range(graph, is_real, key.shape[2])
    first = torch.zeros(1, 1, dtype=torch.long, device=query.device) + position
    first = first if start is None else first - start[:, None]
    bias, index = _attention_bias(
        *_block_keys(graph, first, 1, length, window_radius, True), is_real, start, window_radius, key
    )
    return _blockwise_attention(query, _gather_keys(key, index), _gather_keys(value, index), bias, dropout, scaling)


def _real_range(graph: Graph, is_real: Tensor | None, tokens: int) -> tuple[Tensor | None, Tensor | int]:
    """Index of each sequence's first real token and how many follow, (batch,); a mere window needs neither."""
    if is_real is None or not (graph.global_tokens or graph.random_blocks):
        return None, tokens
    start = is_real.int().argmax(-1)
    return start, tokens - is_real.flip(-1).int().argmax(-1) - start


def _block_keys(
    graph: Graph, first: Tensor, n_queries: int, length: Tensor | int, window_radius: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys gathered for blocks of queries: those of the window, of random blocks, and global tokens.

    Args:
        graph: Who attends to whom.
        first: (1 or batch, blocks): position of each block's first query, from the first real token.
        n_queries: Queries of a block.
        length: Real tokens of each sequence.
        window_radius: How far a token of the window may be away.
        causal: Whether no token attends to a later one.

    Returns:
        Positions (1 or batch, blocks, keys); of the same shape, which of them are there and not listed twice; and
        which of them each query of a block may attend to, (1 or batch, 1 or blocks, queries, keys).
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
    """Blocks of keys drawn for blocks of queries: (1 or batch, blocks, draws), -1 where there are too few.

    What lies outside the window is cut into as many equal parts as there are draws, and one block is drawn from each.
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
    """A number below 2**31 that looks random, the same on every device: a linear congruential generator, mixed."""
    state = block * 7919 + draw * 104729 + seed * 1299709 + 1
    for _ in range(3):
        state = (state * 1103515245 + 12345) % 2**31
        state = state ^ (state // 2**15)  # a shift, which not every runtime has
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
    """What is added to the scores of blocks of queries, (batch, blocks, queries, keys), and the index of each key.

    The first three are what `_block_keys` returns. Padding attends to itself, so that no query is without a key.
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
    """Keys or values of each block by their index, (batch, blocks, n): (batch x blocks, heads, n, channels)."""
    rows = _gather_tokens(states, index.flatten(1))
    return rows.unflatten(1, index.shape[1:]).flatten(0, 1).transpose(1, 2)


def _window_views(states: Tensor, block: int, window_radius: int, keys: int) -> Tensor:
    """The same of blocks that see a window only, without a copy: overlapping views of all sequences in a row.

    At the ends of a sequence they hold tokens of its neighbours, which are not listed.
    """
    rows = pad(states.transpose(1, 2), (0, 0, 0, 0, 0, -states.shape[2] % block)).flatten(0, 1)
    rows = pad(rows, (0, 0, 0, 0, window_radius, keys - window_radius - block))
    return rows.unfold(0, keys, block).transpose(2, 3)


def _window_copies(states: Tensor, block: int, window_radius: int, keys: int) -> Tensor:
    """The same for an ONNX graph, which has no views: (batch, heads, blocks, keys, channels).

    Whole blocks are copied, heads first as they are, so that nothing is gathered token by token or transposed.
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
    """Attention of blocks of queries (batch, heads, blocks, queries, channels), written out.

    ONNX Runtime fuses these products with the transposition of the keys, which a traced SDPA copies first.
    """
    scaled_query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scaled_query = scaled_query.unflatten(1, (key.shape[1], -1))
    weights = (scaled_query @ key[:, :, None].transpose(-1, -2) + bias[:, None, None]).softmax(-1)
    return (weights @ value[:, :, None]).flatten(1, 2).flatten(2, 3).transpose(1, 2)


def _blockwise_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float, scaling: float | None
) -> Tensor:
    """Attention of blocks of queries (batch, heads, blocks x queries, channels), each to keys of its own."""
    batch, n_queries = query.shape[0], bias.shape[2]
    query_blocks = query.unflatten(2, (-1, n_queries)).transpose(1, 2).flatten(0, 1)
    out = _grouped_attention(query_blocks, key, value, bias.flatten(0, 1)[:, None], dropout, scaling)
    return out.unflatten(0, (batch, -1)).transpose(2, 3).flatten(1, 2)


def _grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float, scaling: float | None
) -> Tensor:
    """Dense attention where several heads may share a key and value head: of the shape of ``query``.

    Heads that share one ask together, as more queries, so that no key is copied for them.
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
    """What is added to scores: 0, or the lowest number: a finite one, so that a query without a key gives no NaN."""
    lowest = torch.tensor(torch.finfo(dtype).min, dtype=dtype, device=visible.device)
    return torch.where(visible, torch.zeros_like(lowest), lowest)


def _gather_tokens(states: Tensor, index: Tensor) -> Tensor:
    """Tokens of (batch, heads, tokens, channels) by their index (1 or batch, n): (batch, n, heads, channels)."""
    batch, heads, tokens, channels = states.shape
    flat = (index + torch.arange(batch, device=index.device)[:, None] * tokens).flatten()
    return states.transpose(1, 2).reshape(-1, heads, channels).index_select(0, flat).unflatten(0, (batch, -1))


def _broadcast_cat(left: Tensor, right: Tensor) -> Tensor:
    """Joins along the last dimension what may be broadcast along the others."""
    shape = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
    return torch.cat([left.expand(*shape, -1), right.expand(*shape, -1)], -1)


AttentionInterface.register(NAME, sparse_attention_forward)
