"""How a search ends, and what it does with evaluations that fail, over real studies with stand-in evaluations."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from optuna.trial import TrialState
from stand_in_search import changed, executed, new_scheduler, run, space_and_evaluator, states

from experiments.bench.stand_in import StandIn, stand_in_recipe, subnet_widths
from nas.fronts.front import ParetoFront
from nas.fronts.point import Point
from nas.recipe.schema import Recipe
from nas.studies.expected_front import expected_front
from nas.studies.failures import Failure
from nas.studies.interrupt import graceful_interrupt
from nas.studies.racing import EarlyStopping, Evaluate, Outcome
from nas.studies.search_loop import run_locally
from nas.studies.search_progress import HypervolumeReference, SearchProgress
from nas.studies.startup_trials import first_subnets
from nas.studies.study import (
    bind_study,
    complete_trials,
    evaluated_points,
    open_studies,
    trials_csv,
)
from nas.tasks.metrics import MetricError, NotFiniteError
from search_spaces import InputError, SubnetConfig

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
