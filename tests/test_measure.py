"""Measurement: ratios to the anchor, and the workload as a recipe field."""

from __future__ import annotations

import gc
import json
import math
from dataclasses import asdict
from random import Random

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError
from test_store import timing

from predictors import Timing, Workload
from predictors import measure as measure_function
from predictors.measurement import energy, measure
from predictors.measurement.memory import peak_memory_mb
from predictors.measurement.timing import ANCHOR, combine, median_interval, noise_warning, stated
from predictors.measurement.workload import one_line_errors
from search_spaces import InputError


def product(rows: int):
    """A stand-in for a model: one matrix product, whose work is proportional to ``rows``."""
    a, b = torch.ones(rows, 256), torch.ones(256, 256)
    return lambda: a @ b


@pytest.fixture(scope="module")
def timings() -> dict[str, Timing]:
    candidates = {"same": product(128), "eightfold": product(1024)}
    return measure(candidates, product(128), Workload(), anchor_ms=100.0, rounds=9)


def test_more_work_has_a_larger_ratio(timings):
    assert timings["eightfold"].ratio > 2 * timings["same"].ratio
    assert 0.3 < timings["same"].ratio < 3


def test_latency_is_the_ratio_times_the_reference_anchor(timings):
    for t in timings.values():
        assert t.latency_ms == pytest.approx(100.0 * t.ratio)
        assert t.latency_ms_p10 <= t.latency_ms <= t.latency_ms_p90
        assert 0 < t.raw_ms < 100
    assert timings["anchor"].latency_ms == pytest.approx(100.0)


def test_without_a_reference_the_anchor_of_the_call_is_it():
    anchor = measure({}, product(128), Workload(), rounds=5)["anchor"]
    assert anchor.ratio == pytest.approx(1.0)
    assert 0 < anchor.latency_ms < 100
    assert anchor.rounds == 5


def test_calls_run_as_the_workload_says_and_all_is_restored():
    seen = []

    def spy() -> None:
        seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled(), gc.isenabled()))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure({"spy": spy}, product(8), Workload(threads=1), rounds=2)
        assert set(seen) == {(1, True, False)}
        assert torch.get_num_threads() == 2 and gc.isenabled() and not torch.is_inference_mode_enabled()
        with pytest.raises(ZeroDivisionError):
            measure({"broken": lambda: 1 / 0}, product(8), Workload(), rounds=2)
        assert torch.get_num_threads() == 2 and gc.isenabled()
    finally:
        torch.set_num_threads(before)


def order_of_visits(seed: int) -> list[str]:
    seen: list[str] = []
    names = ("a", "b", "c", "d")
    calls = {name: (lambda n=name: seen.append(n)) for name in names}
    measure(calls, lambda: None, Workload(), rounds=4, seed=seed)
    return [name for name, last in zip(seen, [None, *seen], strict=False) if name != last]


def test_the_order_is_random_but_seeded():
    assert order_of_visits(0) == order_of_visits(0) != order_of_visits(1)


def test_visits_beside_a_slow_anchor_do_not_count():
    module = __import__("sys").modules[measure_function.__module__]
    calm = [module._Visit("a", 100, 50, 100)] * 6
    slow = [module._Visit("a", 160, 100, 160)] * 12
    changing = [module._Visit("a", 100, 90, 160)] * 3
    out = module._timings(calm + slow + changing, None)
    assert (out["a"].rounds, out["a"].ratio, out["a"].raw_ms) == (6, 0.5, 50)
    assert (out[ANCHOR].rounds, out[ANCHOR].raw_ms, out["a"].drift) == (6, 100, 0)
    loose = module._timings(calm + slow + changing, None, precision=0.6)
    assert (loose["a"].rounds, loose[ANCHOR].rounds) == (21, 21), "less than the wanted precision is no disturbance"
    few = module._timings(calm[:3] + slow + changing, None)
    assert (few["a"].rounds, few["a"].raw_ms) == (18, 100)


def test_rounds_go_on_until_every_model_was_visited_in_calm(monkeypatch):
    module = __import__("sys").modules[measure_function.__module__]
    seen, rng = [], Random(0)
    slow = {ANCHOR: lambda: 160.0, "steady": lambda: 64.0, "noisy": lambda: 64.0 * rng.uniform(0.7, 1.3)}
    calm = {ANCHOR: lambda: 100.0, "steady": lambda: 50.0, "noisy": lambda: 50.0}

    def fake(name: str, calls: int, workload: Workload) -> float:
        seen.append(name)
        return (slow if len(seen) < 47 else calm)[name]()

    monkeypatch.setattr(module, "_time", fake)
    models = {name: name for name in slow}
    visits = module._visits(models, dict.fromkeys(models, 1), Workload(), Random(0), least=11, most=60, precision=0.01)
    for found in module._timings(visits, 100.0).values():
        assert found.drift == pytest.approx(0)
    assert module._timings(visits, 100.0)["steady"].ratio == pytest.approx(0.5)
    assert len(visits) < 2 * 60


def test_an_anchor_slower_than_its_reference_is_a_drift():
    module = __import__("sys").modules[measure_function.__module__]
    steady = [module._Visit("a", 100, 50, 100)] * 9
    assert module._timings(steady, 100)["a"].drift == pytest.approx(0)
    assert module._timings(steady, 50)["a"].drift == pytest.approx(1.0)
    assert module._timings(steady, 200)["a"].drift == pytest.approx(-0.5)
    never_calm = [module._Visit("b", n, n, n) for n in range(150, 159)]
    out = module._timings(steady + never_calm, 100)
    assert (out[ANCHOR].drift, out["a"].drift, out["b"].drift) == pytest.approx((0, 0, 0.54))


def test_timings_beside_another_reference_are_those_that_it_would_have_given():
    module = __import__("sys").modules[measure_function.__module__]
    visits = [module._Visit("a", 100 + n, 50, 100 + n) for n in range(9)]
    by_two = module._timings(visits, 2.0)["a"].beside(3.0)
    assert asdict(by_two) == pytest.approx(asdict(module._timings(visits, 3.0)["a"]))
    assert by_two.beside(3.0) == by_two


def test_uncorrected_is_on_the_scale_of_what_it_took():
    module = __import__("sys").modules[measure_function.__module__]
    timed = module._timings([module._Visit("a", 100, 50, 100)] * 9, 80)
    assert (timed[ANCHOR].latency_ms, timed["a"].latency_ms) == (80, 40)
    assert (timed[ANCHOR].uncorrected.latency_ms, timed["a"].uncorrected.latency_ms) == (100, 50)
    assert timed["a"].uncorrected.drift == pytest.approx(0)


@pytest.mark.parametrize(
    ("drifts", "kept", "precision"),
    [
        ((0.05,), 0, 0.03),
        ((-0.9,), 0, 0.03),
        ((0.09, 0.0), 1, 0.03),
        ((0.09,), 0, 0.1),
        ((0.3, 0.9), 0, 0.1),
        ((0.9, 0.3), 1, 0.1),
    ],
)
def test_a_disturbed_measurement_is_made_once_more_and_the_calmer_counts(drifts, kept, precision, monkeypatch):
    module = __import__("sys").modules[measure_function.__module__]
    found = [{ANCHOR: spread_timing(1.0, 0.9, 1.1, drift)} for drift in drifts]
    left = iter(found)
    monkeypatch.setattr(module, "measure", lambda *_, **__: next(left))
    timed = module.measure_in_calm({}, lambda: None, Workload(), anchor_ms=None, precision=precision)
    assert timed is found[kept] and next(left, None) is None


def test_rounds_go_on_until_the_precision_is_reached_or_the_limit():
    module = __import__("sys").modules[measure_function.__module__]
    models = {ANCHOR: product(8), "spy": product(8)}

    def rounds(precision: float) -> int:
        limits = {"least": 6, "most": 9, "precision": precision}
        return len(module._visits(models, dict.fromkeys(models, 1), Workload(), Random(0), **limits))

    assert (rounds(math.inf), rounds(0.0)) == (6, 9)
    timing = measure({"spy": product(8)}, product(8), Workload(), rounds=6, max_rounds=9, precision=0.0)["spy"]
    assert "worst, spy" in noise_warning({"spy": timing}, 0.0)


def test_the_interval_of_a_median_covers_it_whatever_the_distribution():
    values = np.random.default_rng(0).lognormal(size=(4000, 11))
    inside = [low <= 1.0 <= high for low, high in map(median_interval, values)]
    assert 0.94 < np.mean(inside) < 0.99
    assert median_interval([1.0, 2.0, 3.0]) == (0.0, math.inf)
    assert median_interval(range(1, 7)) == (1, 6)


def spread_timing(latency_ms: float, low: float, high: float, drift: float = 0.0) -> Timing:
    return Timing(1.0, latency_ms, latency_ms * 0.9, latency_ms * 1.1, latency_ms, 11, low, high, drift)


def test_what_is_imprecise_or_drifted_is_said():
    good, bad = spread_timing(1.0, 0.99, 1.01), spread_timing(1.0, 0.9, 1.1)
    assert noise_warning({"a": good, ANCHOR: bad}, 0.02) == ""
    said = noise_warning({"a": good, "b": bad}, 0.02)
    assert "1 of 2" in said and "the worst, b, within 10.0%" in said and "10-90 % spread 10%" in said
    assert (
        noise_warning({"a": spread_timing(1.0, 0.99, 1.01, drift=-0.2)}, 0.02)
        == "the anchor took 20% less than its reference"
    )


def test_nine_in_ten_repetitions_lie_within_the_stated_interval():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        true = rng.uniform(1, 10, 20)
        first, again, third = ([timing(x) for x in true * np.exp(rng.normal(0, 0.03, 20))] for _ in range(3))
        pairs = list(zip(first, again, strict=True))
        found = [stated(one, two, pairs) for one, two in pairs]
        inside += [abs(t.latency_ms - s.latency_ms) <= s.error_ms for t, s in zip(third, found, strict=True)]
    assert 0.9 < np.mean(inside) < 0.99
    assert stated(timing(2.0), None, []).error_ms == pytest.approx(0.2)


def test_two_loadings_are_joined_to_intervals_that_cover_both():
    both = combine(spread_timing(1.0, 0.95, 1.0, 0.01), spread_timing(4.0, 0.99, 1.2, -0.05))
    assert (both.latency_ms, both.ratio_low, both.ratio_high, both.rounds) == (2.0, 0.95, 1.2, 22)
    assert both.drift == -0.05 and both.latency_ms_p90 == pytest.approx(4.4)


def test_a_device_that_is_lost_is_one_line():
    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with (
        pytest.raises(InputError, match=r"`cuda:0` must stay.*was lost.*kept"),
        one_line_errors(Workload(device="cuda:0")),
    ):
        lost()
    with pytest.raises(RuntimeError, match="CUDA error"), one_line_errors(Workload()):
        lost()


def test_memory_that_runs_out_is_one_line_whatever_the_runtime_raises():
    class Fail(Exception):
        """ONNX Runtime's errors derive from nothing narrower."""

    with pytest.raises(InputError, match=r"fit in memory.*batch_size"), one_line_errors(Workload()):
        raise Fail("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer")


# -- memory and energy --------------------------------------------------------------------------------------------


def test_peak_memory_is_what_a_model_adds():
    def load():
        held = np.ones(8_000_000)
        return lambda: held.sum()

    found = peak_memory_mb(load, Workload())
    assert found is not None and 60 < found < 200


def test_energy_is_read_from_the_counters_of_all_packages_and_outlives_their_wrapping(tmp_path):
    assert energy.counter(Workload(), tmp_path) is None
    for zone, microjoules in (("intel-rapl:0", 900), ("intel-rapl:1", 500), ("intel-rapl:0:0", 7)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "max_energy_range_uj").write_text("1000\n")
        (tmp_path / zone / "energy_uj").write_text(f"{microjoules}\n")
    joules = energy.counter(Workload(), tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("550\n")
    assert joules is not None and joules() == pytest.approx(250e-6)


def test_energy_of_a_pass_is_above_the_idle_device(monkeypatch):
    joules = iter([0.0, 0.0, 10.0, 16.0])
    monkeypatch.setattr(energy, "counter", lambda workload: lambda: next(joules))
    passes: list[int] = []
    found = energy.energy_mj(lambda: passes.append(0), Workload(), seconds=0.01)
    assert found == pytest.approx(6e3 / len(passes))
    monkeypatch.setattr(energy, "counter", lambda workload: None)
    assert energy.energy_mj(lambda: None, Workload()) is None


@pytest.mark.parametrize("arguments", [{"rounds": 0}, {"candidates": {"anchor": product(8)}}])
def test_what_cannot_be_measured_is_refused(arguments):
    with pytest.raises(InputError):
        measure(**{"candidates": {}, "anchor": product(8), "workload": Workload(), **arguments})


# -- the workload -------------------------------------------------------------------------------------------------


class Recipe(BaseModel):
    workload: Workload = Workload()


@pytest.mark.parametrize(
    "wrong", [{"threads": 0}, {"batch_size": -1}, {"thread": 1}, {"dtype": "fp8"}, {"device": "tpu"}, {"runtime": "x"}]
)
def test_a_wrong_workload_is_refused_by_a_recipe_and_by_hand(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Recipe.model_validate({"workload": wrong})
    with pytest.raises(InputError, match=f"workload.{next(iter(wrong))}"):
        Workload.from_dict(wrong)


def test_a_workload_round_trips_and_reads_as_one_line():
    workload = Workload(device="cuda:1", dtype="bfloat16", batch_size=8, threads=2)
    assert Workload.from_dict(json.loads(json.dumps(workload.to_dict()))) == workload
    assert Recipe.model_validate({"workload": workload.to_dict()}).workload == workload
    assert str(Workload()) == "torch · cpu · float32 · batch 1 · 128 tokens · 1 thread"


def test_a_device_that_is_not_there_names_what_is():
    Workload().check_available()
    with pytest.raises(InputError, match="only: cpu"):
        Workload(device="cuda:99").check_available()


# -- the store ----------------------------------------------------------------------------------------------------
