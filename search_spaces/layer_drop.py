"""Layer dropping: the parent with some of its layers, each as it is (Fan et al. 2020, arXiv 1909.11556; Sajjad et al.
2023, arXiv 2004.03844)."""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.space import SearchSpace
from search_spaces.subnet import SubnetConfig


def drop_layers(parent: SubnetConfig, kept: Sequence[int]) -> SubnetConfig:
    """The parent with these of its layers only."""
    values = {name: [v[k] for k in kept] if isinstance(v, list) else v for name, v in parent.to_dict().items()}
    return SubnetConfig.from_dict({**values, "layers": list(kept)})


def evenly_spaced(space: SearchSpace) -> list[SubnetConfig]:
    """Of every depth the parent with evenly spaced layers, the last one among them, the deepest first.

    Of an encoder-decoder, both stacks keep the same share of their layers.
    """
    sizes = [len(stack) for stack in space.stacks]
    depths = {tuple(max(1, round(size * k / max(sizes))) for size in sizes) for k in range(1, max(sizes))}
    return [drop_layers(space.parent, _spaced(space.stacks, each)) for each in sorted(depths, reverse=True)]


def _spaced(stacks: Sequence[Sequence[int]], depths: Sequence[int]) -> list[int]:
    kept = []
    for stack, depth in zip(stacks, depths, strict=True):
        positions = [round((k + 1) * len(stack) / depth) - 1 for k in range(depth)]
        kept += [sorted(stack)[position] for position in positions]
    return sorted(kept)
