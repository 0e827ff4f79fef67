"""An export with its int8 layers as float32 ones, so that ONNX Runtime quantizes the same model in its own way.

python experiments/minilm-embeddings/onnx_int8.py EXPORT OUT

OUT is EXPORT with another `onnx/model.onnx`; `rivals.py ... "int8: NAME=OUT"` quantizes it. The other files are those
of EXPORT, for the tokenizer and the pooling.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from rivals import INPUTS
from transformers import AutoModel

from predictors.measurement.onnx_export import write_onnx


def main(source: str, out: str) -> None:
    """Replaces every int8 layer and writes the ONNX file."""
    model = AutoModel.from_pretrained(source, trust_remote_code=True).eval()
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "QuantizedLinear":
            layer = torch.nn.Linear(module.in_features, module.out_features)
            layer.load_state_dict({"weight": module.qweight.float() * module.scales, "bias": module.bias})
            model.set_submodule(name, layer)
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("onnx"))
    file = Path(out, "onnx", "model.onnx")
    file.parent.mkdir()
    write_onnx(model, {name: torch.from_numpy(array).repeat(2, 1) for name, array in INPUTS.items()}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
