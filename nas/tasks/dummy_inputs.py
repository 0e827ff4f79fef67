"""Dummy inputs: random inputs of a workload's shape for any model of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nas.tasks.types import TASK_TYPES
from predictors import Workload
from predictors.measurement.workload import device_errors_as_input_errors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def dummy_inputs(task: str, config: PreTrainedConfig, workload: Workload) -> dict[str, torch.Tensor]:
    """Returns random inputs, without padding; every call returns the same.

    Args:
        task: Name of the task, such as ``text-classification``.
        config: Config of the model that will read them.
        workload: Gives the batch size and the sequence length.

    Raises:
        InputError: If the inputs do not fit in memory.
    """
    with device_errors_as_input_errors(workload):
        return TASK_TYPES[task].dummy_inputs(config, workload, torch.Generator().manual_seed(0))
