"""Loads an exported folder as any user would and stores its class scores; run as a script, imports nothing of ours."""

import sys

import torch
import transformers
from safetensors.torch import load_file, save_file


def main(folder: str, auto_class: str, inputs_file: str, outputs_file: str) -> None:
    """Runs the folder's model on stored inputs."""
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
    with torch.inference_mode():
        save_file({"logits": model(**load_file(inputs_file)).logits.contiguous()}, outputs_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
