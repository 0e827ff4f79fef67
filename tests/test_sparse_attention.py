"""Block-sparse attention equals dense attention with the mask of its graph, and its cost is linear."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

from nas.modeling.sparse_attention import Graph, sparse_attention_forward

GRAPHS = {
    "local": Graph(8, 0, 0, 0, 4),
    "local-uneven": Graph(5, 0, 0, 0, 3),
    "global": Graph(4, 3, 0, 0, 4),
    "random": Graph(3, 0, 2, 1, 2),
    "bigbird": Graph(4, 1, 2, 3, 2),
}
PADDINGS = ("none", "right", "left")


def module(graph: Graph, causal: bool) -> Any:
    """The attributes of an attention module that the interface reads."""
    return SimpleNamespace(config=SimpleNamespace(nas_pattern=list(graph)), is_causal=causal)


def real_tokens(tokens: int, padding: str) -> Tensor:
    """Padding mask of two sequences, (2, tokens): one without padding, one of which a third is padding."""
    real, third = torch.ones(2, tokens, dtype=torch.bool), tokens // 3
    if padding == "right":
        real[1, tokens - third :] = False
    if padding == "left":
        real[1, :third] = False
    return real


def edges(graph: Graph, tokens: int, causal: bool) -> Tensor:
    """Which tokens attend to which, (tokens, tokens), without random blocks."""
    q, k = torch.arange(tokens)[:, None], torch.arange(tokens)
    if causal:
        return (k <= q) & ((q - k < graph.window) | (k < graph.global_tokens))
    return ((q - k).abs() <= graph.window) | (k < graph.global_tokens) | (q < graph.global_tokens)


def random_edges(graph: Graph, tokens: int, causal: bool) -> Tensor:
    """Which tokens attend to which, (tokens, tokens), from the gradients of each token's output."""
    query, key = torch.zeros(2, 1, 1, tokens, 1)
    value = torch.zeros(1, 1, tokens, 1, requires_grad=True)
    out, _ = sparse_attention_forward(module(graph, causal), query, key, value, None)
    rows = [torch.autograd.grad(out[0, i, 0, 0], value, retain_graph=True)[0].flatten() for i in range(tokens)]
    return torch.stack(rows) > 0


def dense_mask(graph: Graph, real: Tensor, causal: bool) -> Tensor:
    """(batch, 1, tokens, tokens): the graph over the real tokens of each sequence; padding attends to all."""
    masks = []
    for row in real:
        mask, positions = torch.ones(len(row), len(row), dtype=torch.bool), row.nonzero().flatten()
        edges_of = edges if not graph.random_blocks else random_edges
        mask[positions] = False
        mask[positions[:, None], positions] = edges_of(graph, len(positions), causal)
        masks.append(mask)
    return torch.stack(masks)[:, None]


def states(tokens: int, heads: int = 4, groups: int = 4, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries, keys and values of two sequences."""
    return [torch.randn(2, h, tokens, 8, dtype=dtype, requires_grad=True) for h in (heads, groups, groups)]


def reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Dense attention under a mask, (batch, tokens, heads, channels)."""
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    return scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)


def stock_mask(real: Tensor, causal: bool, tokens: int) -> Tensor | None:
    """The mask that transformers gives to dense attention, None where nothing is padded."""
    if real.all():
        return None
    mask = real[:, None, None].expand(-1, 1, tokens, -1)
    return mask & torch.ones(tokens, tokens, dtype=torch.bool).tril() if causal else mask


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("tokens", [1, 7, 24, 37])
def test_blocks_equal_dense_attention_forward_and_backward(tokens: int, name: str, causal: bool, padding: str) -> None:
    graph, real = GRAPHS[name], real_tokens(tokens, padding)
    mask = dense_mask(graph, real, causal)
    for groups in (4, 2):
        inputs = states(tokens, groups=groups)
        expected = reference(*inputs, mask)
        actual, _ = sparse_attention_forward(module(graph, causal), *inputs, stock_mask(real, causal, tokens))
        weights = torch.randn_like(expected) * real[..., None, None]
        assert torch.allclose(actual * real[..., None, None], expected * real[..., None, None], atol=1e-5)
        gradients = zip(*(torch.autograd.grad((o * weights).sum(), inputs) for o in (expected, actual)), strict=True)
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in gradients)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_random_blocks_are_drawn_evenly_outside_the_window(causal: bool) -> None:
    tokens, graph = 64, Graph(4, 0, 2, 0, 2)
    window = edges(graph, tokens, causal)
    attended = random_edges(graph, tokens, causal)
    assert (attended & window == window).all() and not (causal and attended.triu(1).any())
    blocks = (attended & ~window).view(tokens // 2, 2, tokens // 2, 2).sum((1, 3))
    assert set(blocks.unique().tolist()) <= {0, 1, 2, 3, 4} and (blocks == 4).sum() > tokens // 2
    other = random_edges(graph._replace(seed=1), tokens, causal)
    assert not torch.equal(other, attended) and torch.equal(random_edges(graph, tokens, causal), attended)


def test_masks_of_numbers_are_read_as_well() -> None:
    real, inputs = real_tokens(24, "right"), states(24)
    mask = stock_mask(real, True, 24)
    assert mask is not None
    numbers = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    result = [sparse_attention_forward(module(GRAPHS["bigbird"], True), *inputs, m)[0] for m in (mask, numbers)]
    assert torch.equal(*result)


def test_a_window_of_the_stock_layer_is_kept() -> None:
    inputs, narrow = states(24), Graph(3, 0, 0, 0, 4)
    result, _ = sparse_attention_forward(module(GRAPHS["local"], True), *inputs, None, sliding_window=3)
    assert torch.allclose(result, reference(*inputs, edges(narrow, 24, True)), atol=1e-5)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", GRAPHS)
def test_tokens_with_a_cache_equal_the_full_sequence(name: str, padding: str) -> None:
    """One token and several at once; a cache that grows, and one of fixed length with room at its end."""
    graph, tokens, room = GRAPHS[name], 24, 6
    real, (query, key, value) = real_tokens(tokens, padding), states(tokens)
    expected, _ = sparse_attention_forward(module(graph, True), query, key, value, stock_mask(real, True, tokens))
    causal = real[:, None, None] & torch.ones(tokens, tokens, dtype=torch.bool).tril()
    for first, last in ((23, 24), (10, 11), (9, 16), (0, 8)):
        for spare in (0, room):
            length = last + spare
            mask = nn.functional.pad(causal[:, :, first:last, :last], (0, spare))
            keys = (nn.functional.pad(x[:, :, :last], (0, 0, 0, spare), value=9.0) for x in (key, value))
            actual, _ = sparse_attention_forward(module(graph, True), query[:, :, first:last], *keys, mask)
            there = real[:, first:last, None, None]
            assert torch.allclose(actual * there, expected[:, first:last] * there, atol=1e-5), (first, last, length)


def test_one_token_under_a_window_reads_its_last_keys_only() -> None:
    query, key, value = states(24)
    rest = [x[:, :, -8:] for x in (key, value)]
    result, _ = sparse_attention_forward(module(GRAPHS["local"], True), query[:, :, -1:], key, value, None)
    assert torch.allclose(result, scaled_dot_product_attention(query[:, :, -1:], *rest).transpose(1, 2), atol=1e-6)


@pytest.mark.parametrize("name", GRAPHS)
def test_half_precision_is_as_accurate_as_dense_attention(name: str) -> None:
    graph, tokens = GRAPHS[name], 37
    inputs = states(tokens, dtype=torch.bfloat16)
    mask = dense_mask(graph, real_tokens(tokens, "none"), False)
    result, _ = sparse_attention_forward(module(graph, False), *inputs, None)
    assert result.dtype == torch.bfloat16
    assert torch.allclose(result.float(), reference(*(x.float() for x in inputs), mask), atol=0.03)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("name", GRAPHS)
def test_work_grows_linearly_with_the_sequence(name: str, causal: bool) -> None:
    def work(tokens: int) -> int:
        inputs = [x.detach() for x in states(tokens)]
        with (
            FlopCounterMode(display=False) as flops,
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            sparse_attention_forward(module(GRAPHS[name], causal), *inputs, None)
        return flops.get_total_flops()

    assert work(192) == 2 * work(96) > 0


class Attention(nn.Module):
    """A module of nothing but sparse attention, to be exported."""

    def __init__(self, graph: Graph, causal: bool) -> None:
        super().__init__()
        self.inner = module(graph, causal)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, real: Tensor) -> Tensor:
        mask = real[:, None, None].expand(-1, 1, query.shape[2], -1)
        mask = mask & mask.new_ones(mask.shape[-2:]).tril() if self.inner.is_causal else mask
        return sparse_attention_forward(self.inner, query, key, value, mask)[0]


@pytest.fixture
def onnxruntime() -> Iterator[Any]:
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    yield pytest.importorskip("onnxruntime", reason="needs onnxruntime")


@pytest.mark.parametrize(
    ("name", "causal"),
    [
        pytest.param("local", False, marks=pytest.mark.slow),
        ("local-uneven", True),
        pytest.param("bigbird", False, marks=pytest.mark.slow),
    ],
)
def test_onnx_runtime_computes_the_same_at_any_length(
    name: str, causal: bool, onnxruntime: Any, tmp_path: Any
) -> None:
    inputs = [x.detach() for x in states(24, groups=2)]
    model, batch, tokens = (
        Attention(GRAPHS[name], causal).eval(),
        torch.export.Dim("batch"),
        torch.export.Dim("tokens"),
    )
    shapes = (*({0: batch, 2: tokens},) * 3, {0: batch, 1: tokens})
    given = (*inputs, real_tokens(24, "right"))
    program = torch.onnx.export(model, given, dynamo=True, dynamic_shapes=shapes, input_names=[*"qkvr"], verbose=False)
    program.save(tmp_path / "model.onnx")
    gathered = [node.outputs[0] for node in program.model.graph if node.op_type == "Gather"]
    of_states = [result.shape.rank() for result in gathered if result.shape and result.dtype.name == "FLOAT"]
    assert set(of_states) == ({3} if name == "bigbird" else {5})  # single tokens, or blocks
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for length in (24, 37):
        real = real_tokens(length, "right")
        arrays = [*(x.detach() for x in states(length, groups=2)), real]
        (result,) = session.run(None, {n: x.numpy() for n, x in zip("qkvr", arrays, strict=True)})
        there = real[..., None, None]
        assert torch.allclose(torch.from_numpy(result) * there, model(*arrays) * there, atol=1e-5)
