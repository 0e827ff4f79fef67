"""Active learning: thirty measurements sampled and thirty selected near a bound, compared with sixty sampled.

    python -m experiments.bench.active [--seeds 6]

Latencies of MiniLM shapes are computed: a roofline, a launch time for each layer, and 2 % of noise. The bound is their
20th percentile; near means within 20 % of it. Errors are relative to the latency without noise.
"""

from __future__ import annotations

import argparse
from random import Random

import numpy as np
import torch

from experiments.bench.costs import CHOICES, minilm
from predictors import MODELS, DevicePeak, Workload, roofline_ms
from predictors.latency.active_learning import most_uncertain
from predictors.latency.features import feature_names, features

WIDTHS = ("num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_size", "scope")
SPACES = {"widths": {name: CHOICES[name] for name in WIDTHS}, "all dimensions": CHOICES}
PEAK, LAUNCH_MS, NOISE = DevicePeak(6e10, 1e10), 0.15, 0.02
SAMPLED, MEASURED, CANDIDATES, TESTED = 30, 60, 256, 1500
GROUP_SIZE = 8
MODEL_NAMES = ("additive", "work", "gaussian-process")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    (layout, costs), workload = minilm(), Workload()
    for label, choices in SPACES.items():
        space, rng = layout.search_space(choices), Random(0)
        subnets = list({s.key: s for s in (space.sample_mixed(rng) for _ in range(6000))}.values())
        launches = LAUNCH_MS * np.array([subnet.num_hidden_layers for subnet in subnets])
        exact = 0.5 + launches + roofline_ms(costs, subnets, workload, PEAK)
        x, names = features(space, subnets), feature_names(space)
        scores = [compare(x, exact, names, seed) for seed in range(seeds)]
        for key in scores[0]:
            everywhere, near = np.median([of_seed[key] for of_seed in scores], axis=0)
            print(f"{label}, {' '.join(key):28} all {everywhere:5.2f} %  near the bound {near:5.2f} %", flush=True)


def compare(
    x: np.ndarray, exact: np.ndarray, names: tuple[str, ...], seed: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """(Model, strategy) -> mean errors in percent, of all and near the bound."""
    rng = np.random.default_rng(seed)
    latency_ms, order = exact * rng.normal(1, NOISE, len(exact)), rng.permutation(len(exact))
    bound, test = np.percentile(exact, 20), order[:TESTED]
    near, scores = np.abs(exact[test] / bound - 1) <= 0.2, {}
    for strategy in ("sampled", "selected"):
        rows, start = list(order[TESTED : TESTED + SAMPLED]), TESTED + MEASURED
        while len(rows) < MEASURED:
            count, candidates = min(GROUP_SIZE, MEASURED - len(rows)), order[start : start + CANDIDATES]
            if strategy == "selected":
                candidates = candidates[
                    most_uncertain(x[rows], latency_ms[rows], x[candidates], count, bound_ms=bound)
                ]
            rows, start = [*rows, *candidates[:count]], start + CANDIDATES
        for name in MODEL_NAMES:
            predicted = MODELS[name](names).fit(x[rows], latency_ms[rows]).predict(x[test])
            error = np.abs(predicted / exact[test] - 1) * 100
            scores[name, strategy] = float(error.mean()), float(error[near].mean())
    return scores


if __name__ == "__main__":
    main()
