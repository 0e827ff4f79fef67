"""Small files without training: a classifier with fewer pieces, and with its table and its layers in fewer bits.

    python experiments/bench/small_files.py MODEL TRAIN TEST [--examples 1000] [--vocabulary 4000] [--parts 48]

MODEL is a trained classifier, TRAIN orders the pieces of its tokenizer by their use, TEST is scored. Sizes are those
of ``model.safetensors``, to the byte. Each model is the supernet with that subnetwork active: what is exported.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nas.recipe.schema import Recipe
from nas.runs.progress import quiet_libraries
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from predictors import AnalyticCosts
from search_spaces import SubnetConfig


def variants(parent: SubnetConfig, pieces: int, parts: int) -> dict[str, SubnetConfig]:
    """What is compared: name -> subnetwork."""
    layers, codes = parent.num_hidden_layers, f"pq:{parts}"
    fewer = parent.with_values(vocabulary=pieces)
    int8, int4 = ((dtype,) * layers for dtype in ("int8", "int4-weight"))
    return {
        "parent": parent,
        "layers in int8": parent.with_values(bits=int8),
        "table in 8 bits": parent.with_values(embedding_bits=8),
        "table in 4 bits": parent.with_values(embedding_bits=4),
        f"table as {codes}": parent.with_values(embedding_bits=codes),
        f"{pieces} pieces": fewer,
        f"{pieces} pieces as {codes}": fewer.with_values(embedding_bits=codes),
        "layers in int4": parent.with_values(bits=int4),
        f"{pieces} pieces in 8 bits, layers in int8": parent.with_values(
            vocabulary=pieces, embedding_bits=8, bits=int8
        ),
        f"{pieces} pieces in 8 bits, layers in int4": parent.with_values(
            vocabulary=pieces, embedding_bits=8, bits=int4
        ),
        f"{pieces} pieces as {codes}, layers in int4": parent.with_values(
            vocabulary=pieces, embedding_bits=codes, bits=int4
        ),
    }


def main() -> None:
    """Prints one row for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--parts", type=int, default=48)
    arguments = parser.parse_args()
    quiet_libraries()
    task = {"type": "text-classification", "train": str(arguments.train.resolve()), "max_length": 64}
    task |= {"test": f"{arguments.test.resolve()}", "search_examples": arguments.examples}
    recipe = Recipe.model_validate({"model": arguments.model, "task": task, "space": {"num_hidden_layers": [1]}})
    context = TaskContext(recipe)
    supernet = Supernet(context.load_model().eval(), vocabulary=context.vocabulary)
    costs = AnalyticCosts.from_model(supernet.model, supernet.layout, recipe.task.type)
    table = Table("model", "MB", "accuracy", "±", box=None)
    for name, subnet in variants(supernet.parent, arguments.vocabulary, arguments.parts).items():
        supernet.activate(subnet)
        own = context.of(subnet)
        accuracy = score(supernet.model, own.splits.test.take(arguments.examples), ["accuracy"])["accuracy"]
        size_mb = float(costs.count(["size_mb"], [subnet])["size_mb"][0])
        table.add_row(name, f"{size_mb:.2f}", f"{accuracy.value:.3f}", f"{accuracy.standard_error:.3f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
