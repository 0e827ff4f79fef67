"""The measurements of `elastic.py` for whittle's `set_sub_network`, on the shapes of its Llama row.

    pip install torch "whittle==0.6.0" "pyarrow<22" && pip uninstall torchvision   # in an environment of its own
    python experiments/bench/elastic_whittle.py [--rounds 15]

whittle's supernet with a subnetwork active against LitGPT's own model of that size, batch 8, 128 tokens, one thread,
process CPU time, interleaved rounds, medians; and the CPU time of `set_sub_network` itself.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from random import Random
from statistics import median
from typing import Any

import litgpt
import torch
from whittle.models.gpt import GPT

FULL = {"n_embd": 384, "n_layer": 6, "n_head": 12, "n_query_groups": 4, "intermediate_size": 1536, "head_size": 32}
HALF = {**FULL, "n_head": 6, "n_query_groups": 2, "intermediate_size": 768}
SUBNETS = {
    "full": FULL,
    "half heads and FFN": HALF,
    "also hidden 2/3": {**HALF, "n_embd": 256},
    "also layers 2/3": {**HALF, "n_embd": 256, "n_layer": 4},
}
NAMES = {
    "n_embd": "sub_network_n_embd",
    "n_layer": "sub_network_n_layers",
    "n_head": "sub_network_num_heads",
    "n_query_groups": "sub_network_query_groups",
    "intermediate_size": "sub_network_intermediate_size",
    "head_size": "sub_network_head_size",
}


def config(**sizes: int) -> litgpt.Config:
    """A Llama of these sizes."""
    return litgpt.Config(
        block_size=512,
        vocab_size=8000,
        padded_vocab_size=8000,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        **sizes,
    )


def forward(model: Any, ids: torch.Tensor) -> None:
    with torch.inference_mode():
        model(ids)


def forward_backward(model: Any, ids: torch.Tensor) -> None:
    model(ids).square().mean().backward()
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


def activation_ms(supernet: GPT, repeats: int = 50) -> float:
    """Median CPU time of `set_sub_network` with neurons that differ in every layer."""
    rng, times = Random(0), []
    for _ in range(repeats):
        widths = [rng.choice([256, 512, 1024, 1536]) for _ in range(FULL["n_layer"])]
        start = time.process_time()
        supernet.set_sub_network(**{NAMES[n]: v for n, v in {**FULL, "intermediate_size": widths}.items()})
        times.append(1000 * (time.process_time() - start))
    return median(times)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids, supernet = torch.randint(0, 8000, (8, 128)), GPT(config(**FULL))
    print("| whittle 0.6.0 / LitGPT | forward | forward + backward |\n|---|---|---|")
    for name, sizes in SUBNETS.items():
        supernet.set_sub_network(**{NAMES[field]: value for field, value in sizes.items()})
        standalone = litgpt.GPT(config(**sizes))
        cells = [
            f"{ratio(*(partial(run, model, ids) for model in (supernet, standalone)), rounds):.3f}"
            for run in (forward, forward_backward)
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"set_sub_network, 6 layers that all differ: {activation_ms(supernet):.2f} ms")


if __name__ == "__main__":
    main()
