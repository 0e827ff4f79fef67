"""UMT5 (Chung et al. 2023, arXiv 2304.09151): T5, but each layer has position biases of its own."""

from __future__ import annotations

from dataclasses import replace

from search_spaces.families.t5 import T5
from search_spaces.family import Skip, Stack

RENAMED: dict[Skip, Skip] = {"zeros, position_bias, None": "zeros, None", "zeros, None, None": "zeros, None"}
"""What T5's attention returns -> what this one does, which passes no biases on."""


def own_biases(stack: Stack) -> Stack:
    """A stack of T5 whose layers share no biases."""
    skips = {
        block: {path: RENAMED.get(returns, returns) for path, returns in modules.items()}
        for block, modules in stack.skips.items()
    }
    return replace(stack, skips=skips, shared_by_first_layer=(), mixins={})


UMT5 = replace(T5, model_type="umt5", stacks=tuple(map(own_biases, T5.stacks)), shared_heads=False)
