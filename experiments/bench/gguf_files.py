"""What llama.cpp gives for the GGUF files of a model: sizes, and how far its logits are from the model's.

python -m experiments.bench.gguf_files EXPORT TEXT.txt
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import nas  # noqa: F401  exports load without the trust flag
from nas.exports.formats import load_export
from predictors.measurement.runtimes import FORMATS

TOKENS = 256
NAMES = [name for name, written in FORMATS.items() if written.spread]


def row(name: str, model: Any, ids: torch.Tensor, folder: Path) -> str:
    """One line of the table: size in MB, largest and mean difference in standard deviations, mean KL in nats."""
    file = folder / f"{name}.gguf"
    FORMATS[name].write(model, {"input_ids": ids[:, :16]}, file)
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
    difference = FORMATS[name].load(file)({"input_ids": ids})["logits"] - expected
    own, other = expected.log_softmax(-1), (expected + difference).log_softmax(-1)
    kl = (own.exp() * (own - other)).sum(-1).mean()
    spread = expected.std()
    values = file.stat().st_size / 1e6, difference.abs().max() / spread, difference.square().mean().sqrt() / spread, kl
    return f"| `{name}` | " + " | ".join(f"{float(value):.3g}" for value in values) + " |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("text", type=Path)
    args = parser.parse_args()
    model = load_export(args.export, "text-generation").float()
    ids = AutoTokenizer.from_pretrained(args.export)(args.text.read_text(), return_tensors="pt").input_ids[:, :TOKENS]
    print("| format | MB | largest difference | root mean square | KL |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES:
            print(row(name, model, ids, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
