"""Loads an export and stores its logits; runs as a script that imports nothing of this package, as a user would."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

Tensors = Mapping[str, torch.Tensor]


def logits_of(outputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Returns the logits by name: ``logits``, or ``start_logits`` and ``end_logits`` for question answering."""
    return {name: value.contiguous() for name, value in outputs.items() if name.endswith("logits")}


def run_torch(path: str, auto_class: str, inputs: Tensors) -> dict[str, torch.Tensor]:
    """Runs a model folder through its auto class."""
    model = getattr(transformers, auto_class).from_pretrained(path, trust_remote_code=True).eval()
    with torch.inference_mode():
        return logits_of(model(**inputs))


def run_onnx(path: str, auto_class: str, inputs: Tensors) -> dict[str, torch.Tensor]:
    """Runs an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {spec.name: inputs[spec.name].numpy() for spec in session.get_inputs()})
    return logits_of({name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)})


def run_program(path: str, auto_class: str, inputs: Tensors) -> dict[str, torch.Tensor]:
    """Runs a `torch.export` program."""
    import transformers.modeling_outputs  # noqa: F401  (importing it registers the classes of outputs)

    with torch.inference_mode():
        return logits_of(torch.export.load(path).module()(**inputs))


def run_openvino(path: str, auto_class: str, inputs: Tensors) -> dict[str, torch.Tensor]:
    """Runs an OpenVINO model in float32."""
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feed = {name: inputs[name].numpy() for port in model.inputs for name in port.get_names() if name in inputs}
    outputs = {name: value for port, value in model(feed).items() for name in port.get_names()}
    return logits_of({name: torch.from_numpy(value) for name, value in outputs.items()})


def run_executorch(path: str, auto_class: str, inputs: Tensors) -> dict[str, torch.Tensor]:
    """Runs an ExecuTorch program one sample at a time, because its batch size may be limited."""
    from transformers.exporters import ExportedModel

    program = ExportedModel.from_pretrained(os.path.dirname(path))
    samples = zip(*(tensor.split(1) for tensor in inputs.values()), strict=True)
    outputs = [logits_of(program(**dict(zip(inputs, sample, strict=True)))) for sample in samples]
    return {name: torch.cat([logits[name] for logits in outputs]) for name in outputs[0]}


RUNNERS: dict[str, Callable[[str, str, Tensors], dict[str, torch.Tensor]]] = {
    "torch": run_torch,
    "onnx": run_onnx,
    "int8": run_onnx,
    "program": run_program,
    "openvino": run_openvino,
    "executorch": run_executorch,
}


def main(format_name: str, path: str, auto_class: str, inputs_file: str, outputs_file: str) -> None:
    """Runs an export on stored inputs and stores its logits."""
    save_file(RUNNERS[format_name](path, auto_class, load_file(inputs_file)), outputs_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
