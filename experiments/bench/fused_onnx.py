"""Fused ONNX graphs: what ONNX Runtime's transformer optimizer gains on our files, and on those of the older exporter.

    python experiments/bench/fused_onnx.py MODEL [--tokens 16 | --pixels 224] [--rounds 60]

A parent in ONNX Runtime, batch 1, one thread, CPU time of interleaved rounds, the median. `ours` is what a workload of
runtime onnxruntime measures; `fused` the same after the optimizer, without its fusion of attention, which finds none
there; `eager` the same from eager attention; `older` the file of PyTorch's older exporter from eager attention, with
attention fused as well. Each in float32 and with int8 products.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import quantize_dynamic
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from predictors.measurement.onnx_export import onnx_session, write_onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--pixels", type=int)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    inputs = inputs_of(options)
    with tempfile.TemporaryDirectory() as folder:
        files = written(options.model, inputs, Path(folder))
        sessions = {name: onnx_session(file, 1) for name, file in files.items()}
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    reference = run(sessions["ours"], feed)
    for name, times in timed(sessions, feed, options.rounds).items():
        difference = np.abs(run(sessions[name], feed) - reference).max()
        print(f"{name:14} {np.median(times):.3f} ms   outputs differ by {difference:.2g}")


def inputs_of(options: argparse.Namespace) -> dict[str, torch.Tensor]:
    """One text or one image."""
    if options.pixels:
        return {"pixel_values": torch.randn(1, 3, options.pixels, options.pixels)}
    ids = torch.randint(5, 999, (1, options.tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def load(model: str, attention: str, text: bool) -> Any:
    """A model with an implementation of attention."""
    auto = AutoModelForSequenceClassification if text else AutoModel
    return auto.from_pretrained(model, attn_implementation=attention).eval()


def written(model: str, inputs: dict[str, torch.Tensor], folder: Path) -> dict[str, Path]:
    """Every variant of the file."""
    text, config = "input_ids" in inputs, AutoConfig.from_pretrained(model)
    files = {name: folder / f"{name}.onnx" for name in ("ours", "eager", "older")}
    write_onnx(load(model, "sdpa", text), inputs, files["ours"], dynamic=False)
    eager = load(model, "eager", text)
    write_onnx(eager, inputs, files["eager"], dynamic=False)
    torch.onnx.export(
        eager, (), str(files["older"]), kwargs=inputs, input_names=list(inputs), dynamo=False, opset_version=17
    )
    for name in list(files):
        files[f"{name}-fused"] = fused(files[name], config, attention=name == "older")
    for name in list(files):
        files[f"{name}-int8"] = folder / f"{name}-int8.onnx"
        quantize_dynamic(
            str(files[name]),
            str(files[f"{name}-int8"]),
            per_channel=True,
            reduce_range=True,
            extra_options={"DefaultTensorType": 1},  # floats, also after operators of ONNX Runtime
        )
    return files


def fused(file: Path, config: Any, attention: bool) -> Path:
    """The file after the optimizer; says how often it fused what."""
    from onnxruntime.transformers import optimizer
    from onnxruntime.transformers.fusion_options import FusionOptions

    options = FusionOptions("bert")
    options.enable_attention, options.enable_embed_layer_norm = attention, False
    heads, hidden = config.num_attention_heads, config.hidden_size
    result = optimizer.optimize_model(
        str(file), "bert" if hasattr(config, "vocab_size") else "vit", heads, hidden, options, opt_level=0
    )
    print(file.stem, {name: count for name, count in result.get_fused_operator_statistics().items() if count})
    target = file.with_name(f"{file.stem}-fused.onnx")
    result.save_model_to_file(str(target))
    return target


def run(session: Any, feed: dict[str, Any]) -> Any:
    """The first output."""
    names = {spec.name for spec in session.get_inputs()}
    return session.run(None, {name: array for name, array in feed.items() if name in names})[0]


def timed(sessions: dict[str, Any], feed: dict[str, Any], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each session in every round."""
    times, generator = {name: list[float]() for name in sessions}, np.random.default_rng(0)
    for _ in range(rounds):
        for name in generator.permutation(list(sessions)):
            fastest = float("inf")
            for _ in range(3):
                start = time.process_time()
                run(sessions[name], feed)
                fastest = min(fastest, time.process_time() - start)
            times[name].append(1e3 * fastest)
    return times


if __name__ == "__main__":
    main()
