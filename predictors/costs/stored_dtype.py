"""The dtype of each weight in a file: that of the model, but for those that transformers keeps in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def stored_dtype(model: PreTrainedModel, dtype: torch.dtype) -> Callable[[str], torch.dtype]:
    """Returns the dtype of a floating-point weight, by its name, where a model is loaded in a dtype.

    In 16 bits transformers keeps some weights in float32, such as the second layer of T5's blocks in float16.
    """
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    if not plan:
        return lambda name: dtype
    pattern, keys, _ = build_glob_alternation(list(plan))

    def of(name: str) -> torch.dtype:
        found = pattern.search(name)
        return dtype if found is None else plan[keys[found.lastgroup]]

    return of
