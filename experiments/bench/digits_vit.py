"""Trains the quickstart's vision transformer as a supernet and tabulates every subnetwork of a small per-layer space.

python experiments/bench/digits_vit.py FOLDER      # writes FOLDER/digits-vit.json; some minutes on one core
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from problems import subnets

from nas.pipeline import run_stages
from nas.recipe.schema import Recipe
from nas.stages.check import open_run
from nas.supernets.load import load_supernet
from nas.tasks.evaluation import score
from predictors import AnalyticCosts

RECIPE = Path(__file__).parents[1] / "quickstart" / "recipe.yaml"
OVERRIDES = [
    "space.num_hidden_layers=[1, 2, 3, 4]",
    "space.num_attention_heads=[2, 8]",
    "space.intermediate_size=[24, 192]",
    "task.search_examples=400",
    "constraints={}",
]


def tabulate(folder: Path) -> None:
    """Writes the loss on the search slice and the multiply-accumulates of every subnetwork, by its key."""
    recipe = Recipe.load(RECIPE, OVERRIDES)
    context, run = open_run(recipe, folder / "digits-vit")
    run_stages(run, context, last="supernet")
    supernet, space = load_supernet(run, context)
    counts, rows = AnalyticCosts.from_model(supernet.model, supernet.layout), {}
    for number, subnet in enumerate(subnets(space), start=1):
        supernet.activate(subnet)
        loss = score(supernet.model, context.splits.search, ["loss"])["loss"].value
        rows[subnet.key] = [loss, counts.macs(subnet)]
        if number % 500 == 0:
            print(f"{number} of {space.size}", flush=True)
    described = {**space.arguments(), "parent": space.parent.to_dict()}
    (folder / "digits-vit.json").write_text(json.dumps({"space": described, "rows": rows}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    tabulate(parser.parse_args().folder)
