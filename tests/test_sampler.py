"""The surrogate sampler in plain Optuna studies: better than random, deterministic, resumable, within bounds."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from nas.fronts.pareto import hypervolume
from nas.samplers.encoding import Encoding
from nas.samplers.problem import BlackBoxProblem, Candidates
from nas.samplers.proposals import propose
from nas.samplers.surrogate_sampler import SurrogateSampler, representative_trials
from nas.studies.sampler import sampler_for

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


class KnownCost(BlackBoxProblem):
    """The cost is known, and so is a bound on it."""

    def describe(self, vectors: np.ndarray) -> Candidates:
        costs = np.array([objectives(p)[1] for p in self.encoding.decode(vectors)])
        values = np.stack([np.full(len(costs), np.nan), costs], axis=1)
        return replace(super().describe(vectors), values=values, violations=np.maximum(costs - 30, 0))


CONDITIONS = {f"width{i}": (f"kept{i}", (True,)) for i in range(LAYERS)}
PROBLEM = KnownCost(Encoding(SPACE, CONDITIONS), 2)


def sampler_with_known_cost(seed: int = 0) -> SurrogateSampler:
    return SurrogateSampler(SPACE, PROBLEM, conditions=CONDITIONS, seed=seed)


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
    known = run(sampler_with_known_cost(), 60)
    assert volume(known) > max(randoms)


def test_the_fronts_of_a_loss_and_of_its_perplexity_agree() -> None:
    def searched(scale: float) -> float:
        """Hypervolume in terms of the loss, where the sampler sees an exponential of it."""
        study = optuna.create_study(directions=["minimize"] * 2, sampler=SurrogateSampler(SPACE, seed=0))
        losses = []
        for _ in range(50):
            trial = study.ask(SPACE)
            losses.append(objectives(trial.params))
            study.tell(trial, (np.exp(scale * losses[-1][0]) if scale else losses[-1][0], losses[-1][1]))
        return hypervolume(np.array(losses), np.array([1.1, 55.0]))

    assert searched(20.0) == pytest.approx(searched(0.0), rel=0.005)


def test_the_same_seed_gives_the_same_trials_also_after_an_interruption() -> None:
    uninterrupted = run(SurrogateSampler(SPACE, seed=3), 34)
    halves = run(SurrogateSampler(SPACE, seed=3), 27)
    halves = run(SurrogateSampler(SPACE, seed=3), 7, halves)
    assert params(uninterrupted) == params(halves)
    assert params(uninterrupted)[:25] != params(run(SurrogateSampler(SPACE, seed=4), 25))


def test_nothing_is_proposed_twice_even_with_many_in_flight() -> None:
    study = run(SurrogateSampler(SPACE, seed=0), 24)
    in_flight = [study.ask(SPACE) for _ in range(30)]
    problem = BlackBoxProblem(Encoding(SPACE), 2)
    keys = problem.keys(problem.encoding.encode([*params(study)[:24], *(t.params for t in in_flight)]))
    assert len(set(keys)) == len(keys)


def test_a_known_bound_is_respected() -> None:
    study = run(sampler_with_known_cost(), 50)
    assert all(trial.values[1] <= 30 for trial in study.trials)


def test_a_maximised_objective_is_the_minimised_one_with_its_sign() -> None:
    up = optuna.create_study(directions=["maximize", "minimize"], sampler=SurrogateSampler(SPACE, seed=0))
    for _ in range(32):
        trial = up.ask(SPACE)
        quality, cost = objectives(trial.params)
        up.tell(trial, (-quality, cost))
    assert params(up) == params(run(SurrogateSampler(SPACE, seed=0), 32))


def test_unknown_constraints_are_learned() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=SurrogateSampler(SPACE, seed=0))
    for _ in range(48):
        trial = study.ask(SPACE)
        quality, cost = objectives(trial.params)
        trial.set_constraint("quality", quality - 0.2)
        study.tell(trial, (quality, cost))
    feasible = [all(v <= 0 for v in trial.constraints.values()) for trial in study.trials]
    assert sum(feasible[:24]) <= 6 and sum(feasible[24:]) >= 12


def test_trials_approach_a_bound_that_none_meets() -> None:
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=SurrogateSampler(SPACE, seed=0))
    for _ in range(40):
        trial = study.ask(SPACE)
        quality, cost = objectives(trial.params)
        trial.set_constraint("impossible", quality + 1.0)
        study.tell(trial, (quality, cost))
    qualities = [trial.values[0] for trial in study.trials]
    assert np.mean(qualities[24:]) < np.mean(qualities[:24])


LAYERED: dict[str, BaseDistribution] = {
    **{f"kept{i}": CategoricalDistribution((False, True)) for i in range(4)},
    **{f"rank{i}": IntDistribution(0, 3) for i in range(4)},
}
RANKS = {f"rank{i}": (f"kept{i}", (True,)) for i in range(4)}


def test_inactive_parameters_make_no_new_point_and_may_be_left_out() -> None:
    sampler = SurrogateSampler(LAYERED, conditions=RANKS, seed=0)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    points = set()
    for _ in range(60):
        trial = study.ask()
        kept = [trial.suggest_categorical(f"kept{i}", (False, True)) for i in range(4)]
        ranks = tuple(trial.suggest_int(f"rank{i}", 0, 3) if k else None for i, k in enumerate(kept))
        points.add(ranks)
        used = np.array([-1 if rank is None else rank for rank in ranks])
        study.tell(trial, [float(np.exp(-used @ [1, 2, 1, 3] / 8)), float((used + 1).sum())])
    assert len(points) == 60


def test_a_failed_point_is_not_proposed_again() -> None:
    study = run(SurrogateSampler(SPACE, seed=0), 24)
    first = study.ask(SPACE)
    study.tell(first, state=TrialState.FAIL)
    assert first.params not in [study.ask(SPACE).params for _ in range(5)]


def test_regions_that_fail_are_learned_and_avoided() -> None:
    """Half of the space fails, on the side where the quality is best."""

    def failures(sampler: optuna.samplers.BaseSampler, trials: int, study: optuna.Study) -> optuna.Study:
        study.sampler = sampler
        for _ in range(trials):
            trial = study.ask(SPACE)
            fails = trial.params["kept1"] and trial.params["width0"] > 2
            study.tell(trial, None if fails else objectives(trial.params), TrialState.FAIL if fails else None)
        return study

    def new() -> optuna.Study:
        return optuna.create_study(directions=["minimize", "minimize"])

    study = failures(SurrogateSampler(SPACE, seed=0), 40, new())
    failed = [trial.state == TrialState.FAIL for trial in study.trials]
    assert sum(failed[:20]) > 0 and sum(failed[20:]) <= 3
    resumed = failures(SurrogateSampler(SPACE, seed=0), 25, new())
    assert params(failures(SurrogateSampler(SPACE, seed=0), 15, resumed)) == params(study)


def test_a_space_that_only_fails_is_searched_on() -> None:
    study = optuna.create_study(directions=["minimize"] * 2, sampler=SurrogateSampler(SPACE, seed=0))
    for _ in range(30):
        study.tell(study.ask(SPACE), state=TrialState.FAIL)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 30


def test_a_model_considers_running_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[dict[str, Any]]] = []

    def spy(model: Any, encoding: Encoding, trials: Any, running: np.ndarray, rng: Any) -> Any:
        calls.append(encoding.decode(running))
        first = next(propose(model, encoding, trials, running[:0], np.random.default_rng(0)))
        calls.append(
            [first, next(propose(model, encoding, trials, encoding.encode([first]), np.random.default_rng(0)))]
        )
        return propose(model, encoding, trials, running, rng)

    study = run(sampler_with_known_cost(), 22)
    waiting = [study.ask(SPACE) for _ in range(4)]
    monkeypatch.setattr("nas.samplers.surrogate_sampler.propose", spy)
    run(study.sampler, 5, study)
    for trial in waiting:
        study.tell(trial, objectives(trial.params))
    study.ask(SPACE)  # nothing else runs: it waits for the model
    assert calls[0] == PROBLEM.encoding.decode(PROBLEM.encoding.encode([trial.params for trial in waiting]))
    assert calls[1][0] != calls[1][1]


def test_asking_does_not_wait_for_a_fit_while_other_trials_run(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, fitted = Event(), []

    def slow(*arguments: Any) -> Any:
        gate.wait(60)
        fitted.append(gate.is_set())
        return propose(*arguments)

    study = run(sampler_with_known_cost(), 10)
    running = study.ask(SPACE)
    monkeypatch.setattr("nas.samplers.surrogate_sampler.propose", slow)
    run(study.sampler, 6, study)
    assert not fitted
    gate.set()
    study.tell(running, objectives(running.params))
    study.ask(SPACE)
    assert fitted == [True]


def test_models_are_fitted_less_often_when_many_trials_run(monkeypatch: pytest.MonkeyPatch) -> None:
    n_trials: list[int] = []

    def spy(model: Any, encoding: Encoding, trials: Any, *arguments: Any) -> Any:
        n_trials.append(len(trials))
        return propose(model, encoding, trials, *arguments)

    monkeypatch.setattr("nas.samplers.surrogate_sampler.propose", spy)
    study = run(sampler_with_known_cost(), 14)
    waiting = deque(study.ask(SPACE) for _ in range(12))
    for _ in range(40):
        done = waiting.popleft()
        study.tell(done, objectives(done.params))
        waiting.append(study.ask(SPACE))
        study.sampler._state._executor.submit(int).result()  # type: ignore[attr-defined]  # what it fits is there
    assert np.diff(n_trials[1:]).min() > 4 and len(n_trials) >= 4  # with one trial at a time, a fit every four trials


def test_a_point_is_taken_before_the_study_stores_it() -> None:
    sampler = SurrogateSampler(SPACE, seed=0)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    started = [study.ask() for _ in range(2)]
    first, second = (sampler.sample_relative(study, study.trials[trial.number], SPACE) for trial in started)
    assert first != second


def test_threads_share_a_sampler_and_a_pickled_one_continues() -> None:
    study = optuna.create_study(directions=["minimize"] * 2, sampler=SurrogateSampler(SPACE, seed=0))
    with ThreadPoolExecutor(4) as pool:
        trials = list(pool.map(lambda _: study.ask(SPACE), range(40)))
    assert len({tuple(trial.params.values()) for trial in trials}) == 40
    uninterrupted = run(SurrogateSampler(SPACE, seed=1), 30)
    half = run(SurrogateSampler(SPACE, seed=1), 22)
    assert params(run(pickle.loads(pickle.dumps(half.sampler)), 8, half)) == params(uninterrupted)


def test_enqueued_trials_take_nothing_from_the_sampler() -> None:
    study = run(SurrogateSampler(SPACE, seed=0), 20)
    study.enqueue_trial(
        enqueued := {name: study.trials[0].params[name] for name in SPACE} | {"width0": 8, "kept0": True}
    )
    trial = study.ask(SPACE)
    assert trial.params == enqueued
    study.tell(trial, state=TrialState.FAIL)
    assert study.ask(SPACE).params == run(SurrogateSampler(SPACE, seed=0), 21).trials[20].params


def test_a_small_space_is_exhausted_before_anything_repeats() -> None:
    space: dict[str, BaseDistribution] = {"a": IntDistribution(0, 3), "b": CategoricalDistribution(("x", "y", "z"))}
    study = optuna.create_study(directions=["minimize"] * 2, sampler=SurrogateSampler(space, seed=0))
    for _ in range(14):
        trial = study.ask(space)
        study.tell(trial, [trial.params["a"], -trial.params["a"] - "xyz".index(trial.params["b"])])
    assert len({tuple(trial.params.items()) for trial in study.trials}) == 12


def test_constant_and_infinite_values_do_no_harm() -> None:
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=SurrogateSampler(SPACE, seed=0))
    for number in range(20):
        trial = study.ask(SPACE)
        study.tell(trial, [1.0, float("inf") if number % 3 == 0 else 2.0])
    assert len(study.trials) == 20


def test_a_long_study_is_represented_by_its_end_and_evenly_before() -> None:
    def numbers(count: int, size: int, every: int) -> tuple[list[int], list[int]]:
        """Those chosen of so many trials, every so many of which have failed: of successes and of failures."""
        trials: Any = [SimpleNamespace(number=i, key=i, failed=i % every == every - 1) for i in range(count)]
        chosen = representative_trials(trials, size)
        return [t.number for t in chosen if not t.failed], [t.number for t in chosen if t.failed]

    assert numbers(10, 20, 5) == ([0, 1, 2, 3, 5, 6, 7, 8], [4, 9])
    chosen, failed = numbers(1000, 100, 2000)
    assert len(set(chosen)) == 100 and chosen[-50:] == list(range(950, 1000)) and chosen[0] == 0 and not failed


def test_too_few_startup_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        SurrogateSampler(SPACE, n_startup_trials=3)


def test_choices_that_python_takes_for_equal_stay_apart() -> None:
    space: dict[str, BaseDistribution] = {"x": CategoricalDistribution((True, 1, 2)), "y": IntDistribution(0, 1)}
    encoding = Encoding(space, {"y": ("x", (1,))})
    params = [{"x": True, "y": 1}, {"x": 1, "y": 1}, {"x": 2, "y": 1}]
    vectors = encoding.encode(params)
    assert vectors.tolist() == [[0, 0], [1, 1], [2, 0]]
    assert [type(each["x"]) for each in encoding.decode(vectors)] == [bool, int, int]
    assert len(np.unique(encoding.features(vectors)[:, :-1], axis=0)) == 3


class Counting(optuna.samplers.RandomSampler):
    """A sampler that remembers how often it was asked, as some of OptunaHub's do."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(seed)
        self.asked = 0

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        self.asked += 1
        return {}


def test_samplers_by_name_keep_their_state(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe: Any = SimpleNamespace(seed=3, search=SimpleNamespace(sampler="QMCSampler", sampler_options={}))
    space: Any = None
    integers = {f"x{i}": IntDistribution(0, 255) for i in range(2)}
    studies = [optuna.create_study(directions=["minimize", "minimize"]) for _ in range(2)]
    of_trial, whole = sampler_for(recipe, space, space), optuna.samplers.QMCSampler(seed=3)
    for number in range(9):
        of_trial = sampler_for(recipe, space, space) if number == 5 else of_trial  # a resumed search
        for study, sampler in zip(studies, (of_trial(number), whole), strict=True):
            study.sampler = sampler
            study.tell(study.ask(integers), [0.0, 0.0])
    assert params(studies[0])[1:] == params(studies[1])[1:]  # the first trial names the parameters
    monkeypatch.setattr("nas.studies.sampler.sampler_class", lambda name: Counting)
    recipe.search.sampler = "samplers/counting:Counting"
    of_trial, study = sampler_for(recipe, space, space), studies[0]
    for number in range(3):
        study.sampler = of_trial(number)
        study.ask(integers)
    assert of_trial(3).asked == 3  # type: ignore[attr-defined]
