"""Fewer tokens in a model of long texts: merged, dropped or pooled between layers, beside sparse attention.

    python -m experiments.bench.text_tokens MINILM TRAIN.parquet TEST.parquet [--seeds 0 1 2] [--rounds 5]
        [--texts 30] [--together]

MINILM is the folder of all-MiniLM-L6-v2; the tables have columns `text` and `label`. Texts have at least 512 tokens
and are cut there. Nothing is trained but a logistic regression on the whole model's vectors (means of the last hidden
states) of other texts. Quality is its accuracy on the vectors of each variant, and their cosine with those of the
whole model. Time is that of the encoder over the whole one's, one thread, batch 1, medians over interleaved rounds. A
seed draws the texts.

Merging is that of `image_tokens.py` (ToMe, Bolya et al. 2023). Dropping keeps the tokens that receive most attention
(PoWER-BERT, Goyal et al. 2020, arXiv 2001.08950, without its training). Pooling averages neighbours once (compare
Funnel-Transformer, Dai et al. 2020, arXiv 2006.03236). Windows are those of the dimension `attention`; a shorter text
is `task.max_length`. With `--together`, windows, merging and shorter texts are one space, whose combinations are all
evaluated; rows are then in the order of time, and ● marks those that no faster one is nearer than.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from experiments.bench.image_tokens import merged
from nas.supernets.supernet import Supernet
from predictors import Workload, measure
from predictors.measurement.timing import REFERENCE
from search_spaces import SubnetConfig

TOKENS = 512


@dataclass(frozen=True)
class Variant:
    """What is done with the tokens.

    Attributes:
        length: Tokens of a text.
        merge: Pairs that each layer merges.
        drop: Tokens that each layer drops.
        pool: The layer after which neighbours are averaged.
        attention: Pattern of all layers.
    """

    length: int = TOKENS
    merge: int = 0
    drop: int = 0
    pool: int | None = None
    attention: str = "full"


VARIANTS = {
    "whole": Variant(),
    "text of 384 tokens": Variant(length=384),
    "text of 256 tokens": Variant(length=256),
    "local:64": Variant(attention="local:64"),
    "local:32": Variant(attention="local:32"),
    "merging 40 a layer": Variant(merge=40),
    "dropping 40 a layer": Variant(drop=40),
    "pooling after layer 1": Variant(pool=0),
}
PATTERNS, MERGED, LENGTHS = ("full", "local:64", "local:32"), (0, 20, 40), (512, 448, 384)
TOGETHER = {
    f"{pattern}, merging {merge}, {length} tokens": Variant(length, merge, attention=pattern)
    for pattern, merge, length in product(PATTERNS, MERGED, LENGTHS)
}
TOGETHER = {"whole": TOGETHER.pop("full, merging 0, 512 tokens"), **TOGETHER}


class Encoder(nn.Module):
    """A BERT that returns one unit vector a text."""

    def __init__(self, model: Any, variant: Variant) -> None:
        super().__init__()
        self.model, self.variant = model, variant

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, channels) of (batch, tokens) without padding."""
        hidden = self.model.embeddings(input_ids=ids[:, : self.variant.length])
        sizes = torch.ones_like(hidden[..., :1])
        for number, layer in enumerate(self.model.encoder.layer):
            attended = layer.attention(hidden)[0]
            if self.variant.merge:
                attended, sizes = merged(attended, sizes, self.variant.merge)
            if self.variant.drop:
                kept = received(layer.attention.self, hidden).argsort(-1)[:, self.variant.drop :].sort(-1).values
                attended = attended.gather(1, kept[..., None].expand(-1, -1, attended.shape[-1]))
                sizes = sizes.gather(1, kept[..., None])
            hidden = layer.feed_forward_chunk(attended)
            if number == self.variant.pool:
                hidden, sizes = hidden.unflatten(1, (-1, 2)).mean(2), sizes.unflatten(1, (-1, 2)).sum(2)
        return normalize((hidden * sizes).sum(1) / sizes.sum(1), dim=-1)


def received(attention: Any, hidden: Tensor) -> Tensor:
    """(batch, tokens) attention that each token receives from all, over all heads; the first token stays."""
    query, key = (
        linear(hidden).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
        for linear in (attention.query, attention.key)
    )
    total = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1).sum((1, 2))
    total[:, 0] = math.inf
    return total


def encoders(folder: str, variants: Mapping[str, Variant]) -> dict[str, Encoder]:
    """Name -> encoder; those of one attention pattern share their weights."""
    parent = AutoModel.from_pretrained(folder).eval()
    config = parent.config
    widths = {name: getattr(config, name) for name in ("num_attention_heads", "intermediate_size", "hidden_size")}
    layers = tuple(range(config.num_hidden_layers))
    supernet = Supernet(AutoModel.from_pretrained(folder).eval())
    patterns = {each.attention for each in variants.values()} - {"full"}
    models = {p: supernet.extract(SubnetConfig.uniform(layers, **widths, attention=p)).eval() for p in patterns}
    return {name: Encoder(models.get(v.attention, parent), v).eval() for name, v in variants.items()}


def long_texts(file: Path, tokenizer: Any, count: int, seed: int) -> tuple[list[Tensor], np.ndarray]:
    """Tokens of shape (1, 512), and labels."""
    found: list[Tensor] = []
    labels: list[int] = []
    for row in pd.read_parquet(file, columns=["text", "label"]).sample(frac=1, random_state=seed).itertuples():
        ids = tokenizer(row.text, truncation=True, max_length=TOKENS, return_tensors="pt").input_ids
        if ids.shape[1] == TOKENS:
            found.append(ids)
            labels.append(row.label)
        if len(found) == count:
            break
    return found, np.array(labels)


@torch.inference_mode()
def vectors(encoder: Encoder, texts: list[Tensor]) -> np.ndarray:
    """(texts, channels)."""
    return torch.cat([encoder(ids) for ids in texts]).numpy()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=30, help="Of a seed; twice as many to learn from.")
    parser.add_argument("--together", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    variants = TOGETHER if arguments.together else VARIANTS
    models, tokenizer = encoders(arguments.model, variants), AutoTokenizer.from_pretrained(arguments.model)
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for seed in arguments.seeds:
        known, labels = long_texts(arguments.train, tokenizer, 2 * arguments.texts, seed)
        asked, truth = long_texts(arguments.test, tokenizer, arguments.texts, seed)
        probe = LogisticRegression(C=10, max_iter=1000).fit(vectors(models["whole"], known), labels)
        whole = vectors(models["whole"], asked)
        for name, model in models.items():
            found = vectors(model, asked)
            scores[name].append((float((probe.predict(found) == truth).mean()), float((found * whole).sum(1).mean())))
            print(seed, name, scores[name][-1], flush=True)
    ids = known[0]
    calls = {name: (lambda m=model: m(ids)) for name, model in models.items() if name != "whole"}
    with torch.inference_mode():
        timings = measure(
            calls, lambda: models["whole"](ids), Workload(sequence_length=TOKENS), rounds=arguments.rounds
        )
    title = f"{TOKENS} tokens · whole {timings[REFERENCE].latency_ms:.0f} ms · {arguments.texts} texts a seed"
    table = Table("variant", "time", "accuracy", "cosine with the whole", title=title)
    ratios = {name: timings[name].ratio if name in calls else 1.0 for name in scores}
    nearest = 0.0
    for name in sorted(scores, key=ratios.__getitem__) if arguments.together else scores:
        values = scores[name]
        mean, error = np.mean(values, 0), np.std(values, 0, ddof=1) / len(values) ** 0.5
        cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(mean, error, strict=True)]
        mark = " ●" if arguments.together and mean[1] > nearest else ""
        nearest = max(nearest, mean[1])
        table.add_row(name + mark, f"{ratios[name]:.2f}", *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
