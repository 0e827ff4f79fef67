"""The surrogate sampler in plain Optuna studies: better than random, deterministic, resumable, honest about bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from nas.nsga2 import crowding_distance, nsga2, survivors
from nas.pareto import hypervolume, non_dominated
from nas.sampler import PlainProblem, SurrogateSampler, choices_of, greedy_batch
from predictors.surrogate import SURROGATES, best_surrogate, cross_validated_errors

LAYERS = 5
SPACE: dict[str, BaseDistribution] = {
    name: distribution
    for i in range(LAYERS)
    for name, distribution in (
        (f"width{i}", IntDistribution(1, 8)),
        (f"kept{i}", CategoricalDistribution((False, True))),
    )
}
GAIN = np.random.default_rng(0).gamma(2.0, 1.0, LAYERS)


def objectives(params: Mapping[str, Any]) -> tuple[float, float]:
    """A quality to minimise with falling returns and interactions, and a cost."""
    used = np.array([np.sqrt(params[f"width{i}"] / 8) * params[f"kept{i}"] for i in range(LAYERS)])
    cost = sum((2 + params[f"width{i}"]) * params[f"kept{i}"] for i in range(LAYERS))
    return float(np.exp(-(used @ GAIN + used[:-1] @ used[1:]) / 5)), float(cost)


class Known(PlainProblem):
    """The cost is known, and so is a bound on it."""

    def known(self, params: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        costs = np.array([objectives(p)[1] for p in params])
        return np.stack([np.full(len(params), np.nan), costs], axis=1), np.maximum(costs - 30, 0)


def run(sampler: optuna.samplers.BaseSampler, trials: int, study: optuna.Study | None = None) -> optuna.Study:
    study = study or optuna.create_study(directions=["minimize", "minimize"])
    study.sampler = sampler
    for _ in range(trials):
        trial = study.ask(SPACE)
        study.tell(trial, objectives(trial.params))
    return study


def volume(study: optuna.Study) -> float:
    return hypervolume(np.array([trial.values for trial in study.trials]), np.array([1.1, 55.0]))


def params(study: optuna.Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def test_it_beats_random_search() -> None:
    ours = run(SurrogateSampler(SPACE, seed=0), 60)
    randoms = [volume(run(optuna.samplers.RandomSampler(seed=seed), 60)) for seed in range(5)]
    assert volume(ours) > max(randoms)
    known = run(SurrogateSampler(SPACE, Known(SPACE, 2), seed=0), 60)
    assert volume(known) > max(randoms)


def test_the_same_seed_gives_the_same_trials_and_an_interrupted_study_goes_on_as_it_would_have() -> None:
    whole = run(SurrogateSampler(SPACE, seed=3), 45)
    halves = run(SurrogateSampler(SPACE, seed=3), 27)
    halves = run(SurrogateSampler(SPACE, seed=3), 18, halves)
    assert params(whole) == params(halves)
    assert params(whole) != params(run(SurrogateSampler(SPACE, seed=4), 45))


def test_nothing_is_proposed_twice_even_with_many_in_flight() -> None:
    study = run(SurrogateSampler(SPACE, seed=0), 24)
    in_flight = [study.ask(SPACE) for _ in range(12)]
    problem = PlainProblem(SPACE, 2)
    keys = [problem.key(p) for p in (*params(study)[:24], *(t.params for t in in_flight))]
    assert len(set(keys)) == len(keys)


def test_a_known_bound_is_respected() -> None:
    study = run(SurrogateSampler(SPACE, Known(SPACE, 2), seed=0), 50)
    assert all(trial.values[1] <= 30 for trial in study.trials)


def test_a_maximised_objective_is_the_minimised_one_with_its_sign() -> None:
    up = optuna.create_study(directions=["maximize", "minimize"], sampler=SurrogateSampler(SPACE, seed=0))
    for _ in range(40):
        trial = up.ask(SPACE)
        quality, cost = objectives(trial.params)
        up.tell(trial, (-quality, cost))
    assert params(up) == params(run(SurrogateSampler(SPACE, seed=0), 40))


def test_constraints_that_are_not_known_are_learned() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=SurrogateSampler(SPACE, seed=0))
    for _ in range(48):
        trial = study.ask(SPACE)
        quality, cost = objectives(trial.params)
        trial.set_constraint("quality", quality - 0.2)
        study.tell(trial, (quality, cost))
    feasible = [all(v <= 0 for v in trial.constraints.values()) for trial in study.trials]
    assert sum(feasible[:24]) <= 6 and sum(feasible[24:]) >= 14


def test_unordered_choices_get_a_column_each() -> None:
    space: dict[str, BaseDistribution] = {
        "kind": CategoricalDistribution(("a", "b", "c")),
        "n": IntDistribution(2, 6, step=2),
    }
    features = PlainProblem(space, 2).features([{"kind": "b", "n": 4}, {"kind": "c", "n": 2}])
    assert features.tolist() == [[0, 1, 0, 0.5], [0, 0, 1, 0]]
    with pytest.raises(ValueError, match="integer and categorical"):
        choices_of(FloatDistribution(0, 1))


def test_the_inner_search_finds_the_front_of_a_small_space() -> None:
    grid = np.array(list(product(range(6), repeat=3)))

    def evaluate(genomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = genomes / 5
        costs = np.stack([x.sum(1), ((1 - x) ** 2).sum(1) + 0.3 * x[:, 0] * x[:, 1]], axis=1)
        return costs, np.maximum(genomes[:, 2] - 4, 0).astype(float)

    _, found, violations = nsga2(
        evaluate, np.array([6, 6, 6]), start=grid[:0], population=20, generations=40, rng=np.random.default_rng(0)
    )
    costs, bad = evaluate(grid)
    best = {tuple(c) for c in costs[bad <= 0][non_dominated(costs[bad <= 0])]}
    mine = found[violations <= 0]
    assert {tuple(c) for c in mine[non_dominated(mine)]} == best


def test_survivors_prefer_feasible_then_rank_then_space() -> None:
    costs = np.array([[0.0, 4.0], [1.0, 1.0], [4.0, 0.0], [2.0, 2.0], [0.0, 0.0]])
    order, rank, _ = survivors(costs, np.array([0, 0, 0, 0, 1.0]), 5)
    assert order.tolist()[-2:] == [3, 4] and rank.tolist() == [0, 0, 0, 1, 2]
    assert np.isinf(crowding_distance(costs[:3])[[0, 2]]).all()


def test_a_batch_spreads_over_the_gap() -> None:
    front = np.array([[0.0, 1.0], [1.0, 0.0]])
    candidates = np.array([[0.5, 0.5], [0.51, 0.5], [0.1, 0.8], [0.95, 0.02]])
    assert greedy_batch(candidates, front, 2)[0] == 0 and 1 not in greedy_batch(candidates, front, 3)


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates_learn_a_line_and_know_where_they_are_unsure(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((80, 4))
    y = x @ [1.0, -2.0, 0.5, 0.0] + rng.normal(0, 0.02, 80)
    model = SURROGATES[name]().fit(x, y)
    mean, deviation = model.predict(x)
    assert np.corrcoef(mean, y)[0, 1] > 0.95 and (deviation >= 0).all()
    assert np.array_equal(SURROGATES[name]().fit(x, y).predict(x)[0], mean)


def test_the_surrogate_with_the_lowest_error_is_chosen() -> None:
    x = np.random.default_rng(0).random((60, 3))
    line, steps = x @ [1.0, 2.0, 3.0], np.floor(x[:, 0] * 4) * (x[:, 1] > 0.5)
    for y in (line, steps):
        errors = cross_validated_errors(x, y)
        assert type(best_surrogate(x, y)) is type(SURROGATES[min(errors, key=lambda n: errors[n])]())
    assert min(cross_validated_errors(x, steps), key=cross_validated_errors(x, steps).get) == "forest"  # type: ignore[arg-type]


def test_a_bound_that_nothing_has_met_yet_is_approached() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=SurrogateSampler(SPACE, seed=0))
    for _ in range(40):
        trial = study.ask(SPACE)
        quality, cost = objectives(trial.params)
        trial.set_constraint("impossible", quality + 1.0)
        study.tell(trial, (quality, cost))
    found = [trial.values[0] for trial in study.trials]
    assert np.mean(found[24:]) < np.mean(found[:24])
