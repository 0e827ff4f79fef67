"""The inner search: encodings, NSGA-II and expected improvement, against spaces small enough to try everything."""

from __future__ import annotations

from itertools import product

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.special import ndtr

from nas.fronts.pareto import hypervolume, non_dominated
from nas.samplers.encoding import Encoding, choices_of
from nas.samplers.expected_improvement import by_expected_improvement, open_region
from nas.samplers.nsga2 import _offspring, crowding_distance, nsga2, survivors
from nas.samplers.trial_history import Ledger

SPACE: dict[str, BaseDistribution] = {
    "kind": CategoricalDistribution(("a", "b", "c")),
    "n": IntDistribution(2, 6, step=2),
    "on": CategoricalDistribution((False, True)),
    "deep": IntDistribution(0, 4),
}


def test_unordered_choices_get_a_column_each_at_distance_one() -> None:
    encoding = Encoding(SPACE)
    given = [{"kind": "b", "n": 4, "on": True, "deep": 1}, {"kind": "c", "n": 2, "on": False, "deep": 4}]
    genomes = encoding.encode(given)
    assert genomes.tolist() == [[1, 1, 1, 1], [2, 0, 0, 4]] and encoding.decode(genomes) == given
    features = encoding.features(genomes)
    assert np.allclose(features[:, 3:], [[0.5, 1, 0.25], [0, 0, 1]])
    assert np.linalg.norm(features[0, :3] - features[1, :3]) == pytest.approx(1.0)
    assert encoding.ordered.tolist() == [False, True, True, True]
    with pytest.raises(ValueError, match="integer and categorical"):
        choices_of(FloatDistribution(0, 1))


def test_what_hangs_on_a_parameter_that_does_not_count_does_not_count() -> None:
    encoding = Encoding(SPACE, {"deep": ("n", (4, 6)), "n": ("on", (True,))})
    genomes = np.array([[0, 2, 1, 3], [0, 0, 1, 3], [0, 2, 0, 3]])
    assert encoding.canonical(genomes).tolist() == [[0, 2, 1, 3], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert encoding.features(genomes)[2, 3:].tolist() == [0, 0, 0]
    assert encoding.accepts({"kind": "a", "on": False}) and not encoding.accepts({"kind": "a", "n": 2})
    assert not encoding.accepts({"kind": "d", "on": False})


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


def test_the_inner_search_tries_no_point_twice() -> None:
    genomes, _, _ = nsga2(
        lambda g: (np.stack([g.sum(1), -g.sum(1)], 1).astype(float), np.zeros(len(g))),
        np.array([4, 4, 4]),
        start=np.zeros((0, 3), dtype=int),
        population=10,
        generations=30,
        rng=np.random.default_rng(0),
        canonical=lambda g: np.where(g[:, :1] == 0, 0, g),
    )
    assert len(np.unique(genomes, axis=0)) == len(genomes) and not genomes[genomes[:, 0] == 0].any()


def test_survivors_prefer_feasible_then_rank_then_space() -> None:
    costs = np.array([[0.0, 4.0], [1.0, 1.0], [4.0, 0.0], [2.0, 2.0], [0.0, 0.0]])
    order, rank, _ = survivors(costs, np.array([0, 0, 0, 0, 1.0]), 5)
    assert order.tolist()[-2:] == [3, 4] and rank.tolist() == [0, 0, 0, 1, 2]
    assert np.isinf(crowding_distance(costs[:3])[[0, 2]]).all()


def test_the_expected_improvement_of_known_points_is_their_hypervolume() -> None:
    rng = np.random.default_rng(0)
    front, candidates = np.array([[0.2, 0.8, 0.5], [0.6, 0.3, 0.4]]), rng.random((6, 3))
    region = open_region(front, np.zeros(3), np.ones(3), 400_000, rng)
    assert len(region) / 400_000 == pytest.approx(1 - hypervolume(front, np.ones(3)), abs=0.005)
    dominates = (candidates[:, None] <= region).all(2).astype(float)
    order = list(by_expected_improvement(dominates, np.zeros((0, len(region)))))
    have = front
    for chosen in order[:4]:
        gains = [hypervolume(np.concatenate([have, c[None]]), np.ones(3)) for c in candidates]
        assert gains[chosen] == pytest.approx(max(gains), abs=0.003)
        have = np.concatenate([have, candidates[chosen : chosen + 1]])
    assert sorted(order) == list(range(6))


def test_unlikely_and_pending_points_are_worth_less() -> None:
    region = np.random.default_rng(0).random((4000, 2))
    dominates = (np.array([[0.5, 0.1], [0.1, 0.55]])[:, None] <= region).all(2).astype(float)
    nothing = np.zeros((0, 4000))
    assert next(by_expected_improvement(dominates, nothing)) == 0
    assert next(by_expected_improvement(dominates * [[0.5], [1.0]], nothing)) == 1
    assert next(by_expected_improvement(dominates, dominates[:1])) == 1


def test_a_neighbour_of_what_is_chosen_comes_after_a_lesser_point_elsewhere() -> None:
    region = np.random.default_rng(0).random((4000, 2))
    points = np.array([[0.5, 0.1], [0.51, 0.1], [0.1, 0.6]])
    chances = ndtr((region - points[:, None]) / 0.1).prod(2)
    assert list(by_expected_improvement(chances, np.zeros((0, 4000)))) == [0, 2, 1]


def test_only_ordered_genes_take_steps() -> None:
    parents, rank = np.full((2, 1), 50), np.zeros(2)
    for ordered, share in ((True, 0.5), (False, 0.02)):
        children = _offspring(
            parents, rank, rank, np.array([101]), np.array([ordered]), 4000, np.random.default_rng(0)
        )
        assert np.isin(children, [49, 51]).mean() == pytest.approx(share, abs=0.03)


def test_a_ledger_reads_late_finishers_in_their_place() -> None:
    encoding = Encoding(SPACE)
    study = optuna.create_study(directions=["minimize", "maximize"])
    ledger = Ledger(study, encoding, lambda genomes: [row.tobytes() for row in genomes])
    trials = [study.ask(SPACE) for _ in range(4)]
    for number in (2, 3):
        study.tell(trials[number], [1.0, 2.0])
    ledger.read(study)
    assert [e.number for e in ledger.done] == [2, 3] and set(ledger.running) == {0, 1}
    assert ledger.done[0].values.tolist() == [1.0, -2.0]
    study.tell(trials[0], [3.0, 4.0])
    study.tell(trials[1], state=optuna.trial.TrialState.FAIL)
    ledger.read(study)
    assert [e.number for e in ledger.done] == [0, 2, 3] and not ledger.running
    assert ledger.taken(ledger.key(trials[0].params))
    assert not ledger.taken(ledger.key(trials[1].params))
