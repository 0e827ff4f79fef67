"""Trial queues over real studies with stand-in evaluations: nothing twice, nothing lost, samplers, early stops."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from stand_in_search import changed, executed, new_scheduler, run, space_and_evaluator, states

from experiments.bench.stand_in import StandIn, stand_in_recipe
from nas.recipe.checks import OPTUNA_SAMPLERS
from nas.recipe.schema import Recipe
from nas.studies.concurrent_drivers import ConcurrentDrivers
from nas.studies.racing import EarlyStopping, Outcome
from nas.studies.sampler import check_sampler
from nas.studies.study import (
    evaluated_points,
    open_repeats,
    open_studies,
    trials_csv,
)
from nas.studies.trial_queue import PendingEvaluation, TrialQueue
from search_spaces import InputError, SubnetConfig

# -- nothing twice, nothing lost ----------------------------------------------------------------------------------


def test_no_subnetwork_is_evaluated_twice_over_all_studies(tmp_path: Path) -> None:
    studies = run(tmp_path, stand_in_recipe(25))
    assert set(executed(tmp_path).values()) == {1}
    keys = {name: {p.key for p in evaluated_points(study)} for name, study in studies.items()}
    assert len(keys["search"]) == len(keys["random"]) == 25
    assert keys["uniform"] <= keys["search"]
    assert set.union(*keys.values()) == set(executed(tmp_path))


def test_one_seed_gives_identical_trials_twice(tmp_path: Path) -> None:
    first, second = (run(tmp_path / name, stand_in_recipe(25)) for name in ("first", "second"))
    assert trials_csv(first.values()) == trials_csv(second.values())


def test_the_parent_and_the_extreme_subnets_come_first(tmp_path: Path) -> None:
    recipe = stand_in_recipe(30)
    space, _ = space_and_evaluator(recipe)
    subnets = [p.subnet for p in evaluated_points(run(tmp_path, recipe)["search"])]
    assert subnets[0] == space.parent
    extremes = {space.largest, space.smallest, *space.uniform_scalings()}
    assert set(subnets[: len(extremes)]) == extremes


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.full)])
def test_killed_at_random_moments_it_ends_with_the_same_trials(kills: int, tmp_path: Path) -> None:
    recipe, rng = stand_in_recipe(60 if kills > 4 else 30), Random(0)
    uninterrupted = run(tmp_path / "uninterrupted", recipe)
    folder, recorded = tmp_path / "killed", dict[str, list[str]]()
    space_and_evaluator(recipe)
    for kill in range(kills):
        begun = executed(folder, "begin").total()
        child = os.fork()
        if not child:
            run(folder, recipe, StandIn(folder / "evaluations.log", 0.01))
            os._exit(0)
        while kill % 2 == 0 and executed(folder, "begin").total() == begun and is_running(child):
            time.sleep(0.01)  # every second kill finds it at work, on a busy machine too
        time.sleep(rng.uniform(0.02, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        evaluated = executed(folder)
        before, recorded = (
            recorded,
            {name: [p.key for p in evaluated_points(s)] for name, s in read(folder, recipe).items()},
        )
        for name in before:
            assert recorded[name][: len(before[name])] == before[name]
        done = {key for keys in recorded.values() for key in keys}
        assert all(evaluated[key] >= 1 for key in done)
    finished_before = {key for keys in recorded.values() for key in keys}
    begun_before = executed(folder, "begin")
    last = run(folder, recipe)
    assert {k: v for k, v in executed(folder, "begin").items() if k in finished_before} == {
        k: v for k, v in begun_before.items() if k in finished_before
    }
    assert trials_csv(last.values()) == trials_csv(uninterrupted.values())
    assert all(set(states(study)) == {"COMPLETE"} for study in last.values())
    assert sum(executed(folder).values()) <= len(executed(folder)) + kills


def is_running(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def read(folder: Path, recipe: Recipe) -> Mapping[str, optuna.Study]:
    return open_studies(folder / "study.log", recipe) if (folder / "study.log").exists() else {}


def test_a_resumed_trial_keeps_its_number(tmp_path: Path) -> None:
    recipe = stand_in_recipe(30)
    scheduler = new_scheduler(tmp_path, recipe)
    evaluations = [scheduler.ask() for _ in range(4)]
    resumed = new_scheduler(tmp_path, recipe)
    for evaluation in evaluations:
        other = resumed.ask()
        assert evaluation is not None and other is not None
        assert (other.subnet, other.trial.number) == (evaluation.subnet, evaluation.trial.number)


def test_two_trials_of_one_subnetwork_wait_for_one_evaluation(tmp_path: Path) -> None:
    scheduler = new_scheduler(tmp_path, stand_in_recipe(60, sampler="RandomSampler"))
    search = scheduler.queues[0]
    evaluations = [search.ask() for _ in range(8)]
    first = evaluations[0]
    assert first is not None
    search.study.enqueue_trial(first.trial.params)
    trial = search.study.ask(search.space.parameters.distributions())
    twin = PendingEvaluation(search, trial, first.subnet, None)
    search.running[trial.number] = twin
    assert search._resolve(twin)
    scheduler.tell(first, Outcome({"accuracy": (0.5, 0.01)}, 100))
    done = search.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    assert [t.number for t in done] == [first.trial.number, trial.number] and not search.cache.in_flight.get(
        first.subnet.key
    )


def test_several_drivers_share_a_study_and_its_budget(tmp_path: Path) -> None:
    recipe = stand_in_recipe(30, storage=f"sqlite:///{tmp_path}/study.db", sampler="RandomSampler")
    folder, evaluate = tmp_path / "run", StandIn(tmp_path / "evaluations.log", 0.0)
    one, two = new_scheduler(folder, recipe, "one"), new_scheduler(folder, recipe, "two")
    abandoned = one.ask()
    drivers = [two, one, two]
    while any(not driver.queues[0].is_done for driver in drivers):
        for driver in drivers:
            evaluation = driver.queues[0].ask()
            if evaluation is not None:
                driver.tell(evaluation, evaluate(evaluation.subnet, None))
    assert abandoned is not None and len(evaluated_points(open_studies(folder / "s", recipe)["search"])) == 29
    resumed = new_scheduler(folder, recipe, "one").queues[0].ask()
    assert resumed is not None and resumed.trial.number == abandoned.trial.number
    assert set(executed(tmp_path).values()) == {1}


def test_concurrent_drivers_never_evaluate_the_same_subnetwork(tmp_path: Path) -> None:
    recipe = stand_in_recipe(16, storage=f"sqlite:///{tmp_path}/study.db")
    folder, evaluate = tmp_path / "run", StandIn(tmp_path / "evaluations.log", 0.0)
    drivers, n_concurrent = [new_scheduler(folder, recipe, "one"), new_scheduler(folder, recipe, "two")], 0
    while not all(each.is_finished for each in drivers):
        pending = [(each, evaluation) for each in drivers if (evaluation := each.ask()) is not None]
        assert len({evaluation.subnet.key for _, evaluation in pending}) == len(pending)
        for each, evaluation in pending:
            each.tell(evaluation, evaluate(evaluation.subnet, None))
        n_concurrent += len(pending) == 2
    studies = open_studies(folder / "study.log", recipe)
    assert n_concurrent > 10 and set(executed(tmp_path).values()) == {1}
    assert len(evaluated_points(studies["search"])) == len(evaluated_points(studies["random"])) == 16


def test_the_older_of_two_claims_has_priority_and_an_abandoned_one_times_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    one, two, trials = ConcurrentDrivers("one"), ConcurrentDrivers("two"), [study.ask(), study.ask()]
    for each, trial in zip((one, two), trials, strict=True):
        each.queues.append(cast(Any, SimpleNamespace(study=study)))
        trial.set_user_attr("driver", each.driver)
        trial.set_user_attr("key", "k")  # both have written their claim, and neither has looked yet
    assert not two.claim(trials[1], "k") and one.claim(trials[0], "k") and not two.claim(trials[1], "k")
    monkeypatch.setattr("nas.studies.concurrent_drivers.DRIVER_TIMEOUT", timedelta(0))
    assert two.claim(trials[1], "k")


def test_random_failures_leave_the_numbers_of_evaluations_as_they_are(tmp_path: Path) -> None:
    stand_in, rng, raised = StandIn(tmp_path / "evaluations.log", 0.0), Random(3), set[str]()

    def flaky(subnet: SubnetConfig, early_stopping: EarlyStopping | None) -> Outcome:
        if rng.random() < 0.2:
            raised.add(subnet.key)
            raise ArithmeticError("it failed at random")
        return stand_in(subnet, early_stopping)

    studies = run(tmp_path, stand_in_recipe(30, sampler="RandomSampler"), flaky)
    counts = {name: len(evaluated_points(study)) for name, study in studies.items()}
    assert raised and counts["search"] == counts["random"] == 30
    assert set(executed(tmp_path).values()) == {1} and not raised & set(executed(tmp_path))


# -- going on with another recipe ---------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [False, pytest.param(True, marks=pytest.mark.full)])
def test_more_evaluations_a_tighter_constraint_and_another_objective_evaluate_nothing_twice(
    tmp_path: Path, storage: bool
) -> None:
    database = {"storage": f"sqlite:///{tmp_path}/study.db"} if storage else {}
    first = stand_in_recipe(14 if storage else 60, sampler="RandomSampler", confidence=1, **database)
    run(tmp_path, first)
    n = first.search.evaluations
    more = stand_in_recipe(2 * n, sampler="RandomSampler", confidence=1, **database)
    begun = evaluated_points(run(tmp_path, more)["search"])
    assert len(begun) == 2 * n and set(executed(tmp_path).values()) == {1}
    limit = float(np.median([point.values["latency_ms"] for point in begun]))
    tighter = changed(more, constraints={"latency_ms": f"<= {limit}"})
    before = executed(tmp_path)
    judged = evaluated_points(run(tmp_path, tighter)["search"])
    assert executed(tmp_path) == before, "what is known was evaluated again"
    assert [point.key for point in judged] == [point.key for point in begun]
    assert [p.feasible for p in judged] == [p.values["latency_ms"] <= limit for p in begun]
    third = changed(tighter, objectives={**tighter.objectives, "num_parameters": "minimize"})
    studies = run(tmp_path, third)
    assert executed(tmp_path) == before and len(evaluated_points(studies["search"])) == 2 * n
    values = studies["search"].get_trials(deepcopy=False)[5].values
    point = evaluated_points(studies["search"])[5]
    assert values == [point.values[name] for name in third.objectives]
    assert evaluated_points(run(tmp_path, more)["search"]) == begun, "the earlier study is as it was"


def test_what_was_stopped_early_is_completed_only_where_it_may_reach_the_front_now(tmp_path: Path) -> None:
    recipe = stand_in_recipe(30, sampler="RandomSampler")
    scheduler = new_scheduler(tmp_path, recipe)
    search = scheduler.queues[0]
    stopped = []
    while not search.is_done and (evaluation := search.ask()) is not None:
        is_complete = evaluation.early_stopping is None
        accuracy = 0.5 + len(evaluation.subnet.layers) / 100 if is_complete else 0.4
        stopped += [] if is_complete else [evaluation.subnet.key]
        scheduler.tell(evaluation, Outcome({"accuracy": (accuracy, 0.001)}, 100 if is_complete else 50, is_complete))
    assert stopped
    again = new_scheduler(tmp_path, changed(recipe, objectives={**recipe.objectives, "num_parameters": "minimize"}))
    asked = []
    while not again.queues[0].is_done and (evaluation := again.queues[0].ask()) is not None:
        asked.append(evaluation.subnet.key)
        again.tell(evaluation, Outcome({"accuracy": (0.4, 0.001)}, 100))
    assert len(again.queues[0].evaluated_keys) == 30 and set(asked) < set(stopped)


def test_repeated_searches_differ_by_their_seed_only_and_evaluate_nothing_twice(tmp_path: Path) -> None:
    one = stand_in_recipe(24, sampler="RandomSampler", confidence=1)
    alone = [point.key for point in evaluated_points(run(tmp_path / "alone", one)["search"])]
    three = stand_in_recipe(24, sampler="RandomSampler", confidence=1, seeds=3)
    studies = run(tmp_path / "three", three)
    repeats = open_repeats(tmp_path / "three" / "study.log", three)
    keys = [[point.key for point in evaluated_points(study)] for study in (studies["search"], *repeats.values())]
    assert keys[0] == alone and len({*map(tuple, keys)}) == 3 and {*map(len, keys)} == {24}
    assert set(executed(tmp_path / "three").values()) == {1}
    other = Recipe.parse({**one.model_dump(), "seed": 2})
    assert keys[2] == [point.key for point in evaluated_points(run(tmp_path / "other", other)["search"])]
    assert {point.source for study in repeats.values() for point in evaluated_points(study)} == {"search"}


# -- samplers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in OPTUNA_SAMPLERS if n != "GPSampler"])
def test_optunas_samplers_by_name(name: str, tmp_path: Path) -> None:
    studies = run(tmp_path, stand_in_recipe(24, sampler=name, confidence=1))
    assert len(evaluated_points(studies["search"])) == 24 and set(executed(tmp_path).values()) == {1}
    assert all(set(states(study)) == {"COMPLETE"} for study in studies.values())


def test_every_sampler_of_optuna_is_listed() -> None:
    kinds = {n for n in optuna.samplers.__all__ if n.endswith("Sampler") and not n.startswith("Base")}
    assert set(OPTUNA_SAMPLERS) == kinds - {"CmaEsSampler", "GridSampler", "PartialFixedSampler"}


def test_constraints_reach_a_sampler_by_optunas_own_api(tmp_path: Path) -> None:
    recipe = Recipe.parse(
        {**stand_in_recipe(24, sampler="NSGAIISampler").model_dump(), "constraints": {"size_mb": "<= 1"}}
    )
    trials = run(tmp_path, recipe)["search"].get_trials(deepcopy=False)
    for trial in trials:
        assert trial.constraints["size_mb"] == pytest.approx(trial.user_attrs["point"]["values"]["size_mb"] - 1)


def test_a_sampler_of_optunahub_from_a_local_folder(tmp_path: Path) -> None:
    pytest.importorskip("optunahub")
    package = tmp_path / "samplers" / "mine"
    package.mkdir(parents=True)
    code = "import optuna\nclass Mine(optuna.samplers.NSGAIISampler):\n    pass\n"
    (package / "__init__.py").write_text(code)
    recipe = stand_in_recipe(24, sampler=f"{package}:Mine", sampler_options={"population_size": 8})
    check_sampler(recipe)
    assert len(evaluated_points(run(tmp_path, recipe)["search"])) == 24
    with pytest.raises(InputError, match=r"`.*mine:Other` cannot be loaded .*package:Class"):
        check_sampler(stand_in_recipe(24, sampler=f"{package}:Other"))


def test_a_missing_optunahub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optunahub", None)
    with pytest.raises(InputError, match="pip install optunahub"):
        check_sampler(stand_in_recipe(24, sampler="samplers/moead:MOEADSampler"))


# -- early stopping of evaluations --------------------------------------------------------------------------------


def early_stopping(front: list[list[float]], latency_ms: float, **bounds: str) -> EarlyStopping:
    recipe = Recipe.parse({**stand_in_recipe(10).model_dump(), "constraints": bounds})
    return EarlyStopping(
        recipe.objectives, recipe.bounds, {"latency_ms": latency_ms}, np.array(front).reshape(-1, 2), 2.0
    )


def test_an_evaluation_stops_if_even_the_optimistic_score_is_dominated() -> None:
    front = [[-0.8, 3.0]]  # accuracy 0.8 at 3 ms
    assert early_stopping(front, 4.0).cannot_reach_front({"accuracy": (0.6, 0.05)}, 0.0)
    assert not early_stopping(front, 4.0).cannot_reach_front({"accuracy": (0.75, 0.05)}, 0.0)
    assert early_stopping(front, 4.0).cannot_reach_front({"accuracy": (0.75, 0.05)}, 0.9), (
        "most examples are in: the interval is narrow"
    )
    assert not early_stopping(front, 2.0).cannot_reach_front({"accuracy": (0.1, 0.05)}, 0.0), "nothing is as fast"
    assert not early_stopping(front, 4.0).cannot_reach_front({"accuracy": (0.0, 0.0)}, 0.5), (
        "no spread is no certainty"
    )
    assert early_stopping([], 4.0, accuracy=">= 0.9").cannot_reach_front({"accuracy": (0.7, 0.05)}, 0.0)
    assert not early_stopping([], 4.0).cannot_reach_front({"accuracy": (0.7, 0.05)}, 0.0)


def test_a_truncated_evaluation_is_completed_for_a_front_that_it_could_reach(tmp_path: Path) -> None:
    scheduler = new_scheduler(tmp_path, stand_in_recipe(30))
    search, _, random = scheduler.queues
    while (evaluation := search.ask()) is not None and evaluation.early_stopping is None:
        scheduler.tell(evaluation, StandIn(tmp_path / "evaluations.log", 0.0)(evaluation.subnet, None))
    assert isinstance(evaluation, PendingEvaluation)
    scheduler.tell(evaluation, Outcome({"accuracy": (0.1, 0.01)}, 50, is_complete=False))
    assert search.study.trials[evaluation.trial.number].user_attrs["examples"] == 50
    other = PendingEvaluation(
        random,
        random.study.ask(),
        evaluation.subnet,
        random.evaluator.early_stopping(evaluation.subnet, np.empty((0, 2))),
    )
    assert isinstance(random, TrialQueue) and not random._resolve(other), "random's own front is still empty"
