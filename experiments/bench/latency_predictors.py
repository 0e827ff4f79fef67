"""Latency predictors on published measurements: HAT (WMT14 en-de) and HW-GPT-Bench.

    python -m experiments.bench.latency_predictors FOLDER [--seeds 5] [--part hat|gpt-10|gpt-100|spaces|floor]

FOLDER holds ``hat_latency/hat_wmt14ende.csv.gz`` and ``hwgptbench/{archs,latency}.parquet``: the latency datasets of
github.com/mit-han-lab/hardware-aware-transformers (Wang et al., 2020) and github.com/automl/HW-GPT-Bench
(Sukthanker et al., 2024), as tables. Every value is the median over seeds and, for small samples, over four
samples for each. ``near`` is Kendall tau among pairs whose measured latencies lie within 5 % of each other. ``floor``
is the error of a model fitted on 8,000 measurements of a device.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product, zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from predictors import LatencyPredictor
from predictors.latency.errors import errors

SHIPPED = {"cpu_raspberrypi": 3.80, "cpu_xeon": 4.79, "gpu_titanxp": 5.91}
"""MAPE of the predictors that HAT ships, on all rows, including their training data."""
DEVICES_ROWS, TEST_ROWS = 2000, 2000
PAIRS = {
    "a6000": "v100",
    "cpu_alldlc": "cpu_mlgpu",
    "v100": "rtx2080",
    "a100": "a6000",
    "rtx2080": "P100",
    "cpu_mlgpu": "cpu_p100",
    "P100": "v100",
    "cpu_p100": "cpu_alldlc",
}
"""A new device -> the one that it is predicted from."""
DRAWS = 4
"""Samples of a new device for each seed."""

Predict = Callable[[np.ndarray], np.ndarray]
Score = dict[str, float]


def scores(measured: np.ndarray, predicted: np.ndarray) -> Score:
    """MAPE in percent, Kendall tau, and tau among near-equal pairs."""
    all_errors, rng = errors(measured, predicted), np.random.default_rng(0)
    first, second = rng.integers(0, len(measured), (2, 40_000))
    near = (np.abs(measured[first] / measured[second] - 1) < 0.05) & (measured[first] != measured[second])
    agreement = np.sign(measured[first] - measured[second]) * np.sign(predicted[first] - predicted[second])
    return {"MAPE %": all_errors.mape_percent, "tau": all_errors.kendall_tau, "near": float(agreement[near].mean())}


def line(x: np.ndarray, y: np.ndarray, column: int) -> Predict:
    """A straight line in one column, with the least squared relative error."""
    design = np.stack([np.ones(len(x)), x[:, column]], axis=1) / y[:, None]
    weights = np.linalg.lstsq(design, np.ones(len(x)), rcond=None)[0]
    return lambda other: weights[0] + weights[1] * other[:, column]


def ridge(x: np.ndarray, y: np.ndarray) -> Predict:
    """scikit-learn's ridge on features and their products, its strength by leave-one-out."""
    model = make_pipeline(PolynomialFeatures(2), StandardScaler(), RidgeCV(np.logspace(-4, 3, 15))).fit(x, y)
    return lambda other: np.maximum(model.predict(other), 1e-6)


def boosting(x: np.ndarray, y: np.ndarray) -> Predict:
    """scikit-learn's gradient boosting on the logarithm."""
    model = GradientBoostingRegressor(random_state=0).fit(x, np.log(y))
    return lambda other: np.exp(model.predict(other))


def hat_network(x: np.ndarray, y: np.ndarray) -> Predict:
    """The network of HAT: three hidden layers of 400, trained anew on scaled features and latencies."""
    shape = {"hidden_layer_sizes": (400, 400, 400), "learning_rate_init": 1e-3, "early_stopping": len(x) > 200}
    network = MLPRegressor(**shape, random_state=0)
    model, scale = make_pipeline(StandardScaler(), network), y.mean()
    model.fit(x, y / scale)
    return lambda other: np.maximum(model.predict(other) * scale, 1e-6)


BASELINES: dict[str, Callable[[np.ndarray, np.ndarray], Predict]] = {
    "ridge": ridge,
    "gradient boosting": boosting,
    "network of HAT's shape": hat_network,
}


def ours(x: np.ndarray, y: np.ndarray, prior: list[LatencyPredictor] | None = None) -> Predict:
    """`LatencyPredictor` with default arguments."""
    return LatencyPredictor.fit(x, y, prior=prior or ()).predict


def hat(folder: Path, seeds: int) -> pd.DataFrame:
    """HAT's own protocol: 80 % to fit (and 10 % to choose by, which cross-validation does not need), 10 % held out."""
    table = pd.read_csv(folder / "hat_latency" / "hat_wmt14ende.csv.gz")
    names = [n for n in table.columns if n.startswith(("encoder_", "decoder_"))]
    rows = []
    for device, of_device in table.groupby("device"):
        x, y = of_device[names].to_numpy(float), of_device["latency_total_ms"].to_numpy(float)
        if str(device) in SHIPPED:
            rows.append({"case": device, "model": "HAT as shipped", "MAPE %": SHIPPED[str(device)]})
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(y))
            train, test = order[: int(0.8 * len(y))], order[int(0.9 * len(y)) :]
            for name, fit in {"ours": ours, **BASELINES}.items():
                rows.append({"case": device, "model": name, **scores(y[test], fit(x[train], y[train])(x[test]))})
    return pd.DataFrame(rows)


class Gpt:
    """One space of HW-GPT-Bench: features, latencies of each device, operations."""

    COLUMNS = ("flops", "params", "embed_dim", "n_layer", "head_sum", "mlp_ratio_sum", "bias")

    def __init__(self, folder: Path, space: str) -> None:
        archs = pd.read_parquet(folder / "hwgptbench" / "archs.parquet").query("space == @space").set_index("arch_id")
        latency = pd.read_parquet(folder / "hwgptbench" / "latency.parquet").query("space == @space")
        self.latency = latency.pivot(index="arch_id", columns="device", values="lat_median_ms").reindex(archs.index)
        widths = archs["embed_dim"] * archs["mlp_ratio_sum"], archs["embed_dim"] * archs["n_layer"]
        table = archs[[*self.COLUMNS]].assign(ffn_sum=widths[0], width_sum=widths[1])
        self.features = table.to_numpy(float)
        layers = [np.array([*zip_longest(*archs[name], fillvalue=np.nan)]).T for name in ("n_head", "mlp_ratio")]
        self.layers = np.concatenate([self.features, *layers], axis=1)

    def split(self, seed: int, few: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Rows of the test set and of the source devices, and small samples of the new device."""
        order = np.random.default_rng(seed).permutation(len(self.features))
        test, source, rest = np.split(order, [TEST_ROWS, TEST_ROWS + DEVICES_ROWS])
        return test, source, np.split(rest[: DRAWS * few], DRAWS)


def gpt(folder: Path, seeds: int, few: int) -> pd.DataFrame:
    """A new device of space s with few samples, with and without the seven other devices as a prior."""
    space, rows = Gpt(folder, "s"), []
    x = space.features
    for seed in range(seeds):
        test, source, samples = space.split(seed, few)
        others = {d: LatencyPredictor.fit(x[source], space.latency[d].to_numpy(float)[source]) for d in space.latency}
        for device, new in product(space.latency, samples):
            y = space.latency[device].to_numpy(float)
            prior = [predictor for name, predictor in others.items() if name != device]
            predictors = {name: fit(x[new], y[new]) for name, fit in {"ours": ours, **BASELINES}.items()}
            predictors |= {
                "ours, other devices as a prior": ours(x[new], y[new], prior),
                "line in FLOPs": line(x[new], y[new], 0),
                f"ours, {DEVICES_ROWS} of the device itself": others[device].predict,
            }
            rows += [{"case": device, "model": n, **scores(y[test], p(x[test]))} for n, p in predictors.items()]
    return pd.DataFrame(rows)


def spaces(folder: Path, seeds: int) -> pd.DataFrame:
    """From space s to the larger m on the same device: the predictor of s as a prior and ten samples of m."""
    small, large, rows = Gpt(folder, "s"), Gpt(folder, "m"), []
    for seed in range(seeds):
        _, source, _ = small.split(seed, 10)
        test, _, samples = large.split(seed, 10)
        x = large.features
        for device in large.latency:
            y = large.latency[device].to_numpy(float)
            prior = LatencyPredictor.fit(small.features[source], small.latency[device].to_numpy(float)[source])
            for new in samples:
                predictors = {"ours, s as a prior": ours(x[new], y[new], [prior]), "ours": ours(x[new], y[new])}
                predictors |= {
                    "s only": prior.predict,
                    "line in FLOPs": line(x[new], y[new], 0),
                    "ridge": ridge(x[new], y[new]),
                }
                rows += [{"case": device, "model": n, **scores(y[test], p(x[test]))} for n, p in predictors.items()]
    return pd.DataFrame(rows)


def floor(folder: Path, seeds: int) -> pd.DataFrame:
    """Errors on 2,000 rows of boosted trees fitted on the other 8,000, with every layer's width as a column.

    Prints the correlation of the errors of consecutive rows; it would be zero if the errors only depended on the
    architectures.
    """
    space, rows = Gpt(folder, "s"), []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(space.layers))
        test, train = np.sort(order[:TEST_ROWS]), order[TEST_ROWS:]
        for device in space.latency:
            y = space.latency[device].to_numpy(float)
            trees = HistGradientBoostingRegressor(loss="absolute_error", learning_rate=0.05, max_iter=400)
            predicted = np.exp(trees.fit(space.layers[train], np.log(y[train])).predict(space.layers[test]))
            residuals = np.log(y[test] / predicted)
            correlation = np.corrcoef(residuals[1:], residuals[:-1])[0, 1]
            print(f"seed {seed} {device:12} correlation of an error with the one before: {correlation:.2f}")
            rows.append({"case": device, "model": "boosting, 8,000 of the device", **scores(y[test], predicted)})
    return pd.DataFrame(rows)


PARTS: dict[str, Callable[[Path, int], pd.DataFrame]] = {
    "hat": hat,
    "gpt-10": lambda folder, seeds: gpt(folder, seeds, 10),
    "gpt-100": lambda folder, seeds: gpt(folder, seeds, 100),
    "spaces": spaces,
    "floor": floor,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", choices=PARTS, action="append")
    arguments = parser.parse_args()
    for name in arguments.part or PARTS:
        rows = PARTS[name](arguments.folder, arguments.seeds)
        over_seeds = rows.groupby(["case", "model"])[["MAPE %", "tau", "near"]].median()
        print(f"\n{name}: median of {arguments.seeds} seeds")
        print(over_seeds["MAPE %"].unstack().round(2).to_string())
        print(over_seeds["near"].unstack().round(3).to_string())
        print(over_seeds.groupby("model").median().round(3).to_string())


if __name__ == "__main__":
    main()
