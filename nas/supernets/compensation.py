"""Compensation: what remaining heads and neurons take over of those that a subnetwork leaves out.

A linear layer that reads heads or feed-forward neurons reads fewer of them in a subnetwork. The outputs of those left
out are predicted from the others by least squares on calibration data, and the prediction is folded into the weight:
with the second moment C of the inputs, kept K and dropped D, W_K + W_D C_DK C_KK^-1 is the weight that changes the
layer's outputs least. This is the update of ZipLM (Kurtic et al. 2023, arXiv 2302.04089) and SlimGPT (Ling et al.
2024, arXiv 2412.18110) for any subnetwork of the supernet; it needs no training. Each expert of a mixture has moments
of its own, of the tokens that are routed to it, with the router's weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

import torch

from nas.modeling.elastic import Compensated, Entries, Index
from search_spaces import Layout

DAMPING = 0.1
"""Added to the diagonal of a moment, relative to its mean: calibration data are few. Of 0.0001 to 0.1, the best for
three quarters of the neurons of SmolLM2-135M-Instruct, calibrated on 7,000 tokens."""
KEPT, CACHED_BYTES = 2, 2**30
"""What is kept for subnetworks to come, before the oldest makes room: weights of narrower layers, up to so many times
the memory of the layers themselves; of a supernet that is trained, shares in bytes."""
COMPENSATED_AXES = ("heads", "cross_heads", "ffn")
"""What a layer reads whose other units take over; channels of the residual stream are read by all layers."""


def is_compensated(layout: Layout, name: str) -> bool:
    """Whether a weight is that of a linear layer, or of such a layer in each expert, that reads heads or neurons."""
    location = layout.locate(name)
    if layout.shapes.is_of_experts(location):
        return location.axes[-1] in COMPENSATED_AXES
    axes = layout.shapes.linear_axes(location)
    return len(axes) == 2 and axes[1] in COMPENSATED_AXES and name.endswith(".weight")


def moment_name(name: str, expert: int) -> str:
    """The name under which the moment of one expert is kept, given that of the weight of all."""
    return f"{name}.{expert}"


class Compensation:
    """What inputs of linear layers take over, for any of them that remain.

    Args:
        layout: Of the parent.
        weights: Name -> the weight of a linear layer.
        moments: Name of a weight, or `moment_name` -> mean of x x^T over its inputs x (inputs, inputs).
    """

    def __init__(
        self, layout: Layout, weights: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]
    ) -> None:
        self._dim = 0 if layout.family.conv1d else 1
        self._moments = moments
        known = {name.rpartition(".")[0] for name in moments} | {*moments}
        self._weights = {n: weight for n, weight in weights.items() if n in known and is_compensated(layout, n)}
        self._found: OrderedDict[tuple[object, ...], Compensated] = OrderedDict()

    def of(self, name: str, index: Index) -> Index:
        """The active entries of a parameter, its inputs with the shares that they take over; see `of_inputs`."""
        if name not in self._weights:
            return index
        dim = self._dim_of(name)
        return (*index[:dim], self.of_inputs(name, index[dim]), *index[dim + 1 :])

    def of_inputs(self, name: str, rows: Entries) -> Entries:
        """The inputs of a layer that remain, with the shares of the others that they take over.

        Args:
            name: Of its weight.
            rows: Inputs that remain: a slice or indices.
        """
        if name not in self._weights or isinstance(rows, Compensated) or rows == slice(None):
            return rows
        self._make_room()
        key = (name, rows.stop if isinstance(rows, slice) else tuple(rows.tolist()))
        inputs = self._weights[name].shape[self._dim_of(name)]
        found = self._found.pop(key, None) or compensated(partial(self._moment, name), inputs, rows)
        if found is None:
            return rows
        self._found[key] = found
        return found

    def _dim_of(self, name: str) -> int:
        """The dimension of the inputs of a weight."""
        return 2 if self._weights[name].dim() == 3 else self._dim

    def _moment(self, name: str) -> torch.Tensor:
        """The moment of a weight; of each expert (experts, inputs, inputs), 0 where no token was routed to it."""
        if name in self._moments:
            return self._moments[name]
        experts, _, inputs = self._weights[name].shape
        moments = torch.zeros(experts, inputs, inputs)
        for expert in range(experts):
            if (part := moment_name(name, expert)) in self._moments:
                moments[expert] = self._moments[part]
        return moments

    def _make_room(self) -> None:
        is_trained = any(one.is_trained for one in self._found.values())
        kept = sum(one.nbytes for one in self._found.values())
        limit = CACHED_BYTES if is_trained else KEPT * sum(weight.nbytes for weight in self._weights.values())
        while kept > limit:
            kept -= self._found.popitem(last=False)[1].nbytes


def compensated(moment: Callable[[], torch.Tensor], inputs: int, rows: slice | torch.Tensor) -> Compensated | None:
    """The remaining inputs of a layer and the shares of the others that they take over; None where none remain.

    Args:
        moment: Returns the mean of x x^T over the inputs x (inputs, inputs), or several (experts, inputs, inputs).
        inputs: Their number.
        rows: Inputs that remain.
    """
    is_kept = torch.zeros(inputs, dtype=torch.bool)
    is_kept[rows] = True
    kept, dropped = is_kept.nonzero()[:, 0], (~is_kept).nonzero()[:, 0]
    return Compensated(rows, dropped, partial(_shares, moment, kept, dropped)) if len(kept) else None


def _shares(moment: Callable[[], torch.Tensor], kept: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
    """The shares (..., kept, dropped) in float64."""
    own, others = _parts(moment(), kept, dropped)
    return torch.cholesky_solve(others, torch.linalg.cholesky(own))


def _parts(moment: torch.Tensor, kept: torch.Tensor, dropped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The moments of the remaining inputs, damped, and those with the others, in float64."""
    own, others = (moment[..., kept[:, None], columns].double() for columns in (kept, dropped))
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1, keepdim=True).double()
    own.diagonal(dim1=-2, dim2=-1).add_(DAMPING * mean + torch.finfo(torch.float64).tiny)
    return own, others
