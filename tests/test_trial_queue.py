"""Trial queues over real studies with stand-in evaluations: resuming, sharing, stopping, failing, every sampler."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from experiments.bench.stand_in import StandIn, stand_in_evaluator, stand_in_recipe, subnet_widths
from nas.fronts.front import ParetoFront
from nas.fronts.point import Point
from nas.recipe.schema import OPTUNA_SAMPLERS, Recipe
from nas.studies.concurrent_drivers import ConcurrentDrivers
from nas.studies.evaluator import Evaluator
from nas.studies.expected_front import expected_front
from nas.studies.failures import Failure
from nas.studies.interrupt import graceful_interrupt
from nas.studies.racing import EarlyStopping, Evaluate, Outcome
from nas.studies.sampler import check_sampler
from nas.studies.search_loop import EvaluationScheduler, build_queues, run_locally, study_fingerprint
from nas.studies.search_progress import HypervolumeReference, SearchProgress
from nas.studies.startup_trials import first_subnets
from nas.studies.study import (
    bind_study,
    complete_trials,
    earlier_studies,
    evaluated_points,
    open_repeats,
    open_studies,
    trials_csv,
)
from nas.studies.trial_queue import PendingEvaluation, TrialQueue
from nas.tasks.metrics import MetricError, NotFiniteError
from search_spaces import InputError, SearchSpace, SubnetConfig

CACHED: dict[str, tuple[SearchSpace, Evaluator]] = {}


def space_and_evaluator(recipe: Recipe) -> tuple[SearchSpace, Evaluator]:
    """A space over a tiny BERT and its costs, built once."""
    if not CACHED:
        CACHED["space"] = stand_in_evaluator(recipe, layers=4)
    space, cached = CACHED["space"]
    return space, Evaluator(recipe, cached.supernet, cached.examples, cached.predictors)


def new_scheduler(folder: Path, recipe: Recipe, driver: str | None = None) -> EvaluationScheduler:
    folder.mkdir(exist_ok=True)
    (space, evaluator), file = space_and_evaluator(recipe), folder / "study.log"
    studies = open_studies(file, recipe) | open_repeats(file, recipe)
    fingerprint = study_fingerprint(recipe, space, {})
    for study in studies.values():
        bind_study(study, fingerprint)
    earlier = earlier_studies(studies, fingerprint)
    return EvaluationScheduler(build_queues(studies, recipe, space, evaluator, driver, earlier))


def run(folder: Path, recipe: Recipe, evaluate: Evaluate | None = None) -> dict[str, optuna.Study]:
    """Runs a search with stand-ins; returns its studies, opened again."""
    scheduler = new_scheduler(folder, recipe)
    with scheduler.reporting():
        run_locally(scheduler, evaluate or StandIn(folder / "evaluations.log", 0.0))
    return open_studies(folder / "study.log", recipe)


def executed(folder: Path, what: str = "end") -> Counter[str]:
    """Key -> how often it was evaluated."""
    log = folder / "evaluations.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return Counter(line.split()[1] for line in lines if line.startswith(what))


def states(study: optuna.Study) -> Counter[str]:
    return Counter(trial.state.name for trial in study.get_trials(deepcopy=False))


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


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
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


def changed(recipe: Recipe, **sections: object) -> Recipe:
    """The recipe with other sections."""
    return Recipe.parse({**recipe.model_dump(), **sections})


@pytest.mark.parametrize("storage", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_more_evaluations_a_tighter_constraint_and_another_objective_evaluate_nothing_twice(
    tmp_path: Path, storage: bool
) -> None:
    database = {"storage": f"sqlite:///{tmp_path}/study.db"} if storage else {}
    first = stand_in_recipe(14 if storage else 30, sampler="RandomSampler", confidence=1, **database)
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


# -- stops --------------------------------------------------------------------------------------------------------


def test_the_search_stops_when_the_hypervolume_has_stalled(tmp_path: Path) -> None:
    def flat(subnet: SubnetConfig, early_stopping: EarlyStopping | None) -> Outcome:
        return Outcome({"accuracy": (0.5, 0.1)}, 100)

    studies = run(tmp_path, stand_in_recipe(300, patience=15), flat)
    counts = {name: len(evaluated_points(study)) for name, study in studies.items()}
    assert counts["search"] == counts["random"] < 100
    assert {
        n: len(evaluated_points(s)) for n, s in run(tmp_path, stand_in_recipe(300, patience=15), flat).items()
    } == counts


def test_steady_small_growth_is_no_stall() -> None:
    progress = SearchProgress(stand_in_recipe(10), 0, HypervolumeReference(np.array([0.0, 10.0])))
    subnet = space_and_evaluator(stand_in_recipe(10))[0].parent
    for step in range(100):  # each adds less than 0.1 %, all together 8 %
        progress.add(Point(subnet, {"accuracy": 0.5 + 0.0004 * step, "latency_ms": 5.0}))
        assert not progress.has_stalled(20)
    for _ in range(20):
        progress.add(Point(subnet, {"accuracy": 0.5, "latency_ms": 5.0}))
    assert progress.has_stalled(20)


def test_minutes_bound_startup_proposals_and_the_random_baseline_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("nas.studies.stopping.time.monotonic", lambda: now)

    def evaluate(subnet: SubnetConfig, early_stopping: EarlyStopping | None) -> Outcome:
        nonlocal now
        now += 1.0
        return StandIn(tmp_path / "evaluations.log", 0.0)(subnet, early_stopping)

    recipe = stand_in_recipe(5000, minutes=2, sampler="RandomSampler", confidence=1)
    studies = run(tmp_path, recipe, evaluate)
    counts = {name: len(evaluated_points(study)) for name, study in studies.items()}
    assert counts["search"] == 60 and now <= 120, "half for the search, the rest for random search"
    planned = sum(bool(t.user_attrs.get("planned")) for t in studies["search"].get_trials(deepcopy=False))
    assert planned <= 30, "the sampler has the larger part"
    assert counts["random"] >= 60, "those that the search has made too cost nothing"
    assert {name: len(evaluated_points(study)) for name, study in run(tmp_path, recipe).items()} == counts
    longer = run(tmp_path, changed(recipe, search={**recipe.search.model_dump(), "minutes": 3}), evaluate)
    assert len(evaluated_points(longer["search"])) == 90 and now <= 180


def test_minutes_and_hours_are_one_bound() -> None:
    assert stand_in_recipe(10, hours=2).search.seconds == stand_in_recipe(10, minutes=120).search.seconds == 7200
    with pytest.raises(InputError, match=r"`search\.minutes` and `search\.hours` are one bound"):
        stand_in_recipe(10, hours=2, minutes=3)


def test_the_fronts_of_earlier_runs_are_evaluated_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = stand_in_recipe(40, sampler="RandomSampler", earlier=["runs/a"])
    space, _ = space_and_evaluator(recipe)
    rng = Random(7)
    points = [Point(space.sample(rng), {"accuracy": n / 10, "latency_ms": float(n)}) for n in range(1, 5)]
    front = ParetoFront.of(points, {"accuracy": "maximize", "latency_ms": "minimize"})
    monkeypatch.setattr("nas.studies.startup_trials.Run", Path)
    monkeypatch.setattr("nas.studies.startup_trials.front_so_far", {Path("runs/a"): front}.__getitem__)
    keys = [point.key for point in evaluated_points(run(tmp_path, recipe)["search"])]
    first = len(first_subnets(*space_and_evaluator(recipe)))
    assert {point.key for point in front} <= set(keys[: first + 4])


def test_ctrl_c_finishes_what_is_in_flight(tmp_path: Path) -> None:
    recipe = stand_in_recipe(30)
    scheduler, stand_in = new_scheduler(tmp_path, recipe), StandIn(tmp_path / "evaluations.log", 0.0)

    def interrupted(subnet: SubnetConfig, early_stopping: EarlyStopping | None) -> Outcome:
        if scheduler.queues[0].progress.n_evaluated == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return stand_in(subnet, early_stopping)

    with pytest.raises(KeyboardInterrupt), graceful_interrupt(scheduler.stop), scheduler.reporting():
        run_locally(scheduler, interrupted)
    study = open_studies(tmp_path / "study.log", recipe)["search"]
    assert states(study)["COMPLETE"] == 8 and states(study)["RUNNING"] == 0
    assert len(evaluated_points(run(tmp_path, recipe)["search"])) == 30 and set(executed(tmp_path).values()) == {1}


def test_the_progress_agrees_with_the_front(tmp_path: Path) -> None:
    recipe = stand_in_recipe(25)
    study = run(tmp_path, recipe)["search"]
    reference = HypervolumeReference()
    progress, points = SearchProgress(recipe, 10, reference), evaluated_points(study)
    for point in points:
        progress.add(point)
    front = ParetoFront.of(points, recipe.objectives)
    values = dict(zip(recipe.objectives, progress.signs * reference.point, strict=True))
    assert progress.hypervolume == pytest.approx(front.hypervolume(values))
    again = SearchProgress(recipe, 10, reference)
    for point in reversed(points):
        again.add(point)
    assert again.hypervolume == pytest.approx(progress.hypervolume)
    assert len(progress.front) == len(front) and progress.best == front.best("accuracy").values["accuracy"]


# -- what goes wrong ----------------------------------------------------------------------------------------------


def test_trials_state_the_errors_of_their_scores_and_the_lucky_are_not_on_the_front(tmp_path: Path) -> None:
    def noisy(subnet: SubnetConfig, early_stopping: EarlyStopping | None) -> Outcome:
        accuracy = 0.5 + sum(map(sum, subnet_widths(subnet))) / 4000
        luck = np.random.default_rng(int(subnet.key, 16)).normal(0, 0.05)
        return Outcome({"accuracy": (accuracy + luck, 0.05)}, 100)

    recipe = stand_in_recipe(40, sampler="RandomSampler")
    study, space = run(tmp_path, recipe, noisy)["search"], space_and_evaluator(recipe)[0]
    assert {tuple(trial.user_attrs["standard_errors"]) for trial in complete_trials(study)} == {(0.05, 0.0)}
    points = evaluated_points(study)

    def promised(front: ParetoFront) -> float:
        true = [0.5 + sum(map(sum, subnet_widths(point.subnet))) / 4000 for point in front]
        return float(np.mean([point.values["accuracy"] for point in front]) - np.mean(true))

    assert promised(ParetoFront.of(points, recipe.objectives)) > 0.02
    assert abs(promised(expected_front(points, recipe, space))) < 0.01


def failing(stand_in: StandIn, every: int, how: Callable[[], Outcome]) -> Evaluate:
    """Every so many evaluations end in another way."""
    calls = iter(range(1, 10_000))
    return lambda subnet, early_stopping: how() if next(calls) % every == 0 else stand_in(subnet, early_stopping)


def raises() -> Outcome:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("how", "cause"),
    [(raises, "error"), (lambda: Outcome({"accuracy": (float("nan"), 0.1)}, 100), "not finite")],
)
def test_a_failed_evaluation_is_kept_and_the_search_goes_on(
    how: Callable[[], Outcome], cause: str, tmp_path: Path
) -> None:
    recipe = stand_in_recipe(30, sampler="NSGAIISampler")
    studies = run(tmp_path, recipe, failing(StandIn(tmp_path / "evaluations.log", 0.0), 4, how))
    assert len(evaluated_points(studies["search"])) == 30
    failed = studies["search"].get_trials(deepcopy=False, states=(TrialState.FAIL,))
    assert len(failed) >= 7 and all(t.user_attrs["failure"].strip().endswith(("by zero", "nan")) for t in failed)
    assert {t.user_attrs["cause"] for t in failed} == {cause}
    assert not states(studies["search"])["RUNNING"] and f",{cause}," in trials_csv(studies.values())


class Failing:
    """Evaluates with stand-ins, but raises for some of the calls."""

    def __init__(self, folder: Path, error: BaseException, calls: Callable[[int], bool]) -> None:
        self.stand_in, self.error, self.calls = StandIn(folder / "evaluations.log", 0.0), error, calls
        self.asked: list[str] = []
        self.raised: list[str] = []

    def __call__(self, subnet: SubnetConfig, early_stopping: EarlyStopping | None) -> Outcome:
        self.asked.append(subnet.key)
        if self.calls(len(self.asked)):
            self.raised.append(subnet.key)
            raise self.error
        return self.stand_in(subnet, early_stopping)


@pytest.mark.parametrize(
    ("error", "attempts"),
    [(MemoryError(), 2), (TimeoutError("too slow"), 2), (OSError(28, "No space left"), 2), (ValueError("wrong"), 1)],
)
def test_transient_failures_are_tried_once_more_and_others_are_not(
    error: BaseException, attempts: int, tmp_path: Path
) -> None:
    once = Failing(tmp_path / "once", error, lambda call: call == 12)
    studies = run(tmp_path / "once", stand_in_recipe(20, sampler="RandomSampler"), once)
    assert once.asked.count(once.raised[0]) == attempts
    assert states(studies["search"])["FAIL"] == 2 - attempts and len(evaluated_points(studies["search"])) == 20
    always = Failing(tmp_path / "always", error, lambda call: call in (12, 13))
    run(tmp_path / "always", stand_in_recipe(20, sampler="RandomSampler"), always)
    assert always.asked.count(always.raised[0]) == attempts


def test_what_failed_is_tried_again_when_the_command_is_typed_again(tmp_path: Path) -> None:
    broken = Failing(tmp_path, RuntimeError("the file of the metric is broken"), lambda call: True)
    with pytest.raises(InputError, match=r"but 5 failed \(5 error\), .*RuntimeError: the file.*trials\.csv"):
        run(tmp_path, stand_in_recipe(30), broken)
    study = open_studies(tmp_path / "study.log", stand_in_recipe(30))["search"]
    assert states(study)["FAIL"] == 5 and not states(study)["RUNNING"]
    mended = Failing(tmp_path, RuntimeError(), lambda call: False)
    studies = run(tmp_path, stand_in_recipe(30), mended)
    assert set(broken.raised) <= set(mended.asked) and set(Counter(mended.asked).values()) == {1}
    assert len(evaluated_points(studies["search"])) == 30
    keys = {point.key for point in evaluated_points(studies["uniform"])}
    assert keys == {subnet.key for subnet in space_and_evaluator(stand_in_recipe(30))[0].uniform_scalings()}


def test_failures_end_no_search_in_which_an_evaluation_has_succeeded(tmp_path: Path) -> None:
    recipe = stand_in_recipe(20, sampler="RandomSampler")
    lost = Failing(tmp_path, RuntimeError("the device is lost"), lambda call: call > 8)
    studies = run(tmp_path, recipe, lost)
    assert len(evaluated_points(studies["search"])) == 8 and states(studies["search"])["FAIL"] >= 20
    assert len(evaluated_points(run(tmp_path, recipe)["search"])) == 20


def test_causes_of_failures_are_told_apart() -> None:
    def cause(error: BaseException, source: BaseException | None = None) -> str:
        try:
            raise error from source
        except BaseException as raised:
            return Failure.from_exception(raised).cause

    assert cause(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")) == "memory"
    assert cause(RuntimeError("DefaultCPUAllocator: can't allocate memory")) == "memory"
    assert cause(MetricError("metric `own` fails"), MemoryError()) == "memory"
    assert cause(MetricError("metric `own` fails"), ValueError("one class")) == "metric"
    assert cause(MetricError("metric `own` fails"), TimeoutError()) == "time limit"
    assert cause(NotFiniteError("it returned nan")) == "not finite"
    assert cause(ConnectionResetError()) == "input/output"
    assert cause(RuntimeError("shapes differ")) == "error"


def test_a_hundred_infeasible_evaluations_name_the_binding_constraint(tmp_path: Path) -> None:
    constraints = {"accuracy": ">= 0.99", "size_mb": "<= 1.9"}
    recipe = Recipe.parse({**stand_in_recipe(300).model_dump(), "constraints": constraints})
    with pytest.raises(InputError, match=r"none of 100 .*`accuracy` binds: 100% .*for `>= 0.99`"):
        run(tmp_path, recipe)
    assert sum(executed(tmp_path).values()) == 100


def test_a_study_of_another_recipe_is_refused(tmp_path: Path) -> None:
    study = open_studies(tmp_path / "study.log", stand_in_recipe(10))["search"]
    bind_study(study, {"space": "a", "supernet": "b"})
    bind_study(study, {"space": "a", "supernet": "b"})
    with pytest.raises(InputError, match=r"study `search` is of another `supernet` \(b against c\).*--run"):
        bind_study(study, {"space": "a", "supernet": "c"})


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
