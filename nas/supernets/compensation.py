"""Compensation: what remaining heads and neurons take over of those that a subnetwork leaves out.

A linear layer that reads heads or feed-forward neurons reads fewer of them in a subnetwork. The outputs of those left
out are predicted from the others by least squares on calibration data, and the prediction is folded into the weight:
with the second moment C of the inputs, kept K and dropped D, W_K + W_D C_DK C_KK^-1 is the weight that changes the
layer's outputs least. This is the update of ZipLM (Kurtic et al. 2023, arXiv 2302.04089) and SlimGPT (Ling et al.
2024, arXiv 2412.18110) for any subnetwork of the supernet; it needs no training.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch

from nas.modeling.elastic import Compensated, Entries, Index
from search_spaces import Layout

DAMPING = 0.1
"""Added to the diagonal of a moment, relative to its mean: calibration data are few. Of 0.0001 to 0.1, the best for
three quarters of the neurons of SmolLM2-135M-Instruct, calibrated on 7,000 tokens."""
CACHED_BYTES = 2**30
"""Shares that are kept for subnetworks to come; the oldest make room."""
COMPENSATED_AXES = ("heads", "cross_heads", "ffn")
"""What a layer reads whose other units take over; channels of the residual stream are read by all layers."""


def is_compensated(layout: Layout, name: str) -> bool:
    """Whether a weight is that of a linear layer that reads heads or neurons."""
    axes = layout.shapes.linear_axes(layout.locate(name))
    return len(axes) == 2 and axes[1] in COMPENSATED_AXES and name.endswith(".weight")


class Compensation:
    """What inputs of linear layers take over, for any of them that remain.

    Args:
        layout: Of the parent.
        moments: Name of a weight -> mean of x x^T over its inputs x (inputs, inputs).
    """

    def __init__(self, layout: Layout, moments: Mapping[str, torch.Tensor]) -> None:
        self._dim = 0 if layout.family.conv1d else 1
        self._moments, self._names = moments, {name for name in moments if is_compensated(layout, name)}
        self._found: OrderedDict[tuple[object, ...], Compensated] = OrderedDict()

    def of(self, name: str, index: Index, like: torch.Tensor) -> Index:
        """The active entries of a parameter, its inputs with the shares that they take over; see `of_inputs`."""
        if name not in self._names:
            return index
        found = self.of_inputs(name, index[self._dim], like)
        return (*index[: self._dim], found, *index[self._dim + 1 :])

    def of_inputs(self, name: str, rows: Entries, like: torch.Tensor) -> Entries:
        """The inputs of a layer that remain, with the shares of the others that they take over.

        Args:
            name: Of its weight.
            rows: Inputs that remain: a slice or indices.
            like: The weight: shares are on its device, in its dtype, or in float32 if that has 16 bits.
        """
        if name not in self._names or isinstance(rows, Compensated) or rows == slice(None):
            return rows
        key = (name, rows.stop if isinstance(rows, slice) else tuple(rows.tolist()))
        found = self._found.pop(key, None) or compensated(self._moments[name], rows, like)
        if found is None:
            return rows
        self._found[key] = found
        while len(self._found) > 1 and sum(one.shares.nbytes for one in self._found.values()) > CACHED_BYTES:
            self._found.popitem(last=False)
        return found


def compensated(moment: torch.Tensor, rows: slice | torch.Tensor, like: torch.Tensor) -> Compensated | None:
    """The remaining inputs of a layer and the shares of the others that they take over; None where none remain.

    Args:
        moment: Mean of x x^T over the inputs x (inputs, inputs).
        rows: Inputs that remain.
        like: The weight: shares are on its device, in its dtype, or in float32 if that has 16 bits.
    """
    is_kept = torch.zeros(len(moment), dtype=torch.bool)
    is_kept[rows] = True
    kept, dropped = is_kept.nonzero()[:, 0], (~is_kept).nonzero()[:, 0]
    if not len(kept):
        return None
    own = moment[kept[:, None], kept].double()
    own.diagonal().add_(DAMPING * moment.diagonal().mean() + torch.finfo(torch.float64).tiny)
    shares = torch.cholesky_solve(moment[kept[:, None], dropped].double(), torch.linalg.cholesky(own))
    return Compensated(rows, dropped, shares.to(like.device, torch.promote_types(like.dtype, torch.float32)))
