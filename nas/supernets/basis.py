"""Bases of the rank dimension: which directions of a linear layer's outputs real inputs excite most.

With the leading eigenvectors U_r of the second moment of a layer's outputs, U_r U_r^T W is the matrix of rank r that
changes these outputs least. It is what a singular value decomposition of the weight finds once the inputs are whitened
(Wang et al. 2024, SVD-LLM, arXiv 2403.07378); the ranks are nested, and gradients reach W. A table of embeddings is
such a layer too: its inputs are tokens, one in a row, and how often each occurs says what matters.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nas.supernets.elastic import matrix

if TYPE_CHECKING:
    from nas.supernets.supernet import Supernet

FILE = "activations.safetensors"
UNSEEN = 0.1
"""Times that every token is taken to have occurred besides: calibration sees a part of a vocabulary only."""
AT_ONCE = 8192
"""Rows of a table that are made float64 together."""
Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Activations:
    """What linear layers are given, and the weights they have meanwhile.

    Attributes:
        moments: Name of a weight -> mean of x x^T over its inputs x (inputs, inputs), float64.
        weights: Name of a weight -> a copy of it (outputs, inputs).
        embedding: Mean of e e^T over the embeddings e of tokens (channels, channels), float64; None where the table
            stays whole.
    """

    moments: Mapping[str, torch.Tensor]
    weights: Mapping[str, torch.Tensor]
    embedding: torch.Tensor | None = None

    def save(self, folder: Path) -> None:
        """Writes `FILE`: of each moment, which is symmetric, one half in float32; equal ones once.

        Layers that read the same inputs, as queries, keys and values do, have equal moments.
        """
        from safetensors.torch import save_file

        halves: dict[str, torch.Tensor] = {}
        same: dict[str, str] = {}
        for name, moment in self.moments.items():
            half = _half(moment)
            first = next((other for other in list(halves)[-2:] if torch.equal(halves[other], half)), name)
            halves[first], same[name] = half, first
        named = {f"halves:{name}": half for name, half in halves.items()}
        named |= {f"weights:{name}": weight.contiguous() for name, weight in self.weights.items()}
        if self.embedding is not None:
            named["embedding:"] = _half(self.embedding)
        save_file(named, folder / FILE, metadata={"moments": json.dumps(same)})

    @classmethod
    def load(cls, folder: Path) -> Activations | None:
        """Reads back what `save` wrote; None where there is nothing."""
        from safetensors import safe_open

        if not (folder / FILE).exists():
            return None
        found: dict[str, dict[str, torch.Tensor]] = {"moments": {}, "halves": {}, "weights": {}, "embedding": {}}
        with safe_open(folder / FILE, "pt") as stored:
            same = json.loads((stored.metadata() or {}).get("moments", "{}"))
            for name in stored.keys():  # noqa: SIM118
                kind, _, weight = name.partition(":")
                found[kind][weight] = stored.get_tensor(name)
        wholes = {name: _whole(half) for name, half in found["halves"].items()}
        moments = found["moments"] | {name: wholes[first] for name, first in same.items()}
        return cls(moments, found["weights"], next((_whole(half) for half in found["embedding"].values()), None))


def _half(moment: torch.Tensor) -> torch.Tensor:
    """The upper triangle of a symmetric matrix, row by row, in float32."""
    return moment[tuple(torch.triu_indices(*moment.shape))].float()


def _whole(half: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix, float64, of which `_half` made this."""
    size = (math.isqrt(8 * len(half) + 1) - 1) // 2
    found = torch.zeros(size, size, dtype=torch.float64)
    rows, columns = torch.triu_indices(size, size)
    found[rows, columns] = found[columns, rows] = half.double()
    return found


def calibrate(supernet: Supernet, batches: Sequence[Batch]) -> Activations:
    """Runs the whole parent over batches and sums up what its modules are given; padding is left out.

    Args:
        supernet: Its full model is active afterwards.
        batches: Model inputs, a few hundred examples of the training data.
    """
    supernet.activate(supernet.parent)
    layout, model = supernet.layout, supernet.model
    linear = supernet.linear
    totals: dict[str, Any] = {}
    counts: dict[str, int] = {}
    masks: dict[str, torch.Tensor | None] = {}

    def summing(name: str) -> Callable[..., None]:
        runs_on = layout.runs_on(layout.locate(name))

        def add(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = _real(inputs[0].detach(), masks[runs_on]).double()
            totals[name] = totals.get(name, 0.0) + (rows.T @ rows).cpu()
            counts[name] = counts.get(name, 0) + len(rows)

        return add

    hooks = {module: summing(name) for name, module in linear.items()}
    table, seen = supernet.embedding, list[torch.Tensor]()
    if table is not None:
        hooks[table] = lambda module, inputs: seen.append(_real(inputs[0][..., None], masks["token"])[:, 0].cpu())
    with _hooked(hooks), torch.inference_mode():
        was_training = model.training
        model.eval()
        for batch in batches:
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            masks |= _masks(inputs, len(layout.depths))
            model(**inputs)
        model.train(was_training)
    moments = {name: totals[name] / counts[name] for name in linear if name in totals}
    weights = {name: matrix(linear[name]).detach().cpu().clone() for name in moments}
    return Activations(moments, weights, None if table is None else row_moment(table.weight, torch.cat(seen)))


def _real(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Rows (n, channels) of real tokens; all where the mask is of others."""
    return x[mask] if mask is not None and mask.shape == x.shape[:-1] else x.reshape(-1, x.shape[-1])


def row_moment(table: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean of e e^T over the rows e of a table that tokens look up, those that none looked up not forgotten.

    Args:
        table: (vocabulary, channels).
        tokens: Indices of rows (n,), one for each time that a token occurred.

    Returns:
        (channels, channels) float64. Each row counts as often as its token occurred, and `UNSEEN` times more.
    """
    counts = torch.bincount(tokens, minlength=len(table)).double() + UNSEEN
    total = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64)
    for rows, count in zip(table.detach().cpu().split(AT_ONCE), counts.split(AT_ONCE), strict=True):
        wide = rows.double()
        total += wide.T @ (wide * count[:, None])
    return total / counts.sum()


def _masks(inputs: Mapping[str, torch.Tensor], stacks: int) -> dict[str, torch.Tensor | None]:
    """Which tokens are real, by what a module runs on."""
    token = inputs.get("attention_mask" if stacks == 1 else "decoder_attention_mask")
    source = inputs.get("attention_mask")
    return {name: None if mask is None else mask.bool() for name, mask in {"token": token, "source": source}.items()}


@contextmanager
def _hooked(hooks: Mapping[torch.nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Calls a function with the inputs of each module, for the duration."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def output_basis(weight: torch.Tensor, moment: torch.Tensor, size: int) -> torch.Tensor:
    """Leading eigenvectors of the second moment W C W^T of a linear layer's outputs, the strongest first.

    Args:
        weight: W (outputs, inputs).
        moment: C, second moment of the inputs (inputs, inputs).
        size: How many eigenvectors, at most the smaller of outputs and inputs.

    Returns:
        (outputs, size) float64, orthonormal columns.
    """
    weight, moment = weight.double(), moment.double()
    frame = None
    if weight.shape[0] > weight.shape[1]:  # the outputs span no more dimensions than there are inputs
        frame, weight = torch.linalg.qr(weight)
    found = leading(weight @ moment @ weight.T, size)
    return found if frame is None else frame @ found


def leading(moment: torch.Tensor, size: int) -> torch.Tensor:
    """So many eigenvectors of a symmetric matrix (n, n) as columns (n, size), those of the largest values first."""
    return torch.linalg.eigh(moment)[1].flip(1)[:, :size]
