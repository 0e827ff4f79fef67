"""What hidden states add to a distillation of so many seconds: one architecture, from the parent's weights.

    python experiments/bench/hidden_states.py RUN --layers 2 5 8 11 --set 0:1e-4 0:3e-4 10:3e-4 --seconds 100

Takes a run whose supernet exists (`by_hand.py --last supernet` makes one). Computes the parent's outputs and hidden
states on the training data first, which is not counted. Then, for each WEIGHT:RATE, it cuts the architecture from the
parent in order of importance, trains it for so many CPU seconds with that weight of the hidden states
(`finish.hidden_states`) and that learning rate, and prints steps, speed as predicted and accuracy on the held-out
split. Set threads: `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from by_hand import correct

from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.supernets.hidden_states import StateMatching
from nas.supernets.load import load_ordered_parent
from nas.supernets.training import DistillationTrainer, model_trainer
from nas.tasks.context import TaskContext
from nas.tasks.kept_outputs import KeptOutputs, KeptStates
from search_spaces.layer_drop import drop_layers

ROWS = 64


def main() -> None:
    """Parses the command line and trains once for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--layers", nargs="+", type=int, required=True)
    parser.add_argument("--intermediate-size", type=int, help="Of every layer; default: the parent's.")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--set", nargs="+", required=True, metavar="WEIGHT:RATE")
    parser.add_argument("--seconds", type=float, default=100.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    run = Run(arguments.run)
    context = TaskContext(run.recipe)
    parent = load_ordered_parent(run, context)[0]
    subnet = drop_layers(parent.parent, arguments.layers)
    if arguments.intermediate_size:
        subnet = subnet.with_values(intermediate_size=(arguments.intermediate_size,) * len(arguments.layers))
    predict = run.target.load_predictor().predict
    speed = float(predict([parent.parent])[0] / predict([subnet])[0])
    examples, matching = context.training_set(run.recipe.finish), StateMatching(1.0, parent.layout, [subnet])
    matching = replace(matching, kept=KeptStates())
    with tempfile.TemporaryDirectory() as folder:
        kept = KeptOutputs(Path(folder, "outputs"), len(examples))
        for weight, rate in ((float(part) for part in each.split(":")) for each in arguments.set):
            settings = run.recipe.finish.model_copy(
                update={"learning_rate": rate, "batch_size": arguments.batch_size, "hidden_states": weight}
            )
            model = load_ordered_parent(run, context)[0].extract(subnet).requires_grad_(True)
            trainer = model_trainer(
                model,
                settings,
                Path(folder, "work"),
                examples,
                context.splits.task,
                run.recipe.seed,
                teacher=parent.model,
                temperature=settings.temperature,
                kept=kept,
                states=replace(matching, weight=weight),
                layers=subnet.layers,
            )
            compute_teacher(trainer, len(examples))
            trainer.args.save_strategy = "no"
            trainer.args.max_steps = trainer.steps_within(arguments.seconds, time.process_time)
            trainer.train()
            hits = correct(model.eval(), context)
            print(
                f"weight {weight:g}, rate {rate:g}: {trainer.args.max_steps} steps, x{speed:.2f}, "
                f"accuracy {sum(hits) / len(hits):.4f}  {subnet}",
                flush=True,
            )


def compute_teacher(trainer: DistillationTrainer, n_examples: int) -> None:
    """Computes the teacher's outputs and states on the examples of which they are not kept."""
    assert trainer.kept is not None
    dataset, n_known = trainer.train_dataset, trainer.kept.n_known
    for first in range(n_known, n_examples, ROWS):
        batch = trainer.data_collator([dataset[row] for row in range(first, min(first + ROWS, n_examples))])
        trainer.teacher_outputs(*trainer.pop_row_index(batch))


if __name__ == "__main__":
    main()
