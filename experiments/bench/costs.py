"""A million subnetworks: the time of analytic costs and a latency predictor on one core.

    python experiments/bench/costs.py
    python experiments/bench/costs.py --subnetworks 100000

A BERT of MiniLM-L6's shapes, every dimension open. The predictor is fitted on 100 computed latencies with noise; the
time of a prediction does not depend on the values.
"""

from __future__ import annotations

import argparse
import time
from random import Random

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from predictors import AnalyticCosts, DevicePeak, SubnetPredictor, Workload, roofline_ms
from predictors.costs.analytic import COST_NAMES
from search_spaces import Layout, SearchSpace

SHAPES = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
CHOICES = {
    "num_hidden_layers": [2, 3, 4, 5, 6],
    "num_attention_heads": [0, 2, 4, 6, 8, 10, 12],
    "intermediate_size": [0, 192, 384, 768, 1152, 1536],
    "hidden_size": [256, 320, 384],
    "attention_rank": [25, 50, 75, 100],
    "mlp_rank": [25, 50, 75, 100],
    "attention": ["local:16", "local:32", "full"],
    "scope": "per-layer",
}
FITTED = 100


def minilm() -> tuple[Layout, AnalyticCosts]:
    """Layout and costs of a random model of these shapes."""
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SHAPES))
    layout = Layout(model.config)
    return layout, AnalyticCosts.from_model(model, layout)


def fit_predictor(space: SearchSpace, costs: AnalyticCosts, workload: Workload) -> SubnetPredictor:
    """A predictor of a simulated device."""
    rng = Random(0)
    subnets = [space.sample(rng) for _ in range(FITTED)]
    macs = costs.count(["macs"], subnets, workload)["macs"]
    depth = np.array([subnet.num_hidden_layers for subnet in subnets])
    latency_ms = (0.5 + 0.3 * depth + macs / 4e7) * np.random.default_rng(0).normal(1, 0.02, FITTED)
    return SubnetPredictor.fit(space, subnets, latency_ms, workload, macs=macs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subnetworks", type=int, default=1_000_000)
    n = parser.parse_args().subnetworks
    torch.set_num_threads(1)
    (layout, costs), workload = minilm(), Workload()
    space = layout.search_space(CHOICES)
    predictor, peak = fit_predictor(space, costs, workload), DevicePeak.measure(workload)
    rng, choices = np.random.default_rng(0), [len(values) for values in space.parameters.values()]
    vectors = np.stack([rng.integers(0, size, n) for size in choices], axis=1)
    times = {}
    start = time.perf_counter()
    batch = space.parameters.to_batch(vectors)
    times["subnetworks from choices"] = time.perf_counter() - start
    start = time.perf_counter()
    results = costs.count(COST_NAMES, batch, workload)
    times[", ".join(COST_NAMES)] = time.perf_counter() - start
    start = time.perf_counter()
    results["roofline_ms"] = roofline_ms(costs, batch, workload, peak)
    times["roofline_ms"] = time.perf_counter() - start
    start = time.perf_counter()
    results["latency_ms"] = predictor.predict(batch)
    times[f"latency_ms ({predictor.report.model})"] = time.perf_counter() - start
    print(f"{n:,} of {space.size:.3g} subnetworks, one thread; {peak}")
    for name, seconds in times.items():
        print(f"{seconds:7.2f} s  {name}")
    print(f"{sum(times.values()):7.2f} s  in all")
    for name, values in results.items():
        print(f"{name:20} {values.min():12.4g} to {values.max():12.4g}")


if __name__ == "__main__":
    main()
