"""Checkpoints of the Trainer: weights are loaded under the names of their files, and none is dropped or invented."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBLEMS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
"""Fields of transformers' loading report that must be empty."""


def load_checkpoint(model: PreTrainedModel, folder: Path) -> None:
    """Loads the weights that ``save_pretrained`` wrote into the same model, in place.

    Files of some families, such as ViT, name weights unlike their modules. ``from_pretrained`` translates the names;
    `Trainer` does not, and leaves the weights that it does not find as they were.

    Raises:
        InputError: If a weight is missing, has another shape, or is in the file but not in the model.
    """
    options = {"dtype": model.dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    loaded, report = type(model).from_pretrained(folder, config=copy.deepcopy(model.config), **options)
    require_all_weights(model, report, f"the checkpoint `{folder}`", "delete it to train again from the one before")
    model.load_state_dict(loaded.state_dict())


def require_all_weights(model: PreTrainedModel, report: Mapping[str, Any], what: str, way_out: str) -> None:
    """Raises InputError unless transformers' loading report says that a model took every weight from its files."""
    problems = {name: sorted(map(str, report[name])) for name in PROBLEMS if report.get(name)}
    if problems:
        listed = "; ".join(f"{name.replace('_', ' ')}: {', '.join(each[:3])}" for name, each in problems.items())
        raise InputError(
            f"{what} must hold the weights of {type(model).__name__}, but some differ ({listed}); {way_out}."
        )
