"""What fewer bits of linear layers cost a language model: perplexity and bits per byte of a text, without training.

    python experiments/bench/layer_bits.py MODEL TEXT [--tokens 2048] [--window 256] [--permute]
        [--calibrate TEXT]

``--permute`` puts channels and neurons in another order first, which changes no output of the model. A model that was
stored in groups of four bits before has its weights on the grid of these groups; in another order it has not. A search
puts them in the order of their importance. ``--calibrate`` fits four bits to the activations of the first tokens of
another text, as a search does on its training data.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from nas.supernets.calibration import calibrate
from nas.supernets.importance import permute
from nas.supernets.supernet import Supernet
from predictors import AnalyticCosts

BITS = ("float32", "bfloat16", "int8", "int8-weight", "int4-weight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--bits", nargs="+", default=BITS)
    parser.add_argument("--permute", action="store_true")
    parser.add_argument("--calibrate", type=Path)
    parser.add_argument("--calibration-tokens", type=int, default=8192)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    windows, size = read(options.model, options.text, options.tokens, options.window)
    supernet = Supernet(model)
    if options.permute:
        shuffle(supernet)
    if options.calibrate:
        texts, _ = read(options.model, options.calibrate, options.calibration_tokens, options.window)
        supernet.calibration = calibrate(supernet, [{"input_ids": some} for some in texts.split(4)])
    costs = AnalyticCosts.from_model(model, supernet.layout)
    print(f"{windows.numel():,} tokens, {size:,} bytes", flush=True)
    for bits in options.bits:
        subnet = supernet.parent.with_values(bits=(bits,) * supernet.parent.num_hidden_layers)
        supernet.activate(subnet)
        nats = mean_nats(model, windows)
        size_mb = costs.count(["size_mb"], [subnet])["size_mb"][0]
        per_byte = nats * windows.numel() / size / math.log(2)
        quality = f"perplexity {math.exp(nats):.2f}  bits per byte {per_byte:.3f}"
        print(f"{bits:12} {size_mb:8.1f} MB  {quality}", flush=True)


def read(model: str, text: Path, tokens: int, window: int) -> tuple[torch.Tensor, int]:
    """The first windows of tokens of a text, and how many bytes they stand for."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = tokenizer(text.read_text()[: 10 * tokens], return_offsets_mapping=True)
    ids = torch.tensor(encoded["input_ids"][: tokens // window * window])
    end = encoded["offset_mapping"][len(ids) - 1][1]
    return ids.view(-1, window), len(text.read_text()[:end].encode())


@torch.inference_mode()
def mean_nats(model: torch.nn.Module, windows: torch.Tensor) -> float:
    """The mean loss of a token that has others before it in its window."""
    losses = []
    for window in windows:
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1].float()
        losses.append(cross_entropy(logits, window[1:]).item())
    return sum(losses) / len(losses)


def shuffle(supernet: Supernet) -> None:
    """Another order of all channels and neurons."""
    generator, layout = torch.Generator().manual_seed(0), supernet.layout

    def order(size: int) -> Sequence[int]:
        return torch.randperm(size, generator=generator).tolist()

    neurons = [order(size) for size in supernet.parent.intermediate_size]
    permute(supernet, {"ffn": neurons}, order(layout.parent.hidden_size))


if __name__ == "__main__":
    main()
