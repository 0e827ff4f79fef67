"""Loads an export and stores its outputs; runs as a script that imports nothing of this package, as a user would."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

Tensors = Mapping[str, torch.Tensor]
HIDDEN_STATES = "last_hidden_state"


def scored_outputs(outputs: Mapping[str, Any], names: Sequence[str], inputs: Tensors) -> dict[str, torch.Tensor]:
    """Returns the outputs of these names; of hidden states, their mean over the tokens that are no padding."""
    found = {name: outputs[name].contiguous() for name in names}
    if HIDDEN_STATES in found and "attention_mask" in inputs:
        mask = inputs["attention_mask"][..., None]
        found[HIDDEN_STATES] = found[HIDDEN_STATES].masked_fill(mask == 0, 0.0).sum(1) / mask.sum(1)
    return found


def run_torch(path: str, auto_class: str, inputs: Tensors) -> dict[str, Any]:
    """Runs a model folder through its auto class, in float32: in 16 bits processors round differently."""
    options = {"trust_remote_code": True, "use_safetensors": True, "dtype": torch.float32}
    model = getattr(transformers, auto_class).from_pretrained(path, **options).eval()
    with torch.inference_mode():
        return dict(model(**inputs))


def run_onnx(path: str, auto_class: str, inputs: Tensors) -> dict[str, Any]:
    """Runs an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {spec.name: inputs[spec.name].numpy() for spec in session.get_inputs()})
    return {name: torch.from_numpy(value) for name, value in zip(names, outputs, strict=True)}


def run_program(path: str, auto_class: str, inputs: Tensors) -> dict[str, Any]:
    """Runs a `torch.export` program."""
    import transformers.modeling_outputs  # noqa: F401  (importing it registers the classes of outputs)

    program = torch.export.load(path)
    dtypes = {node.name: node.meta["val"].dtype for node in program.graph.nodes if node.op == "placeholder"}
    with torch.inference_mode():
        outputs = dict(program.module()(**{name: tensor.to(dtypes[name]) for name, tensor in inputs.items()}))
    return {name: value.float() for name, value in outputs.items() if torch.is_tensor(value)}


def run_openvino(path: str, auto_class: str, inputs: Tensors) -> dict[str, Any]:
    """Runs an OpenVINO model in float32."""
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feed = {name: inputs[name].numpy() for port in model.inputs for name in port.get_names() if name in inputs}
    outputs = {name: value for port, value in model(feed).items() for name in port.get_names()}
    return {name: torch.from_numpy(value) for name, value in outputs.items()}


def run_executorch(path: str, auto_class: str, inputs: Tensors) -> dict[str, Any]:
    """Runs an ExecuTorch program one sample at a time, because its batch size may be limited."""
    from transformers.exporters import ExportedModel

    program = ExportedModel.from_pretrained(os.path.dirname(path))
    samples = zip(*(tensor.split(1) for tensor in inputs.values()), strict=True)
    outputs = [program(**dict(zip(inputs, sample, strict=True))) for sample in samples]
    return {
        name: torch.cat([each[name] for each in outputs])
        for name, value in outputs[0].items()
        if torch.is_tensor(value)
    }


def run_gguf(path: str, auto_class: str, inputs: Tensors) -> dict[str, Any]:
    """Runs a GGUF file in llama.cpp on the tokens that are no padding; logits of the others are zeros."""
    import llama_cpp

    ids, mask = inputs["input_ids"], inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    tokens, threads = ids.shape[1] + 1, torch.get_num_threads()
    options = {"n_ctx": tokens, "n_batch": tokens, "n_threads": threads, "n_threads_batch": threads}
    program = llama_cpp.Llama(path, logits_all=True, verbose=False, **options)
    logits = torch.zeros(*ids.shape, program.n_vocab())
    for row, real in enumerate(mask):
        program.reset()
        program.eval(ids[row, real].tolist())
        logits[row, real] = torch.tensor(program.scores[: int(real.sum())], dtype=torch.float32)
    return {"logits": logits}


RUNNERS: dict[str, Callable[[str, str, Tensors], dict[str, Any]]] = {
    "torch": run_torch,
    "onnx": run_onnx,
    "int8": run_onnx,
    "program": run_program,
    "openvino": run_openvino,
    "openvino-int8": run_openvino,
    "executorch": run_executorch,
    "executorch-int8": run_executorch,
    "gguf": run_gguf,
    "gguf-q8_0": run_gguf,
    "gguf-q4_k_m": run_gguf,
}


def main(format_name: str, path: str, auto_class: str, names: str, inputs_file: str, outputs_file: str) -> None:
    """Runs an export on stored inputs and stores its outputs of these names, separated by commas."""
    inputs = load_file(inputs_file)
    outputs = RUNNERS[format_name](path, auto_class, inputs)
    save_file(scored_outputs(outputs, names.split(","), inputs), outputs_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
