"""Elastic modules: shared weights get the gradients of the stock modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nas.modeling.elastic import make_elastic

IDS = torch.tensor([[3, 0, 5, 3], [7, 1, 0, 3]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize("columns", [slice(None), slice(0, 4), torch.tensor([1, 4, 5])])
def test_an_embedding_gets_the_gradient_of_its_stock_module(
    columns: slice | torch.Tensor, padding_idx: int | None, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    stock = nn.Embedding(9, 6, padding_idx=padding_idx, dtype=dtype)
    elastic = nn.Embedding(9, 6, padding_idx=padding_idx, dtype=dtype)
    elastic.load_state_dict(stock.state_dict())
    table = elastic.weight
    make_elastic(elastic).__dict__["active_entries"] = {"weight": (slice(None), columns)}
    for _ in range(2):  # gradients add up
        expected, outputs = stock(IDS)[..., columns], elastic(IDS)
        assert torch.equal(outputs, expected)
        weights = torch.arange(outputs.numel(), dtype=dtype).view_as(outputs)
        (expected * weights).sum().backward()
        (outputs * weights).sum().backward()
    assert stock.weight.grad is not None and table.grad is not None
    torch.testing.assert_close(table.grad, stock.weight.grad, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.5)
    assert not table.grad[8].any() and (padding_idx is None or not table.grad[0].any())


def test_a_frozen_embedding_has_no_gradient() -> None:
    frozen = make_elastic(nn.Embedding(9, 6).requires_grad_(False))
    assert not frozen(IDS).requires_grad
