"""How often intervals of predicted latencies hold after 10 to 100 measurements, and ours against a ridge there.

    python -m experiments.bench.coverage FOLDER [--seeds 10] [--sizes 10 20 50 100]

FOLDER is that of ``latency_predictors.py``. Each seed takes one sample of each device of HW-GPT-Bench, alone and with
another device as a prior (beside that device times one factor), and one of MiniLM shapes whose latency is computed as
in ``active.py``, with widths searched and with every dimension. An interval should hold nine in ten further
measurements. Errors are MAPE in percent; ridges are scikit-learn's, on the features and on these and their products.
``ours / ...`` are geometric means; ``worse`` counts samples.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from experiments.bench.active import LAUNCH_MS, NOISE, PEAK, SPACES
from experiments.bench.costs import minilm
from experiments.bench.latency_predictors import PAIRS, TEST_ROWS, Gpt, Predict, ridge
from predictors import LatencyPredictor, Workload, roofline_ms
from predictors.latency.errors import errors
from predictors.latency.features import feature_names, features
from predictors.latency.transfer import ScaledPrior, SourceDevices

PRIOR_ROWS = 100
"""Measurements of the device that is a prior."""


def linear_ridge(x: np.ndarray, y: np.ndarray) -> Predict:
    """scikit-learn's ridge on features, its strength by leave-one-out."""
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-4, 3, 15))).fit(x, y)
    return lambda other: np.maximum(model.predict(other), 1e-6)


def score(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, **options: Any) -> dict[str, float]:
    """The share of the test rows inside, our error and those of ridges, after a fit of the training rows."""
    predictor = LatencyPredictor.fit(x[train], y[train], **options)
    inside = np.abs(y[test] - predictor.predict(x[test])) <= predictor.spread_ms(x[test])
    fits = {
        "ours": predictor.predict,
        "ridge": linear_ridge(x[train], y[train]),
        "products": ridge(x[train], y[train]),
    }
    if "prior" in options:
        device: LatencyPredictor = options["prior"]
        fits["scaled"] = ScaledPrior(SourceDevices([device.predict], device.features)).fit(x[train], y[train]).predict
    found = {name: errors(y[test], predict(x[test])).mape_percent for name, predict in fits.items()}
    return {"inside": float(inside.mean()), **found}


def devices(folder: Path, sizes: list[int], seeds: int) -> Iterator[dict[str, Any]]:
    """Devices that others measured, alone and with another one as a prior."""
    space = Gpt(folder, "s")
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(space.features))
        test, prior_rows, rest = np.split(order, [TEST_ROWS, TEST_ROWS + PRIOR_ROWS])
        for device, other in PAIRS.items():
            y, other_ms = (space.latency[name].to_numpy(float) for name in (device, other))
            prior = LatencyPredictor.fit(space.features[prior_rows], other_ms[prior_rows])
            for size in sizes:
                alone = score(space.features, y, rest[:size], test)
                yield {"case": device, "kind": "devices", "size": size, **alone}
                with_prior = score(space.features, y, rest[:size], test, prior=prior) | {"alone": alone["ours"]}
                yield {"case": device, "kind": "devices, prior", "size": size, **with_prior}


def shapes(sizes: list[int], seeds: int) -> Iterator[dict[str, Any]]:
    """MiniLM shapes whose latencies are computed."""
    (layout, costs), workload = minilm(), Workload()
    for label, choices in SPACES.items():
        space, rng = layout.search_space(choices), Random(0)
        subnets = list({s.key: s for s in (space.sample_mixed(rng) for _ in range(3000))}.values())
        launches = LAUNCH_MS * np.array([subnet.num_hidden_layers for subnet in subnets])
        exact = 0.5 + launches + roofline_ms(costs, subnets, workload, PEAK)
        x, names = features(space, subnets), feature_names(space)
        for seed in range(seeds):
            random = np.random.default_rng(seed)
            y, order = exact * random.normal(1, NOISE, len(exact)), random.permutation(len(exact))
            for size in sizes:
                found = score(x, y, order[:size], order[-TEST_ROWS // 2 :], names=names)
                yield {"case": label, "kind": f"shapes, {label}", "size": size, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20, 50, 100])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--part", choices=("devices", "shapes"), action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    parts = arguments.part or ["devices", "shapes"]
    rows = list[dict[str, Any]]()
    if "shapes" in parts:
        rows += shapes(arguments.sizes, arguments.seeds)
    if "devices" in parts:
        rows += devices(arguments.folder, arguments.sizes, arguments.seeds)
    table = pd.DataFrame(rows)
    rivals = [name for name in ("ridge", "products", "scaled", "alone") if name in table]
    ratios = table[rivals].rdiv(table["ours"], axis=0).map(np.log).add_prefix("ours / ")
    worse = (ratios > np.log(1.001)).where(ratios.notna()).add_prefix("worse: ")
    table = table.join(ratios).join(worse.astype(float))
    for keys in (["kind", "size"], ["kind", "case", "size"]):
        groups = table.groupby(keys)
        means = groups[["inside", "ours", *rivals, *ratios]].mean()
        means[[*ratios]] = np.exp(means[[*ratios]])  # geometric means
        print(means.join(groups[[*worse]].sum()).round(3).to_string())


if __name__ == "__main__":
    main()
