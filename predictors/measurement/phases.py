"""Phases: the inputs of a model that encodes, fills a cache or decodes after one, on the device of a workload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from predictors.measurement.runtime import Inputs
from search_spaces.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from predictors.measurement.workload import Workload


def on_device(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model and its phase inputs on the device and in the dtype of a workload, except ``int8``."""
    import torch

    dtype = torch.float32 if workload.dtype == "int8" else getattr(torch, workload.dtype)
    model = model.to(workload.device, dtype)
    moved = {n: t.to(workload.device, dtype if t.is_floating_point() else None) for n, t in inputs.items()}
    return model, phase_inputs(model, moved, workload)


def phase_inputs(model: PreTrainedModel, inputs: Inputs, workload: Workload) -> dict[str, Any]:
    """The inputs of a model in the workload's phase."""
    if workload.phase != "encode" and not model.can_generate():
        raise InputError(
            f"`workload.phase={workload.phase}` is for models that generate, but `{type(model).__name__}` does not; "
            "set `workload.phase=encode`."
        )
    if workload.phase == "encode":
        return {**inputs, "use_cache": False} if model.can_generate() else dict(inputs)
    if workload.phase == "prefill":
        return {**inputs, "use_cache": True}
    return _decode_step(model, inputs)


def _decode_step(model: PreTrainedModel, inputs: Inputs) -> dict[str, Any]:
    """Inputs of the last token, with all tokens before it in a cache."""
    tokens = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    if inputs[tokens].shape[1] < 2:
        raise InputError("`workload.sequence_length` must be at least 2 to decode after a cache, but got 1.")
    before = {**inputs, tokens: inputs[tokens][:, :-1], "use_cache": True}
    step = {**inputs, tokens: inputs[tokens][:, -1:], "use_cache": True}
    if tokens == "input_ids":
        before["attention_mask"] = inputs["attention_mask"][:, :-1]
    filled = model(**before)
    if tokens == "decoder_input_ids":
        from transformers.modeling_outputs import BaseModelOutput

        step.pop("input_ids", None), step.pop("input_features", None)
        step["encoder_outputs"] = BaseModelOutput(filled.encoder_last_hidden_state)
    return {**step, "past_key_values": filled.past_key_values}
