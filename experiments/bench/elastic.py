"""What elasticity costs: a supernet with a subnetwork active against the same subnetwork extracted.

    python experiments/bench/elastic.py [--rounds 15] [--batch-size 8] [--sequence-length 128] [--only "BERT base"]

One thread, process CPU time, interleaved rounds, medians. Ratios above 1: the supernet is slower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from statistics import median
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from nas.supernets.supernet import Supernet
from search_spaces import FAMILIES, TASKS, SubnetConfig

TEXT = {"vocab_size": 30522, "max_position_embeddings": 512}
SMALL = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
VISION = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}


@dataclass(frozen=True)
class Size:
    """One family at one size."""

    name: str
    model_type: str
    config: dict[str, Any]

    def supernet(self) -> Supernet:
        """A random model of this size, made elastic."""
        config = transformers.AutoConfig.for_model(self.model_type, **self.config)
        auto = getattr(transformers, TASKS[FAMILIES[self.model_type].tasks[0]].auto_class)
        return Supernet(auto.from_config(config).eval())

    def inputs(self, batch: int, length: int) -> dict[str, torch.Tensor]:
        """Random inputs, none of them padding."""
        if "image_size" in self.config:
            return {"pixel_values": torch.randn(batch, 3, self.config["image_size"], self.config["image_size"])}
        ids = torch.randint(5, 1000, (batch, length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


SIZES = (
    Size("BERT, MiniLM shapes", "bert", {**SMALL, **TEXT}),
    Size("GPT-2, 6 layers of 384", "gpt2", {**SMALL, "vocab_size": 8000, "n_positions": 512}),
    Size("Llama, 6 layers of 384, grouped", "llama", {**SMALL, "num_key_value_heads": 4, "vocab_size": 8000}),
    Size("ViT small, 196 patches", "vit", {**VISION, "image_size": 224, "patch_size": 16}),
    Size("BERT base", "bert", {**BASE, **TEXT}),
)


def subnets(supernet: Supernet) -> dict[str, SubnetConfig]:
    """The full parent, its heads and neurons halved, the hidden size cut as well, two thirds of the layers kept."""
    hidden, depth = supernet.parent.hidden_size, supernet.parent.num_hidden_layers
    widths = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    half = {field: getattr(supernet.parent, field)[0] // 2 for field in widths}

    def uniform(layers: int, hidden_size: int) -> SubnetConfig:
        return SubnetConfig.uniform(tuple(range(layers)), hidden_size=hidden_size, **half)

    return {
        "full": supernet.parent,
        "half heads and FFN": uniform(depth, hidden),
        "also hidden 2/3": uniform(depth, hidden * 2 // 3),
        "also layers 2/3": uniform(depth * 2 // 3, hidden * 2 // 3),
    }


def forward(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    with torch.inference_mode():
        model(**inputs)


def forward_backward(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    model(**inputs).logits.square().mean().backward()
    model.zero_grad(set_to_none=True)


def ratio(slow: Callable[[], None], fast: Callable[[], None], rounds: int) -> float:
    """Median over interleaved rounds of one call's CPU time over the other's; which comes first alternates."""
    ratios = []
    for number in range(rounds + 1):
        seconds = {}
        for call in (slow, fast) if number % 2 else (fast, slow):
            start = time.process_time()
            call()
            seconds[call] = time.process_time() - start
        ratios.append(seconds[slow] / seconds[fast])
    return median(ratios[1:])


def activation_ms(supernet: Supernet, repeats: int = 100) -> float:
    """Median CPU time of `Supernet.activate` on subnetworks that differ in every layer."""
    choices = {
        "num_attention_heads": sorted({max(supernet.parent.num_attention_heads) // k for k in (1, 2, 4)}),
        "num_hidden_layers": [supernet.parent.num_hidden_layers],
        "intermediate_size": [256, 512, 1024, 1536],
    }
    space, rng = supernet.layout.search_space(choices), Random(0)
    times = []
    for subnet in [space.sample(rng) for _ in range(repeats)]:
        start = time.process_time()
        supernet.activate(subnet)
        times.append(1000 * (time.process_time() - start))
    return median(times)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--only", choices=[size.name for size in SIZES], nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = f"batch {arguments.batch_size}, {arguments.sequence_length} tokens"
    print(f"supernet / extracted, {sizes}, torch {torch.__version__}")
    for size in [size for size in SIZES if size.name in arguments.only or not arguments.only]:
        torch.manual_seed(0)
        supernet, inputs = size.supernet(), size.inputs(arguments.batch_size, arguments.sequence_length)
        table = Table(size.name, "forward", "forward + backward")
        for name, subnet in subnets(supernet).items():
            supernet.activate(subnet)
            extracted = supernet.extract(subnet)
            cells = []
            for run in (forward, forward_backward):
                calls = [partial(run, model, inputs) for model in (supernet.model, extracted)]
                cells.append(f"{ratio(*calls, arguments.rounds):.3f}")
            table.add_row(name, *cells)
        layers = supernet.parent.num_hidden_layers
        table.caption = f"activate: {activation_ms(supernet):.2f} ms for {layers} layers, all different"
        Console().print(table)


if __name__ == "__main__":
    main()
