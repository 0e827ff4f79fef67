"""The time budget of measuring: it holds on any machine, and stopping anywhere leaves models equally well known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from weakref import WeakSet

import pytest

from nas.recipe.objectives import Bound
from nas.stages.verify import _not_told_apart
from predictors import Timing, Workload, measure
from predictors.measurement import rounds as rounds_module
from predictors.measurement.budget import Budget
from predictors.measurement.groups import LOADING_SHARE, Visit, group_size
from predictors.measurement.rounds import Call, Rounds
from predictors.measurement.timing import REFERENCE, reported_latency


class Machine:
    """A machine whose clock moves only while a model is loaded or runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, load_s: float = 0.0, call_s: float = 1.0) -> None:
        self.now, self.load_s, self.call_s = 0.0, load_s, call_s
        self.loaded: list[str] = []
        self.stored: dict[str, Timing] = {}
        monkeypatch.setattr(rounds_module, "fastest_ms", self._run)
        monkeypatch.setattr(rounds_module.gc, "collect", lambda: 0)

    def clock(self) -> float:
        return self.now

    def load(self, name: str) -> Call:
        self.now += self.load_s
        self.loaded.append(name)
        return lambda: name

    def _run(self, call: Callable[[], str], calls: int, workload: Workload) -> float:
        call()
        self.now += self.call_s
        return 1e3 * self.call_s

    def visit(self, seconds: float | None, **options: object) -> Visit:
        budget = Budget(seconds, self.clock)
        return Visit(self.load, Workload(), budget, self.stored.update, **options)  # type: ignore[arg-type]


NAMES = [f"model {n}" for n in range(20)]


@pytest.mark.parametrize("call_s", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("load_s", [0.0, 0.5])
@pytest.mark.parametrize("size", [4, 64])
def test_a_budget_holds_on_any_machine(
    call_s: float, load_s: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(monkeypatch, load_s, call_s)
    measured = machine.visit(100.0, size=size).measure(NAMES)
    one_more = (load_s + 4 * call_s) * 2  # what was begun is ended: a model with its reference
    assert machine.now <= 100 + one_more or len(measured) < len(NAMES)
    assert machine.now <= 100 + one_more + 4 * min(size, len(measured)) * call_s
    assert set(machine.stored) == {*measured, REFERENCE}


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_every_model_gets_as_many_rounds_as_every_other(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, load_s=0.3, call_s=0.01)
    assert len(machine.visit(60.0, size=size).measure(NAMES)) == len(NAMES)
    rounds = [machine.stored[name].rounds for name in NAMES]
    assert max(rounds) - min(rounds) <= max(2, 0.1 * max(rounds)), rounds


@pytest.mark.parametrize("stop_after", [1, 5, 17, 38])
def test_stopping_anywhere_leaves_models_equally_well_known(stop_after: int) -> None:
    calls = {name: (lambda: None) for name in NAMES}
    rounds = Rounds(calls, lambda: None, Workload(), seed=1)
    for _ in range(3):
        rounds.run(stop=lambda: len(rounds.samples) >= stop_after)
    counts = Counter({name: 0 for name in NAMES}) + Counter()
    counts = {name: sum(sample.name == name for sample in rounds.samples) for name in NAMES}  # type: ignore[assignment]
    assert sum(counts.values()) == stop_after and max(counts.values()) - min(counts.values()) <= 1


def test_a_machine_too_slow_for_all_measures_fewer_but_no_fewer_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, load_s=10.0, call_s=0.1)
    measured = machine.visit(100.0).measure(NAMES)
    assert measured == NAMES[: len(measured)] and 100 * LOADING_SHARE / 10 <= len(measured) + 1 < len(NAMES)
    machine = Machine(monkeypatch, load_s=10.0, call_s=0.1)
    assert machine.visit(0.01, least=6).measure(NAMES) == NAMES[:6]


def test_an_open_budget_is_proposed_from_the_first_round(monkeypatch: pytest.MonkeyPatch) -> None:
    for call_s in (0.01, 0.02):
        machine = Machine(monkeypatch, load_s=0.1, call_s=call_s)
        visit = machine.visit(None, size=5)
        assert visit.measure(NAMES) == NAMES
        assert visit.budget.seconds == pytest.approx(2.0 + 12 * 20 * 4 * call_s, rel=0.3)
        assert machine.now <= visit.budget.seconds + 20 * call_s + 1


def test_measuring_ends_once_it_is_enough_and_goes_on_with_the_next_group(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, asked = Machine(monkeypatch, call_s=0.01), []

    def enough(timings: Mapping[str, Timing]) -> bool:
        asked.append(len(timings))
        return True

    visit = machine.visit(1000.0, size=10, enough=enough)
    assert visit.measure(NAMES) == NAMES and asked == [11, 11] and machine.now < 10
    assert {timing.rounds for name, timing in machine.stored.items() if name != REFERENCE} == {6}
    ended = machine.visit(1000.0, size=10, enough=enough, is_done=lambda: len(asked) == 3)
    assert ended.measure(NAMES) == NAMES[:10]


def test_a_killed_visit_has_stored_what_it_knew(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, call_s=0.01)

    def killed(timings: Mapping[str, Timing]) -> bool:
        if machine.now > 60:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        machine.visit(1000.0, enough=killed).measure(NAMES)
    assert set(NAMES) < set(machine.stored)


def test_measure_keeps_a_budget_whatever_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, call_s=0.1)
    budget = Budget(30.0, machine.clock)
    timed = measure({"a": lambda: "a"}, lambda: "r", Workload(), precision=1e-9, rounds=10**6, budget=budget)
    assert 29 < machine.now < 31 and timed["a"].rounds > 100


def test_a_group_fits_into_a_quarter_of_the_memory() -> None:
    assert group_size(90, 16_000) == 22 and group_size(1, 16_000) == 64 and group_size(5000, 8000) == 1


@pytest.mark.parametrize("size", [1, 7])
def test_a_group_is_freed_before_the_next_one_is_loaded(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, alive = Machine(monkeypatch), WeakSet[Call]()

    def load(name: str) -> Call:
        call = partial(machine.load, name)
        alive.add(call)
        assert len(alive) <= size + 1, "with the reference"
        return call

    visit = Visit(load, Workload(), Budget(1000.0, machine.clock), machine.stored.update, size=size)
    assert visit.measure(NAMES) == NAMES


def test_a_bound_has_three_answers() -> None:
    bound = Bound("<=", 5.0)
    assert [bound.verdict(ms, 0.2) for ms in (4.7, 4.9, 5.1, 5.3)] == ["holds", "undecided", "undecided", "misses"]
    assert [bound.verdict(ms) for ms in (5.0, 5.1)] == ["holds", "misses"]
    assert [Bound(">", 5.0).verdict(ms, 0.2) for ms in (4.7, 5.1, 5.3)] == ["misses", "undecided", "holds"]
    assert [Bound("==", 5.0).verdict(ms, 0.2) for ms in (4.7, 5.1)] == ["misses", "undecided"]


def _timing(ratio: float, half: float) -> Timing:
    return Timing(ratio, ratio, ratio, ratio, ratio, 9, ratio - half, ratio + half)


def test_neighbours_are_told_apart_by_disjoint_intervals_or_precise_ones() -> None:
    timings = {"a": _timing(1.0, 0.05), "b": _timing(1.2, 0.05), "c": _timing(1.22, 0.2), "d": _timing(2.0, 0.5)}
    assert _not_told_apart(timings, 0.03) == [("b", "c")]
    assert _not_told_apart(timings, 0.2) == []


def test_a_latency_of_few_rounds_is_not_said_to_be_certain() -> None:
    once = Timing(1.0, 2.0, 2.0, 2.0, 2.0, 1)
    assert reported_latency(once, None, []).error_ms == pytest.approx(0.2)
    pairs = [(once, Timing(1.0, 2.1, 2.1, 2.1, 2.1, 1))] * 9
    assert reported_latency(once, None, pairs).error_ms == pytest.approx(0.1, rel=0.05)
    assert reported_latency(once, once, [(once, once)]).error_ms == pytest.approx(0.2), "equal by chance"
