"""Which subnetworks to measure: half of sixty sampled and half chosen near a bound, beside all sixty sampled.

    python -m experiments.bench.active [--seeds 6]

Latencies of MiniLM shapes by a law: two ceilings, a launch for each layer, 2 % of noise. The bound is their 20th
percentile, near it is within 20 %; errors are of the exact latency.
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
from predictors.measurement.measure import GROUP_SIZE

WIDTHS = ("num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_size", "scope")
SPACES = {"widths": {name: CHOICES[name] for name in WIDTHS}, "all dimensions": CHOICES}
CEILINGS, LAUNCH_MS, NOISE = DevicePeak(6e10, 1e10), 0.15, 0.02
SAMPLED, MEASURED, POOL, TESTED = 30, 60, 256, 1500
SHOWN = ("additive", "work", "gaussian-process")


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
        exact = 0.5 + launches + roofline_ms(costs, subnets, workload, CEILINGS)
        x, names = features(space, subnets), feature_names(space)
        found = [compared(x, exact, names, seed) for seed in range(seeds)]
        for key in found[0]:
            everywhere, near = np.median([scores[key] for scores in found], axis=0)
            print(f"{label}, {' '.join(key):28} all {everywhere:5.2f} %  near the bound {near:5.2f} %", flush=True)


def compared(
    x: np.ndarray, exact: np.ndarray, names: tuple[str, ...], seed: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """Model and way of choosing -> mean errors in percent, of all and near the bound."""
    rng = np.random.default_rng(seed)
    latency_ms, order = exact * rng.normal(1, NOISE, len(exact)), rng.permutation(len(exact))
    bound, test = np.percentile(exact, 20), order[:TESTED]
    near, scores = np.abs(exact[test] / bound - 1) <= 0.2, {}
    for way in ("sampled", "chosen"):
        rows, start = list(order[TESTED : TESTED + SAMPLED]), TESTED + MEASURED
        while len(rows) < MEASURED:
            count, pool = min(GROUP_SIZE, MEASURED - len(rows)), order[start : start + POOL]
            if way == "chosen":
                pool = pool[most_uncertain(x[rows], latency_ms[rows], x[pool], count, bound_ms=bound)]
            rows, start = [*rows, *pool[:count]], start + POOL
        for name in SHOWN:
            predicted = MODELS[name](names).fit(x[rows], latency_ms[rows]).predict(x[test])
            error = np.abs(predicted / exact[test] - 1) * 100
            scores[name, way] = float(error.mean()), float(error[near].mean())
    return scores


if __name__ == "__main__":
    main()
