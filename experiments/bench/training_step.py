"""What a step of supernet training costs, in units of a step of the whole model alone.

    python experiments/bench/training_step.py [--rounds 7] [--batch-size 8] [--sequence-length 128]

MiniLM shapes, the space of `experiments/sst2-minilm`, one thread, process CPU time. A round takes each kind of step
once; what is printed are medians over rounds of a step's time over the whole model's in the same round. A step is
forward and backward of every lesson, and one update. The teacher's outputs are remembered, or asked for in the step.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

from nas.supernets.strategies import STRATEGIES, SUBNET_SAMPLERS
from nas.supernets.supernet import Supernet
from nas.supernets.supernet_trainer import SupernetTrainer
from search_spaces import SearchSpace

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
SPACE = {
    "num_hidden_layers": [3, 4, 5, 6],
    "num_attention_heads": [2, 4, 6, 8, 10, 12],
    "intermediate_size": [192, 384, 768, 1152, 1536],
}


def model() -> Any:
    """A random MiniLM with two classes."""
    return BertForSequenceClassification(BertConfig(**MINILM, num_labels=2))


def task() -> Any:
    """What a trainer asks of a classification task."""
    return SimpleNamespace(
        collate=None,
        activation="softmax",
        scored=lambda outputs, batch: [(outputs.logits, batch["labels"])],
    )


def stepper(space: SearchSpace, supernet: Supernet, strategy: str, folder: str, batch: dict[str, Any]) -> Any:
    """A step of a strategy, called with its number and whether the teacher is asked in it."""
    trainer = SupernetTrainer(
        supernet=supernet,
        strategy=STRATEGIES[strategy](space, SUBNET_SAMPLERS["mixed"](space), 2),
        task=cast(Any, task()),
        teacher=model(),
        args=TrainingArguments(output_dir=folder, use_cpu=True, report_to="none", disable_tqdm=True),
    )
    update = torch.optim.AdamW(supernet.model.parameters())
    remembered = [torch.randn(len(batch["labels"]), 2)]

    def step(number: int, asks: bool) -> None:
        trainer.state.global_step, trainer.state.max_steps = number, 1000
        trainer.teacher_cache = [] if asks else remembered
        trainer.training_step(supernet.model, {**batch, "row": torch.arange(len(batch["labels"]))})
        update.step()
        update.zero_grad()

    return step


def seconds(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = torch.randint(1000, 30000, (given.batch_size, given.sequence_length))
    labels = torch.randint(0, 2, (given.batch_size,))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    whole, supernet = model().train(), Supernet(model())
    space, update = supernet.layout.search_space(SPACE), torch.optim.AdamW(whole.parameters())

    def plain() -> None:
        whole(**batch).loss.backward()
        update.step()
        update.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        steps = {name: stepper(space, supernet, name, str(Path(folder) / name), batch) for name in STRATEGIES}
        taken: dict[tuple[str, bool], list[float]] = {
            (name, asks): [] for name in STRATEGIES for asks in (False, True)
        }
        for number in range(given.rounds + 1):
            unit = seconds(plain)
            for (name, asks), found in taken.items():
                found.append(seconds(lambda name=name, asks=asks, n=number: steps[name](n, asks)) / unit)
    print("| strategy, two sampled | teacher remembered | teacher asked |\n|---|---|---|")
    for name in STRATEGIES:
        print(f"| {name} | {np.median(taken[name, False][1:]):.2f} | {np.median(taken[name, True][1:]):.2f} |")


if __name__ == "__main__":
    main()
