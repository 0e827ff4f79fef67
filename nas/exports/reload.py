"""Loads an exported folder as any user would and stores its logits; run as a script, imports nothing of ours."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file


def logits_of(outputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """What a model's head says, by name: ``logits``, or ``start_logits`` and ``end_logits`` of an answer."""
    return {name: value.contiguous() for name, value in outputs.items() if name.endswith("logits")}


def main(folder: str, auto_class: str, inputs_file: str, outputs_file: str) -> None:
    """Runs the folder's model on stored inputs."""
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
    with torch.inference_mode():
        save_file(logits_of(model(**load_file(inputs_file))), outputs_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
