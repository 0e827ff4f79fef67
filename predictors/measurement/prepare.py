"""Prepare: turns a model and its inputs into a call that runs the model once in the runtime of a workload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from predictors.measurement.image_tower import image_tower
from predictors.measurement.runtime import Call
from predictors.measurement.runtimes import RUNTIMES
from predictors.measurement.workload import Workload, device_errors_as_input_errors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def prepare(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], workload: Workload) -> Call:
    """Returns a call that runs a model once under a workload; the first calls may compile it.

    Of a model with two towers the image tower runs, as texts are read beforehand. In phase ``decode`` a cache is
    filled with all tokens but the last, and every call processes the last token.

    Args:
        model: A Hugging Face model; PyTorch runtimes move it to the workload's device and dtype.
        inputs: A batch of the workload's shape, of complete sequences in every phase.
        workload: Runtime, device, dtype, phase and threads.

    Raises:
        InputError: If the device, a package or a compiler is missing, the runtime does not support the workload, or
            memory runs out.
    """
    workload.check_available()
    check_runtime(workload)
    import torch

    model, inputs = image_tower(model.eval(), inputs)
    with device_errors_as_input_errors(workload), torch.inference_mode():
        return RUNTIMES[workload.runtime].prepare(model, inputs, workload)


def check_runtime(workload: Workload) -> None:
    """Checks that this machine has what a workload's runtime needs.

    Raises:
        InputError: If something is missing; the message says how to install it.
    """
    RUNTIMES[workload.runtime].check(workload)
