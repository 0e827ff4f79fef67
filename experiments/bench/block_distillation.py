"""Does a local start help recovery: each layer first learns its parent's output on its parent's input.

A slice of a small Llama, compensated or not, has the same CPU time in all: from the parent's predictions alone, from
them after a share of local distillation (as in Puzzle, Bercovich et al. 2024, arXiv 2411.19146), or locally alone. The
model tells its own stories to learn from.

    STORIES260K=FOLDER python -m experiments.bench.block_distillation FOLDER [--seconds 20] [--seeds 2]
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn.functional import kl_div

from experiments.stories260k.stories import test, train
from nas.supernets.calibration import calibrate
from nas.supernets.importance import order_by_importance
from nas.supernets.supernet import Supernet

Batches = list[torch.Tensor]
LENGTH, ROWS = 128, 16
SHARES = (0.0, 0.25, 0.5, 1.0)


def batches_of(tokenizer: Any, texts: Any, count: int) -> Batches:
    """Blocks of token ids (rows, tokens)."""
    ids = torch.tensor([i for text in texts["text"] for i in tokenizer(text).input_ids][: count * ROWS * LENGTH])
    return list(ids.view(-1, ROWS, LENGTH))


def local_loss(student: Any, teacher: Any, ids: torch.Tensor) -> torch.Tensor:
    """Mean over layers of the error of a layer on its parent's input, by token, relative to what the layer changes."""
    with torch.no_grad():
        states = _inputs_of_layers(teacher, ids)
    positions = torch.arange(ids.shape[1])[None]
    rotary = student.model.rotary_emb(states[0], positions)
    losses = []
    for layer, (before, after) in zip(student.model.layers, itertools.pairwise(states), strict=True):
        found = layer(before, position_embeddings=rotary, position_ids=positions)
        change = (after - before).pow(2).mean(-1)
        losses.append(((found - after).pow(2).mean(-1) / (change + change.median())).mean())
    return torch.stack(losses).mean()


def _inputs_of_layers(teacher: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """The inputs of all layers, and the output of the last one."""
    states: list[torch.Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0])) for layer in teacher.model.layers
    ]
    handles.append(teacher.model.norm.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0])))
    teacher.model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return states


def predictions_loss(student: Any, teacher: Any, ids: torch.Tensor) -> torch.Tensor:
    """Divergence from the parent's predictions."""
    with torch.no_grad():
        target = teacher(input_ids=ids).logits.flatten(0, 1).log_softmax(-1)
    own = student(input_ids=ids).logits.flatten(0, 1).log_softmax(-1)
    return kl_div(own, target, reduction="batchmean", log_target=True)


def learn(
    student: Any,
    teacher: Any,
    loss: Callable[..., torch.Tensor],
    stream: Iterator[torch.Tensor],
    seconds: float,
    rate: float,
) -> int:
    """Trains all weights for so much CPU time, the rate falling linearly; returns the steps."""
    if seconds <= 0:
        return 0
    optimizer, started, steps, spent = torch.optim.AdamW(student.parameters(), lr=rate), time.process_time(), 0, 0.0
    while spent < seconds:
        optimizer.param_groups[0]["lr"] = rate * max(1 - spent / seconds, 0.02)
        optimizer.zero_grad()
        loss(student, teacher, next(stream)).backward()
        optimizer.step()
        steps, spent = steps + 1, time.process_time() - started
    return steps


@torch.inference_mode()
def perplexity(model: Any, batches: Batches) -> float:
    return math.exp(sum(float(model(input_ids=ids, labels=ids).loss) for ids in batches) / len(batches))


def main() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    learned, tested = batches_of(tokenizer, train(), 60), batches_of(tokenizer, test(), 15)
    load = lambda: AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()  # noqa: E731
    teacher, supernet = load().requires_grad_(False), Supernet(load())
    calibration = [{"input_ids": ids, "labels": ids} for ids in learned[:4]]
    order_by_importance(supernet, calibration, by="activation", fewest=[supernet.parent.num_hidden_layers])
    statistics = calibrate(supernet, calibration, ranks=False, compensates=True)
    half = supernet.parent.intermediate_size[0] // 2
    subnet = supernet.parent.with_values(intermediate_size=(half,) * supernet.parent.num_hidden_layers)
    print(f"parent: perplexity {perplexity(teacher, tested):.3f}", flush=True)
    for name, supernet.calibration in (("compensated", statistics), ("plain", None)):
        print(f"{name} slice: perplexity {perplexity(supernet.extract(subnet), tested):.3f}", flush=True)
        for share, seed in itertools.product(SHARES, range(args.seeds)):
            torch.manual_seed(seed)
            student = supernet.extract(subnet).eval().requires_grad_(True)
            stream = (learned[int(k)] for _ in itertools.count() for k in torch.randperm(len(learned)))
            local = learn(student, teacher, local_loss, stream, share * args.seconds, args.rate)
            start = perplexity(student, tested)
            steps = learn(student, teacher, predictions_loss, stream, (1 - share) * args.seconds, args.rate)
            found = f"{local} local steps to {start:.3f}, {steps} of predictions to {perplexity(student, tested):.3f}"
            print(f"{name} {share:.0%} local, seed {seed}: {found}", flush=True)


if __name__ == "__main__":
    main()
