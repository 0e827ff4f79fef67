"""Active learning: near a bound on the latency, selected subnetworks give a better predictor than random ones."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
from test_latency_predictor import SPACE as WIDTHS

from nas.pipeline import profile
from nas.recipe.schema import Recipe
from predictors.latency.active_learning import most_uncertain
from predictors.latency.features import features
from predictors.latency.predictor import held_out_rows
from predictors.latency.regressions import LogGaussianProcess
from search_spaces import SearchSpace, SubnetConfig

SPACE = SearchSpace(**{**WIDTHS.arguments(), "hidden_size": [256, 320, 384]})
BOUND = 8.0


def true_latency(subnet: SubnetConfig) -> float:
    """Milliseconds by a roofline: in each layer the longer of arithmetic and traffic, and a launch."""
    per_layer = zip(subnet.num_attention_heads, subnet.intermediate_size, strict=True)
    terms = [(128 * h + 2 * u) * subnet.hidden_size / 1.5e6 for h, u in per_layer]
    return 0.5 + sum(0.3 + max(3 * w, 0.5 + w) for w in terms)


def sample(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = Random(seed)
    subnets = [SPACE.sample_mixed(rng) for _ in range(n)]
    noise = np.random.default_rng(seed).normal(1, 0.01, n)
    return features(SPACE, subnets), np.array([true_latency(s) for s in subnets]) * noise


def error_near(rows: list[int], x: np.ndarray, y: np.ndarray, near: np.ndarray) -> float:
    """Mean relative error near the bound of a Gaussian process that is fitted on some rows."""
    predicted = LogGaussianProcess().fit(x[rows], y[rows]).predict(x[near])
    return float(np.mean(np.abs(predicted / y[near] - 1)))


def test_near_the_bound_selected_measurements_are_worth_more_than_random_ones() -> None:
    ratios = []
    for seed in range(4):
        x, y = sample(700, seed)
        near = 400 + np.flatnonzero(np.abs(y[400:] / BOUND - 1) < 0.2)
        random, selected = list(range(20)), list(range(20))
        for start in (20, 140):
            random += range(start, start + 10)
            pool = np.arange(start, start + 120)
            selected += pool[most_uncertain(x[selected], y[selected], x[pool], 10, bound_ms=BOUND)].tolist()
        assert len(set(selected)) == 40
        ratios.append(error_near(selected, x, y, near) / error_near(random, x, y, near))
    assert np.exp(np.mean(np.log(ratios))) < 0.9


def test_actively_selected_rows_are_never_held_out() -> None:
    test, train = held_out_rows(60, 30, seed=0)
    assert len(test) == 12 and test.max() < 30
    assert sorted([*test, *train]) == list(range(60))
    few, _ = held_out_rows(60, 56, seed=0)
    assert len(few) == 2 and few.max() < 4


@pytest.mark.slow
def test_a_bounded_latency_is_profiled_near_the_bound_and_resumes_alike(text_recipe: Path, tmp_path: Path) -> None:
    overrides = ["parent.epochs=0.1", "supernet.epochs=0.1", "profile.samples=12", "constraints.latency_ms='<= 1'"]
    recipe, run = Recipe.load(text_recipe, overrides), tmp_path / "run"
    predictor = profile(recipe, run)
    assert (predictor.report.n_active, predictor.report.bound_ms) == (6, 1.0)
    assert len({subnet.key for subnet in predictor.subnets}) == 12
    rows = (run / "measurements.jsonl").read_bytes().splitlines(keepends=True)
    (run / "measurements.jsonl").write_bytes(b"".join(rows[:-1]))
    (run / "predictor" / "predictor.json").unlink()
    assert profile(recipe, run).subnets == predictor.subnets
