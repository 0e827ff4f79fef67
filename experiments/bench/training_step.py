"""What a step of supernet training costs, in units of a training step of the full model.

    python experiments/bench/training_step.py [--rounds 7] [--batch-size 8] [--sequence-length 128]

MiniLM shapes, the space of `experiments/sst2-minilm`, one thread, process CPU time. A round runs a step of each
strategy; the table shows medians over rounds of its time over that of the full model in the same round. A step is
forward and backward of every pass, and one update. The teacher's outputs are cached, or computed in the step.
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
from nas.tasks.kept_outputs import KeptOutputs
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
    """The parts of a classification task that a trainer uses."""
    return SimpleNamespace(
        collate=None,
        activation="softmax",
        logits_and_labels=lambda outputs, batch: [(outputs.logits, batch["labels"])],
    )


def stepper(space: SearchSpace, supernet: Supernet, strategy: str, folder: str, batch: dict[str, Any]) -> Any:
    """A step of a strategy, called with its number and whether the teacher runs in it."""
    trainer = SupernetTrainer(
        supernet=supernet,
        strategy=STRATEGIES[strategy](space, SUBNET_SAMPLERS["mixed"](space), 2),
        task=cast(Any, task()),
        teacher=model(),
        args=TrainingArguments(output_dir=folder, use_cpu=True, report_to="none", disable_tqdm=True),
    )
    update = torch.optim.AdamW(supernet.model.parameters())
    rows = torch.arange(len(batch["labels"]))
    kept = KeptOutputs(Path(folder), len(rows))
    kept.put(rows, [torch.randn(len(rows), 2)])

    def step(number: int, runs_teacher: bool) -> None:
        trainer.state.global_step, trainer.state.max_steps = number, 1000
        trainer.kept = None if runs_teacher else kept
        trainer.training_step(supernet.model, {**batch, "row": rows})
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = torch.randint(1000, 30000, (arguments.batch_size, arguments.sequence_length))
    labels = torch.randint(0, 2, (arguments.batch_size,))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    parent, supernet = model().train(), Supernet(model())
    space, update = supernet.layout.search_space(SPACE), torch.optim.AdamW(parent.parameters())

    def plain() -> None:
        parent(**batch).loss.backward()
        update.step()
        update.zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        steps = {name: stepper(space, supernet, name, str(Path(folder) / name), batch) for name in STRATEGIES}
        taken: dict[tuple[str, bool], list[float]] = {
            (name, runs_teacher): [] for name in STRATEGIES for runs_teacher in (False, True)
        }
        for number in range(arguments.rounds + 1):
            unit = seconds(plain)
            for (name, runs_teacher), times in taken.items():
                times.append(
                    seconds(lambda name=name, runs_teacher=runs_teacher, n=number: steps[name](n, runs_teacher)) / unit
                )
    print("| strategy, two sampled | teacher cached | teacher in the step |\n|---|---|---|")
    for name in STRATEGIES:
        print(f"| {name} | {np.median(taken[name, False][1:]):.2f} | {np.median(taken[name, True][1:]):.2f} |")


if __name__ == "__main__":
    main()
