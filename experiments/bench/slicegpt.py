"""SliceGPT (Ashkboos et al. 2024, arXiv 2401.15024) on the modules of a Llama, written from the paper.

RMSNorm without its gain commutes with rotations, so the signal between two blocks may be rotated as long as what reads
and writes it is rotated too. Each signal is rotated onto its principal components on calibration text (section 3.3),
and the last ones are deleted: columns of what writes it, rows of what reads it (3.4). Blocks have rotations of their
own, so a skip connection multiplies by the product of two.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

Batches = Sequence[dict[str, torch.Tensor]]


class SliceGpt:
    """A model with the principal components of each signal between its blocks.

    Args:
        model: A Llama.
        batches: Calibration text.
    """

    def __init__(self, model: Any, batches: Batches) -> None:
        self.model, self.base = model, model.model
        self.norms = [
            norm for each in self.base.layers for norm in (each.input_layernorm, each.post_attention_layernorm)
        ]
        self.norms += [self.base.norm]
        self.rotations = [_principal_components(moment) for moment in self._moments(batches)]

    def _moments(self, batches: Batches) -> list[torch.Tensor]:
        """X'X of what each norm returns, without its gain (channels, channels)."""
        size = self.model.config.hidden_size
        moments = [torch.zeros(size, size, dtype=torch.float64) for _ in self.norms]

        def add_to(moment: torch.Tensor) -> Any:
            def hook(norm: Any, _: Any, output: torch.Tensor) -> None:
                rows = (output / norm.weight).reshape(-1, size).double()
                moment.add_(rows.T @ rows)

            return hook

        handles = [norm.register_forward_hook(add_to(m)) for norm, m in zip(self.norms, moments, strict=True)]
        with torch.inference_mode():
            for batch in batches:
                self.base(input_ids=batch["input_ids"])
        for handle in handles:
            handle.remove()
        return moments

    def parameters(self, width: int, *, tied: bool) -> int:
        """Parameters with so many channels; the rotated table and head are two, with ``tied`` only one is counted."""
        layers, table = self.base.layers, self.base.embed_tokens.weight
        linear = sum(p.numel() for each in layers for p in each.parameters() if p.dim() == 2) / table.shape[1]
        return int(width * (linear + len(table) * (1 if tied else 2)) + 2 * len(layers) * width**2)

    def width(self, parameters: float, *, tied: bool) -> int:
        """The most channels with so many parameters."""
        sizes = range(1, self.model.config.hidden_size + 1)
        return max(size for size in sizes if self.parameters(size, tied=tied) <= parameters)

    def sliced(self, width: int) -> Any:
        """A copy of the model with so many channels."""
        model = copy.deepcopy(self.model)
        kept = [rotation[:, :width] for rotation in self.rotations]
        gains = [norm.weight.data.double() for norm in self.norms]
        base, scale = model.model, self.model.config.hidden_size
        table, head = base.embed_tokens.weight.data.double(), model.lm_head.weight.data.double()
        base.embed_tokens.weight = nn.Parameter((table @ kept[0]).float())
        model.lm_head.weight = nn.Parameter(((head * gains[-1]) @ kept[-1]).float())
        for number, layer in enumerate(base.layers):
            before, between, after = self.rotations[2 * number : 2 * number + 3]
            _rotate(
                [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj],
                gains[2 * number],
                before,
                width,
            )
            _rotate([layer.mlp.gate_proj, layer.mlp.up_proj], gains[2 * number + 1], between, width)
            for module, rotation in ((layer.self_attn.o_proj, between), (layer.mlp.down_proj, after)):
                module.weight = nn.Parameter((rotation[:, :width].T @ module.weight.data.double()).float())
            skips = [(a.T @ b)[:width, :width].float() for a, b in ((before, between), (between, after))]
            base.layers[number] = _SlicedLayer(layer, skips, _Norm(scale, self.norms[0].variance_epsilon))
        base.norm = _Norm(scale, self.norms[0].variance_epsilon)
        return model


def _principal_components(moment: torch.Tensor) -> torch.Tensor:
    """Eigenvectors as columns, that of the largest eigenvalue first."""
    return torch.linalg.eigh(moment).eigenvectors.flip(1)


def _rotate(modules: Sequence[Any], gain: torch.Tensor, rotation: torch.Tensor, width: int) -> None:
    """Lets modules read the first components of a rotated signal without gain."""
    for module in modules:
        module.weight = nn.Parameter(((module.weight.data.double() * gain) @ rotation[:, :width]).float())


class _Norm(nn.Module):
    """RMSNorm without gain; the scale stays that of all channels."""

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__()
        self.channels, self.epsilon = channels, epsilon

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states * torch.rsqrt(states.pow(2).sum(-1, keepdim=True) / self.channels + self.epsilon)


class _SlicedLayer(nn.Module):
    """A layer whose skip connections rotate."""

    def __init__(self, layer: Any, skips: Sequence[torch.Tensor], norm: nn.Module) -> None:
        super().__init__()
        self.self_attn, self.mlp, self.norm = layer.self_attn, layer.mlp, norm
        self.first, self.second = (nn.Parameter(skip) for skip in skips)

    def forward(self, states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        states = states @ self.first + self.self_attn(hidden_states=self.norm(states), **kwargs)[0]
        return states @ self.second + self.mlp(self.norm(states))
