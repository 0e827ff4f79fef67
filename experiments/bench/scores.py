"""What the standard error of a score costs: CPU seconds of the resamples of one score, by metric and examples.

    python -m experiments.bench.scores [--seeds 10]

Each seed has random labels and logits that are right more often than not. Medians over seeds.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from nas.tasks.bootstrap import resampled
from nas.tasks.metrics import Metric, accuracy, binary_f1, macro_f1, matthews_correlation
from nas.tasks.own_metrics import load_metric

CASES: dict[str, tuple[Metric, int, int]] = {
    "accuracy, 2 classes": (accuracy, 1000, 2),
    "accuracy, 1,000 classes": (accuracy, 1000, 1000),
    "f1, 2 classes": (binary_f1, 1000, 2),
    "macro_f1, 77 classes": (macro_f1, 1000, 77),
    "matthews_correlation, 2 classes": (matthews_correlation, 1000, 2),
    "scikit-learn's balanced accuracy": (load_metric("sklearn.metrics:balanced_accuracy_score"), 1000, 2),
}
"""Name -> metric, examples, classes."""


def examples(n: int, classes: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Statistics of random examples, as a classification task returns them."""
    labels, logits = rng.integers(0, classes, n), rng.normal(size=(n, classes))
    logits[np.arange(n), labels] += 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    predicted = {"predictions": logits.argmax(1), "probabilities": probabilities}
    return {"labels": labels, "logits": logits, "loss": rng.random(n), "n_scored": np.ones(n), **predicted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    print("| | examples | CPU s |\n|---|---|---|")
    for name, (metric, n, classes) in CASES.items():
        seconds = []
        for seed in range(seeds):
            stats = examples(n, classes, np.random.default_rng(seed))
            start = time.process_time()
            resampled(metric, stats)
            seconds.append(time.process_time() - start)
        print(f"| {name} | {n} | {np.median(seconds):.3f} |", flush=True)


if __name__ == "__main__":
    main()
