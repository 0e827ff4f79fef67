"""Fewer tokens in a vision model: smaller images, or tokens merged in every layer (ToMe, Bolya et al. 2023).

    python experiments/bench/image_tokens.py latency {torch,onnxruntime} MODEL [--sides 56 112 224 336] [--rounds 15]
    python experiments/bench/image_tokens.py accuracy MODEL [--side 112] [--examples 800]

MODEL is the folder of a DINOv2. Latencies are ratios to the model at the same side, medians over interleaved rounds,
one thread, batch 1. Merging averages the most alike pairs of tokens after the attention of each layer, weighted by how
many patches they stand for; the class token stays. ToMe's proportional attention is left out: it costs more time.
Smaller images are those of `image_size`. Accuracy: five nearest neighbours of the class token among as many training
images of Fashion-MNIST, without training.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModel

from nas.modeling.smaller_images import interpolation
from predictors import Workload, measure
from predictors.measurement.runtimes import RUNTIMES
from predictors.measurement.timing import REFERENCE

sys.path.insert(0, str(Path(__file__).parents[1] / "dinov2-fashion"))

SHARES = (0.25, 0.5)
"""Share of the tokens that the last layer lacks, by merging."""
SMALLER = (0.75, 0.5)
"""Sides of smaller images, relative to the whole one's."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NEIGHBOURS = 5


def merged(tokens: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merges pairs of alike tokens: bipartite soft matching of every second token with the others.

    Args:
        tokens: (batch, tokens, channels), the class token first.
        sizes: (batch, tokens, 1) patches that each stands for.
        count: Tokens that go.
    """
    unit = tokens / tokens.norm(dim=-1, keepdim=True)
    best, partner = (unit[:, 1::2] @ unit[:, ::2].transpose(-1, -2)[..., 1:]).max(-1)
    order = best.argsort(-1, descending=True)[..., None]
    goes, stays, weighted = order[:, :count], order[:, count:], tokens * sizes
    target = partner[..., None].gather(1, goes) + 1

    def joined(values: Tensor) -> Tensor:
        odd, width = values[:, 1::2], values.shape[-1]
        even = values[:, ::2].scatter_add(1, target.expand(-1, -1, width), odd.gather(1, goes.expand(-1, -1, width)))
        return torch.cat([even, odd.gather(1, stays.expand(-1, -1, width))], 1)

    sizes = joined(sizes)
    return joined(weighted) / sizes, sizes


class Merging(nn.Module):
    """A DINOv2 whose layers merge tokens after their attention; returns the class token."""

    def __init__(self, model: Any, per_layer: int) -> None:
        super().__init__()
        self.model, self.per_layer = model, per_layer

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, channels) of (batch, 3, side, side)."""
        hidden = self.model.embeddings(pixel_values)
        sizes = torch.ones_like(hidden[..., :1])
        for layer in self.model.encoder.layer:
            hidden = hidden + layer.layer_scale1(layer.attention(layer.norm1(hidden))[0])
            if self.per_layer:
                hidden, sizes = merged(hidden, sizes, self.per_layer)
            hidden = hidden + layer.layer_scale2(layer.mlp(layer.norm2(hidden)))
        return self.model.layernorm(hidden)[:, 0]


def at_side(folder: str, side: int) -> Any:
    """The model with positions for images of this side."""
    model = AutoModel.from_pretrained(folder).eval()
    embeddings, grid = model.embeddings, (side // model.config.patch_size) ** 2
    old = embeddings.position_embeddings.data
    weights = torch.from_numpy(interpolation(1, old.shape[1] - 1, grid))
    embeddings.position_embeddings = nn.Parameter((weights @ old[0])[None])
    return model


def settings(side: int, patch: int, layers: int) -> dict[str, tuple[int, int]]:
    """Name -> side of the images, tokens that each layer merges; the first is the whole model."""
    tokens = (side // patch) ** 2 + 1
    counts = sorted({max(1, round(share * tokens / layers)) for share in SHARES})
    smaller = [round(share * side / patch) * patch for share in SMALLER]
    return {
        "whole": (side, 0),
        **{f"image of {other}": (other, 0) for other in smaller},
        **{f"merging {count} a layer": (side, count) for count in counts},
    }


def latency(runtime: str, folder: str, sides: list[int], rounds: int) -> None:
    """Prints the latencies."""
    table = Table("side", "tokens", "variant", "ms", "ratio", title=f"{Path(folder).name} · {runtime}")
    workload = Workload(runtime=runtime)  # type: ignore[arg-type]
    for side in sides:
        config = AutoModel.from_pretrained(folder).config
        with tempfile.TemporaryDirectory() as work, torch.inference_mode():
            calls = {}
            for name, (pixels, count) in settings(side, config.patch_size, config.num_hidden_layers).items():
                model, images = Merging(at_side(folder, pixels), count).eval(), torch.randn(1, 3, pixels, pixels)
                calls[name] = call(model, images, workload, Path(work, f"{len(calls)}.onnx"))
            timings = measure(calls, calls.pop("whole"), workload, rounds=rounds)
        tokens = (side // config.patch_size) ** 2 + 1
        for name, timing in {"whole": timings[REFERENCE], **{name: timings[name] for name in calls}}.items():
            table.add_row(str(side), str(tokens), name, f"{timing.latency_ms:.1f}", f"{timing.ratio:.2f}")
    Console().print(table)


def call(model: nn.Module, images: Tensor, workload: Workload, file: Path) -> Any:
    """A call that runs a model once."""
    if workload.runtime == "torch":
        return lambda: model(images)
    torch.onnx.export(model, (images,), str(file), dynamo=True, input_names=["pixel_values"], verbose=False)
    return RUNTIMES["onnxruntime"].call(file, {"pixel_values": images.numpy()}, workload)


def accuracy(folder: str, side: int, examples: int) -> None:
    """Prints the accuracies."""
    import fashion

    config = AutoModel.from_pretrained(folder).config
    splits = [data.select(range(examples)) for data in (fashion.train(), fashion.test())]
    table = Table("variant", "accuracy", title=f"{Path(folder).name} · side {side} · {examples} images")
    for name, (pixels, count) in settings(side, config.patch_size, config.num_hidden_layers).items():
        model = Merging(at_side(folder, pixels), count).eval()
        (known, labels), (asked, truth) = (features(model, split, pixels) for split in splits)
        nearest = np.argsort(-asked @ known.T, axis=1)[:, :NEIGHBOURS]
        guesses = [np.bincount(labels[row]).argmax() for row in nearest]
        table.add_row(name, f"{np.mean(guesses == truth):.3f}")
    Console().print(table)


def features(model: nn.Module, split: Any, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (images, channels) and labels."""
    vectors = []
    for row in split:
        image = row["image"].convert("RGB").resize((side, side), 3)
        pixels = (np.asarray(image, dtype=np.float32) / 255 - MEAN) / STD
        with torch.inference_mode():
            vectors.append(model(torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None])[0].numpy())
    stacked = np.stack(vectors)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True), np.array(split["label"])


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    timed, scored = commands.add_parser("latency"), commands.add_parser("accuracy")
    timed.add_argument("runtime", choices=["torch", "onnxruntime"])
    for each in (timed, scored):
        each.add_argument("model")
    timed.add_argument("--sides", type=int, nargs="+", default=(56, 112, 224, 336))
    timed.add_argument("--rounds", type=int, default=15)
    scored.add_argument("--side", type=int, default=112)
    scored.add_argument("--examples", type=int, default=800)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if arguments.what == "latency":
        latency(arguments.runtime, arguments.model, arguments.sides, arguments.rounds)
    else:
        accuracy(arguments.model, arguments.side, arguments.examples)


if __name__ == "__main__":
    main()
