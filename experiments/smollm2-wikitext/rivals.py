"""What one has without a search: the parent, in fewer bits, and without layers; as folders for `nas bench`, scored.

    python experiments/smollm2-wikitext/rivals.py MODEL FOLDER

Layers are dropped by block influence (ShortGPT, arXiv 2403.03853) on text of `train`, as many as make 10, 20 and 30 %
fewer parameters. Weights in fewer bits are rounded as they are, not fitted to text.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

from experiments.bench.training_free import SHARES, block_influence
from nas.exports.export import save_subnet
from nas.recipe.schema import Recipe
from nas.supernets.layer_importance import drop_layer
from nas.supernets.load import calibration_set
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score

BITS = ("int8-weight", "int4-weight")


def main() -> None:
    """Writes the folders, and prints the loss on the test text of each."""
    model, folder = sys.argv[1:]
    torch.set_num_threads(1)
    context = TaskContext(Recipe.load(Path(__file__).with_name("recipe.yaml"), [f"model={model}"]))
    supernet = Supernet(context.load_model(context.recipe.model))
    parent = supernet.parent
    subnets = {bits: parent.with_values(bits=(bits,) * len(parent.layers)) for bits in BITS}
    influence = block_influence(supernet, calibration_set(context).labelled_batches(4))
    layer_size = sum(p.numel() for p in supernet.layer(0).parameters())
    for share in SHARES:
        subnet = parent
        for layer in influence[: math.ceil(share * supernet.model.num_parameters() / layer_size)]:
            subnet = drop_layer(subnet, layer)
        subnets[f"layers-{len(subnet.layers)}"] = subnet
    for name, subnet in {"parent": parent, **subnets}.items():
        save_subnet(supernet, subnet, context, Path(folder, name))
        loss = score(supernet.extract(subnet), context.splits.test, ["loss"])["loss"]
        print(f"{name:12} loss {loss.value:.4f} ± {loss.standard_error:.4f}", flush=True)


if __name__ == "__main__":
    main()
