"""Calibration: collects second moments of the inputs of linear layers and of embeddings on training data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from nas.modeling.elastic import linear_weight
from nas.supernets.compensation import is_compensated, moment_name
from nas.supernets.experts import expert_activations
from nas.supernets.low_rank import CalibrationStatistics, SymmetricMatrices, embedding_moment, upper_triangle
from nas.tasks.batches import model_inputs
from nas.tasks.evaluation import on_model

if TYPE_CHECKING:
    from nas.supernets.supernet import Supernet

Batch = Mapping[str, torch.Tensor]

PANEL = 512
"""Rows of a moment that are computed at once."""


def calibrate(
    supernet: Supernet, batches: Sequence[Batch], *, ranks: bool = True, compensates: bool = False
) -> CalibrationStatistics:
    """Runs the parent on batches and averages the second moments of its linear layers' inputs, without padding.

    Args:
        supernet: The parent is active afterwards.
        batches: Model inputs, a few hundred examples of the training data.
        ranks: Whether low-rank bases are computed from them; otherwise only layers that compensate are looked at.
        compensates: Whether what remains of a narrower layer takes over what is left out.

    Returns:
        The moments from which low-rank bases, and what slices compensate, are computed.
    """
    supernet.activate(supernet.parent)
    layout, model = supernet.layout, supernet.model
    linear = {n: m for n, m in supernet.linear_layers.items() if ranks or is_compensated(layout, n)}
    totals: dict[str, _Moment] = {}
    masks: dict[str, torch.Tensor | None] = {}

    def accumulator(name: str) -> Callable[..., None]:
        runs_on = layout.runs_on(layout.locate(name))

        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = _unpadded_rows(inputs[0].detach(), masks.get(runs_on))
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            totals.setdefault(name, _Moment(rows)).add(rows)

        return add

    def accumulator_of_experts(name: str) -> Callable[..., None]:
        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            for expert, inner, weights in expert_activations(module, inputs, masks["token"]):
                rows = (inner * weights[:, None]).to(torch.promote_types(inner.dtype, torch.float32))
                totals.setdefault(moment_name(name, expert), _Moment(rows)).add(rows)

        return add

    hooks = {module: accumulator(name) for name, module in linear.items()}
    hooks |= {module: accumulator_of_experts(name) for name, module in supernet.expert_layers.items() if compensates}
    table, looked_up = supernet.embedding if ranks else None, list[torch.Tensor]()
    if table is not None:
        hooks[table] = lambda module, inputs: looked_up.append(
            _unpadded_rows(inputs[0][..., None], masks["token"])[:, 0].cpu()
        )
    with _forward_pre_hooks(hooks), torch.inference_mode():
        was_training = model.training
        model.eval()
        for batch in batches:
            inputs = on_model(batch, model)
            masks |= _token_masks(inputs, len(layout.depths))
            model(**model_inputs(inputs))
        model.train(was_training)
    names = [*(name for name in linear if name in totals), *(name for name in totals if name not in linear)]
    moments = SymmetricMatrices.of((name, totals.pop(name).triangle()) for name in names)
    weights = {n: linear_weight(linear[n]).detach().cpu().clone() for n in moments if n in linear} if ranks else {}
    embedding = None if table is None else embedding_moment(table.weight, torch.cat(looked_up))
    return CalibrationStatistics(moments, weights, embedding, compensates)


class _Moment:
    """The mean of x x^T over inputs x that come in batches, summed on the CPU in half of the memory of the matrix.

    Args:
        like: Inputs (n, channels).
    """

    def __init__(self, like: torch.Tensor) -> None:
        self._starts, self._count = range(0, like.shape[1], PANEL), 0
        self._panels = [
            torch.zeros(len(part), like.shape[1] - start, dtype=like.dtype)
            for start, part in zip(self._starts, torch.arange(like.shape[1]).split(PANEL), strict=True)
        ]

    def add(self, rows: torch.Tensor) -> None:
        """Adds inputs (n, channels)."""
        self._count += len(rows)
        for start, panel in zip(self._starts, self._panels, strict=True):
            panel += (rows[:, start : start + PANEL].T @ rows[:, start:]).cpu()

    def triangle(self) -> torch.Tensor:
        """The upper triangle of the mean, row by row."""
        return upper_triangle(row for panel in self._panels for row in panel).div_(self._count)


def _unpadded_rows(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Returns the rows (n, channels) of real tokens; all rows if the mask is of another shape."""
    return x[mask] if mask is not None and mask.shape == x.shape[:-1] else x.reshape(-1, x.shape[-1])


def _token_masks(inputs: Mapping[str, torch.Tensor], stacks: int) -> dict[str, torch.Tensor | None]:
    """Returns the masks of real tokens by the sequence that a module runs on."""
    token = inputs.get("attention_mask" if stacks == 1 else "decoder_attention_mask")
    source = inputs.get("attention_mask")
    masks = {"token": token, "source": source, "text": source}
    return {name: None if mask is None else mask.bool() for name, mask in masks.items()}


@contextmanager
def _forward_pre_hooks(hooks: Mapping[torch.nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Registers forward pre-hooks, and removes them on exit."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
