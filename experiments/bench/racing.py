"""Racing: how often an evaluation as good as the front is stopped, on real texts whose difficulty depends on length.

    python -m experiments.bench.racing FOLDER [--seeds 10]

FOLDER has a folder for each data set: ``sst2``, ``cola``, ``rte``, ``banking77``, ``clinc150`` and ``imdb``, each with
``train.parquet``, and those of `BLOCKS`. A classifier on words (TF-IDF, logistic regression) is fitted on two fifths
of up to 5,000 texts; of texts without labels, a model of pairs of letters on two fifths of the blocks, with its
negative loss in place of the accuracy. Each of 100 draws of a seed takes 1,000 of the other texts, or half of them, as
a search slice, and a rival with the accuracy on this slice and the same cost. ``by length`` is the order of batches
before issue 25: sorted by length, then van der Corput's order; ``fair`` is that of `nas.tasks.slices.fair_batches`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from nas.studies.racing import MIN_EXAMPLES, EarlyStopping, stopping_width
from nas.tasks.slices import fair_batches, slice_ends, van_der_corput_order

TEXTS = {
    "sst2": ("sentence", "label"),
    "cola": ("sentence", "label"),
    "rte": ("sentence2", "label"),
    "banking77": ("text", "label"),
    "clinc150": ("text", "label"),
    "imdb": ("text", "label"),
}
"""Data set -> its columns of texts and labels."""
BLOCKS = {"tinyshakespeare": "input.txt", "wikitext2_valid_test": "valid.txt"}
"""Data set of a language model -> its file."""
BLOCK = 128
"""Letters of a block."""
MOST, BATCH, SLICE, DRAWS, CONFIDENCE = 5000, 64, 1000, 100, 0.99

Batches = Callable[[Sequence[int], int], list[list[int]]]


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Batches of examples of similar length, the first few of which cover the lengths evenly."""
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    return [groups[number] for number in van_der_corput_order(len(groups))]


ORDERS: dict[str, Batches] = {"by length": by_length, "fair": fair_batches}


def answers(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Whether each text that a classifier has not seen is right (n,), and its words (n,)."""
    text, label = TEXTS[name]
    table = pd.read_parquet(folder / name / "train.parquet")
    table = table.sample(min(len(table), MOST), random_state=0)
    texts, labels = table[text].astype(str).tolist(), table[label].to_numpy()
    end = 2 * len(texts) // 5
    words = TfidfVectorizer(min_df=2).fit(texts[:end])
    model = LogisticRegression(C=3, max_iter=100).fit(words.transform(texts[:end]), labels[:end])
    right = model.predict(words.transform(texts[end:])) == labels[end:]
    return right.astype(float), np.array([len(each.split()) for each in texts[end:]])


def likelihoods(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The negative loss on each block that a model of pairs of letters has not seen (n,), and its letters (n,)."""
    letters = np.frombuffer((folder / name / BLOCKS[name]).read_bytes(), dtype=np.uint8).astype(int)
    blocks = letters[: len(letters) // BLOCK * BLOCK].reshape(-1, BLOCK)
    blocks = np.random.default_rng(0).permutation(blocks)[:MOST]
    end, counts = 2 * len(blocks) // 5, np.full((256, 256), 0.01)
    np.add.at(counts, (blocks[:end, :-1], blocks[:end, 1:]), 1)
    likelihood = np.log(counts / counts.sum(1, keepdims=True))[blocks[end:, :-1], blocks[end:, 1:]].mean(1)
    return likelihood, np.full(len(likelihood), BLOCK)


def is_stopped(right: np.ndarray, batches: Sequence[Sequence[int]]) -> bool:
    """Whether the evaluation is stopped whose rival is as good on all these examples (n,)."""
    front, costs = np.array([[-right.mean(), 1.0]]), {"latency_ms": 1.0}
    stopping = EarlyStopping(
        {"accuracy": "maximize", "latency_ms": "minimize"}, {}, costs, front, stopping_width(CONFIDENCE)
    )
    for end in slice_ends(len(batches))[:-1]:
        part = right[[number for batch in batches[:end] for number in batch]]
        if len(part) < MIN_EXAMPLES:
            continue
        score = (float(part.mean()), float(part.std(ddof=1)) / len(part) ** 0.5)
        if stopping.cannot_reach_front({"accuracy": score}, len(part) / len(right)):
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    arguments = parser.parse_args()
    heads = ("", "accuracy", "shortest sixth", "longest sixth", *(f"stopped, {order}" for order in ORDERS))
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in (*TEXTS, *BLOCKS):
        right, lengths = (answers if name in TEXTS else likelihoods)(arguments.folder, name)
        sixth = np.array_split(right[np.argsort(lengths, kind="stable")], 6)
        stopped = {order: list[bool]() for order in ORDERS}
        for seed in range(arguments.seeds):
            rng = np.random.default_rng(seed)
            for _ in range(DRAWS):
                rows = rng.choice(len(right), min(SLICE, len(right) // 2), replace=False)
                for order, make in ORDERS.items():
                    stopped[order].append(is_stopped(right[rows], make(lengths[rows].tolist(), BATCH)))
        shares = " | ".join(f"{np.mean(each):.1%}" for each in stopped.values())
        print(
            f"| {name} | {right.mean():.3f} | {sixth[0].mean():.3f} | {sixth[-1].mean():.3f} | {shares} |", flush=True
        )


if __name__ == "__main__":
    main()
