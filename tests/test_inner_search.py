"""The inner search: encodings, NSGA-II and expected improvement, checked by enumeration of small spaces."""

from __future__ import annotations

from itertools import product

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.special import ndtr

from nas.fronts.pareto import hypervolume, non_dominated
from nas.samplers.encoding import Encoding, choices_of
from nas.samplers.expected_improvement import rank_by_expected_improvement, sample_non_dominated_region
from nas.samplers.nsga2 import _offspring, crowding_distance, nsga2, survivors
from nas.samplers.trial_history import TrialHistory

SPACE: dict[str, BaseDistribution] = {
    "kind": CategoricalDistribution(("a", "b", "c")),
    "n": IntDistribution(2, 6, step=2),
    "on": CategoricalDistribution((False, True)),
    "deep": IntDistribution(0, 4),
}


def test_unordered_choices_get_a_column_each_at_distance_one() -> None:
    encoding = Encoding(SPACE)
    given = [{"kind": "b", "n": 4, "on": True, "deep": 1}, {"kind": "c", "n": 2, "on": False, "deep": 4}]
    vectors = encoding.encode(given)
    assert vectors.tolist() == [[1, 1, 1, 1], [2, 0, 0, 4]] and encoding.decode(vectors) == given
    features = encoding.features(vectors)
    assert np.allclose(features[:, 3:], [[0.5, 1, 0.25], [0, 0, 1]])
    assert np.linalg.norm(features[0, :3] - features[1, :3]) == pytest.approx(1.0)
    assert encoding.ordered.tolist() == [False, True, True, True]
    with pytest.raises(ValueError, match="integer and categorical"):
        choices_of(FloatDistribution(0, 1))


def test_parameters_that_depend_on_inactive_ones_are_inactive() -> None:
    encoding = Encoding(SPACE, {"deep": ("n", (4, 6)), "n": ("on", (True,))})
    vectors = np.array([[0, 2, 1, 3], [0, 0, 1, 3], [0, 2, 0, 3]])
    assert encoding.canonical(vectors).tolist() == [[0, 2, 1, 3], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert encoding.features(vectors)[2, 3:].tolist() == [0, 0, 0]
    assert encoding.accepts({"kind": "a", "on": False}) and not encoding.accepts({"kind": "a", "n": 2})
    assert not encoding.accepts({"kind": "d", "on": False})


def test_nsga2_finds_the_front_of_a_small_space() -> None:
    grid = np.array(list(product(range(6), repeat=3)))

    def evaluate(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = vectors / 5
        costs = np.stack([x.sum(1), ((1 - x) ** 2).sum(1) + 0.3 * x[:, 0] * x[:, 1]], axis=1)
        return costs, np.maximum(vectors[:, 2] - 4, 0).astype(float)

    _, costs_found, violations = nsga2(
        evaluate, np.array([6, 6, 6]), start=grid[:0], population=20, generations=40, rng=np.random.default_rng(0)
    )
    costs, bad = evaluate(grid)
    best = {tuple(c) for c in costs[bad <= 0][non_dominated(costs[bad <= 0])]}
    feasible = costs_found[violations <= 0]
    assert {tuple(c) for c in feasible[non_dominated(feasible)]} == best


def test_nsga2_evaluates_no_point_twice() -> None:
    vectors, _, _ = nsga2(
        lambda g: (np.stack([g.sum(1), -g.sum(1)], 1).astype(float), np.zeros(len(g))),
        np.array([4, 4, 4]),
        start=np.zeros((0, 3), dtype=int),
        population=10,
        generations=30,
        rng=np.random.default_rng(0),
        canonical=lambda g: np.where(g[:, :1] == 0, 0, g),
    )
    assert len(np.unique(vectors, axis=0)) == len(vectors) and not vectors[vectors[:, 0] == 0].any()


def test_survivors_are_chosen_by_feasibility_rank_and_crowding() -> None:
    costs = np.array([[0.0, 4.0], [1.0, 1.0], [4.0, 0.0], [2.0, 2.0], [0.0, 0.0]])
    order, rank, _ = survivors(costs, np.array([0, 0, 0, 0, 1.0]), 5)
    assert order.tolist()[-2:] == [3, 4] and rank.tolist() == [0, 0, 0, 1, 2]
    assert np.isinf(crowding_distance(costs[:3])[[0, 2]]).all()


def test_the_expected_improvement_of_known_points_is_their_hypervolume() -> None:
    rng = np.random.default_rng(0)
    front, candidates = np.array([[0.2, 0.8, 0.5], [0.6, 0.3, 0.4]]), rng.random((6, 3))
    region = sample_non_dominated_region(front, np.zeros(3), np.ones(3), 400_000, rng)
    assert len(region) / 400_000 == pytest.approx(1 - hypervolume(front, np.ones(3)), abs=0.005)
    dominates = (candidates[:, None] <= region).all(2).astype(float)
    order = list(rank_by_expected_improvement(dominates, np.zeros((0, len(region)))))
    selected = front
    for chosen in order[:4]:
        gains = [hypervolume(np.concatenate([selected, c[None]]), np.ones(3)) for c in candidates]
        assert gains[chosen] == pytest.approx(max(gains), abs=0.003)
        selected = np.concatenate([selected, candidates[chosen : chosen + 1]])
    assert sorted(order) == list(range(6))


def test_unlikely_and_pending_points_add_less() -> None:
    region = np.random.default_rng(0).random((4000, 2))
    dominates = (np.array([[0.5, 0.1], [0.1, 0.55]])[:, None] <= region).all(2).astype(float)
    nothing = np.zeros((0, 4000))
    assert next(rank_by_expected_improvement(dominates, nothing)) == 0
    assert next(rank_by_expected_improvement(dominates * [[0.5], [1.0]], nothing)) == 1
    assert next(rank_by_expected_improvement(dominates, dominates[:1])) == 1


def test_a_neighbour_of_a_chosen_point_comes_after_a_distant_worse_one() -> None:
    region = np.random.default_rng(0).random((4000, 2))
    points = np.array([[0.5, 0.1], [0.51, 0.1], [0.1, 0.6]])
    probabilities = ndtr((region - points[:, None]) / 0.1).prod(2)
    assert list(rank_by_expected_improvement(probabilities, np.zeros((0, 4000)))) == [0, 2, 1]


def test_only_ordered_genes_take_steps() -> None:
    parents, rank = np.full((2, 1), 50), np.zeros(2)
    for ordered, share in ((True, 0.5), (False, 0.02)):
        children = _offspring(
            parents, rank, rank, np.array([101]), np.array([ordered]), 4000, np.random.default_rng(0)
        )
        assert np.isin(children, [49, 51]).mean() == pytest.approx(share, abs=0.03)


def test_the_history_is_in_the_order_of_trial_numbers() -> None:
    encoding = Encoding(SPACE)
    study = optuna.create_study(directions=["minimize", "maximize"])
    history = TrialHistory(study, encoding, lambda vectors: [row.tobytes() for row in vectors])
    trials = [study.ask(SPACE) for _ in range(4)]
    for number in (2, 3):
        study.tell(trials[number], [1.0, 2.0])
    history.read(study)
    assert [e.number for e in history.finished] == [2, 3] and set(history.running) == {0, 1}
    assert history.finished[0].values.tolist() == [1.0, -2.0]
    study.tell(trials[0], [3.0, 4.0])
    study.tell(trials[1], state=optuna.trial.TrialState.FAIL)
    history.read(study)
    assert [e.number for e in history.finished] == [0, 1, 2, 3] and not history.running
    assert [e.number for e in history.finished if e.failed] == [1]
    assert all(history.is_taken(history.key(trial.params)) for trial in trials)
