"""What hidden states add to a distillation of so many seconds: one architecture, from the parent's weights.

    python experiments/bench/hidden_states.py RUN --layers 2 5 8 11 --set 0:1e-4 0:3e-4 10:3e-4 --seconds 100

Takes a run whose supernet exists (`by_hand.py --last supernet` makes one). For each WEIGHT:RATE, it cuts the
architecture from the parent in order of importance, trains it for so many CPU seconds with that weight of the hidden
states (`finish.hidden_states`) and that learning rate, and prints steps, multiply-accumulates over the parent's and
accuracy on the held-out split. Set threads: `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from by_hand import correct
from finishing import finisher

from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.supernets.load import load_ordered_parent
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts
from search_spaces.layer_drop import drop_layers


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
    counts = AnalyticCosts.from_model(parent.model, parent.layout, context.recipe.task.type)
    tokens = run.recipe.workload.sequence_length
    cost = counts.macs(subnet, tokens) / counts.macs(parent.parent, tokens)
    with finisher(run, context, [subnet]) as finish:
        for weight, rate in ((float(part) for part in each.split(":")) for each in arguments.set):
            model = load_ordered_parent(run, context)[0].extract(subnet)
            settings = finish.settings(learning_rate=rate, batch_size=arguments.batch_size, hidden_states=weight)
            steps = finish.train(model, subnet, settings, seconds=arguments.seconds)
            hits = correct(model, context)
            print(
                f"weight {weight:g}, rate {rate:g}: {steps} steps, {cost:.0%} of the parent's multiply-accumulates, "
                f"accuracy {sum(hits) / len(hits):.4f}  {subnet}",
                flush=True,
            )


if __name__ == "__main__":
    main()
