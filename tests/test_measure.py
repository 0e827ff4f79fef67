"""Measurement: ratios to the reference model, and the workload as a recipe field."""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from dataclasses import asdict
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError
from test_store import timing

from predictors import Timing, Workload, device_name, measure
from predictors.measurement import energy, memory
from predictors.measurement import rounds as rounds_module
from predictors.measurement.memory import peak_memory_mb
from predictors.measurement.timing import REFERENCE, combine_timings, median_interval, noise_warning, reported_latency
from predictors.measurement.workload import device_errors_as_input_errors
from search_spaces import InputError


def product(rows: int):
    """A stand-in for a model: one matrix product, with an amount of work proportional to ``rows``."""
    a, b = torch.ones(rows, 256), torch.ones(256, 256)
    return lambda: a @ b


@pytest.fixture(scope="module")
def timings() -> dict[str, Timing]:
    candidates = {"same": product(128), "eightfold": product(1024)}
    return measure(candidates, product(128), Workload(), reference_ms=100.0, rounds=9)


def test_more_work_has_a_larger_ratio(timings):
    assert timings["eightfold"].ratio > 2 * timings["same"].ratio
    assert 0.3 < timings["same"].ratio < 3


def test_latency_is_the_ratio_times_the_reference_latency(timings):
    for t in timings.values():
        assert t.latency_ms == pytest.approx(100.0 * t.ratio)
        assert t.latency_ms_p10 <= t.latency_ms <= t.latency_ms_p90
        assert 0 < t.raw_ms < 100
    assert timings[REFERENCE].latency_ms == pytest.approx(100.0)


def test_the_reference_latency_defaults_to_that_of_the_call():
    reference = measure({}, product(128), Workload(), rounds=5)[REFERENCE]
    assert reference.ratio == pytest.approx(1.0)
    assert 0 < reference.latency_ms < 100
    assert reference.rounds == 5


def test_calls_run_with_the_settings_of_the_workload_which_are_restored():
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


@pytest.mark.parametrize(("workload", "counts"), [(Workload(), False), (Workload(threads=2), True)])
def test_time_in_which_other_processes_run_is_not_a_models(workload: Workload, counts: bool) -> None:
    assert (rounds_module.fastest_ms(lambda: time.sleep(0.02), 3, workload) > 10) is counts
    started = time.thread_time()
    busy_ms = rounds_module.fastest_ms(lambda: sum(range(300_000)), 3, workload)
    assert 0.1 < busy_ms < 1e3 * (time.thread_time() - started) or counts


def sampling_order(seed: int) -> list[str]:
    seen: list[str] = []
    names = ("a", "b", "c", "d")
    calls = {name: (lambda n=name: seen.append(n)) for name in names}
    measure(calls, lambda: None, Workload(), rounds=4, seed=seed)
    return [name for name, last in zip(seen, [None, *seen], strict=False) if name != last]


def test_the_order_is_random_but_seeded():
    assert sampling_order(0) == sampling_order(0) != sampling_order(1)


def test_samples_next_to_a_slow_reference_are_dropped():
    quiet = [rounds_module.Sample("a", 100, 50, 100)] * 6
    slow = [rounds_module.Sample("a", 160, 100, 160)] * 12
    changing = [rounds_module.Sample("a", 100, 90, 160)] * 3
    out = rounds_module.timings_of(quiet + slow + changing, None)
    assert (out["a"].rounds, out["a"].ratio, out["a"].raw_ms) == (6, 0.5, 50)
    assert (out[REFERENCE].rounds, out[REFERENCE].raw_ms, out["a"].drift) == (6, 100, 0)
    loose = rounds_module.timings_of(quiet + slow + changing, None, tolerance=0.6)
    assert (loose["a"].rounds, loose[REFERENCE].rounds) == (21, 21), (
        "a drift below the wanted precision is no disturbance"
    )
    few = rounds_module.timings_of(quiet[:3] + slow + changing, None)
    assert (few["a"].rounds, few["a"].raw_ms) == (18, 100)


def test_rounds_continue_until_every_model_has_quiet_samples(monkeypatch):
    seen, rng = [], Random(0)
    slow = {REFERENCE: lambda: 160.0, "steady": lambda: 64.0, "noisy": lambda: 64.0 * rng.uniform(0.7, 1.3)}
    quiet = {REFERENCE: lambda: 100.0, "steady": lambda: 50.0, "noisy": lambda: 50.0}

    def fake_time(name: str, calls: int, workload: Workload) -> float:
        seen.append(name)
        return (slow if len(seen) < 50 else quiet)[name]()

    monkeypatch.setattr(rounds_module, "fastest_ms", fake_time)
    timed = measure({"steady": "steady", "noisy": "noisy"}, REFERENCE, Workload(), reference_ms=100.0, precision=0.01)
    for each in timed.values():
        assert each.drift == pytest.approx(0)
    assert timed["steady"].ratio == pytest.approx(0.5)
    assert len(seen) < 4 * 60


def test_drift_is_how_much_slower_the_reference_was():
    steady = [rounds_module.Sample("a", 100, 50, 100)] * 9
    assert rounds_module.timings_of(steady, 100)["a"].drift == pytest.approx(0)
    assert rounds_module.timings_of(steady, 50)["a"].drift == pytest.approx(1.0)
    assert rounds_module.timings_of(steady, 200)["a"].drift == pytest.approx(-0.5)
    never_quiet = [rounds_module.Sample("b", n, n, n) for n in range(150, 159)]
    out = rounds_module.timings_of(steady + never_quiet, 100)
    assert (out[REFERENCE].drift, out["a"].drift, out["b"].drift) == pytest.approx((0, 0, 0.54))


def test_rescaled_timings_are_those_measured_with_another_reference_latency():
    samples = [rounds_module.Sample("a", 100 + n, 50, 100 + n) for n in range(9)]
    by_two = rounds_module.timings_of(samples, 2.0)["a"].rescaled(3.0)
    assert asdict(by_two) == pytest.approx(asdict(rounds_module.timings_of(samples, 3.0)["a"]))
    assert by_two.rescaled(3.0) == by_two


def test_raw_timings_have_no_drift():
    timed = rounds_module.timings_of([rounds_module.Sample("a", 100, 50, 100)] * 9, 80)
    assert (timed[REFERENCE].latency_ms, timed["a"].latency_ms) == (80, 40)
    assert (timed[REFERENCE].raw.latency_ms, timed["a"].raw.latency_ms) == (100, 50)
    assert timed["a"].raw.drift == pytest.approx(0)


def test_rounds_end_at_the_precision_or_the_limit():
    def rounds(precision: float) -> int:
        limits = {"rounds": 6, "max_rounds": 9, "precision": precision}
        calls = []
        measure({"spy": product(8)}, product(8), Workload(), **limits, on_round=lambda rounds: calls.append(rounds))
        return len(calls)

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


def test_the_noise_warning_names_missed_precision_and_drift():
    good, bad = spread_timing(1.0, 0.99, 1.01), spread_timing(1.0, 0.9, 1.1)
    assert noise_warning({"a": good, REFERENCE: bad}, 0.02) == ""
    message = noise_warning({"a": good, "b": bad}, 0.02)
    assert "1 of 2" in message and "worst, b, is ±10.0%" in message and "10-90 % spread 10%" in message
    assert (
        noise_warning({"a": spread_timing(1.0, 0.99, 1.01, drift=-0.2)}, 0.02)
        == "the reference model ran 20% faster than its reference latency"
    )


def test_the_reported_interval_contains_nine_in_ten_repetitions():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(300):
        true = rng.uniform(1, 10, 20)
        first, again, third = ([timing(x) for x in true * np.exp(rng.normal(0, 0.03, 20))] for _ in range(3))
        pairs = list(zip(first, again, strict=True))
        reported = [reported_latency(one, two, pairs) for one, two in pairs]
        inside += [abs(t.latency_ms - s.latency_ms) <= s.error_ms for t, s in zip(third, reported, strict=True)]
    assert 0.9 < np.mean(inside) < 0.99
    assert reported_latency(timing(2.0), None, []).error_ms == pytest.approx(0.2)


def test_combined_timings_have_intervals_that_cover_both():
    both = combine_timings(spread_timing(1.0, 0.95, 1.0, 0.01), spread_timing(4.0, 0.99, 1.2, -0.05))
    assert (both.latency_ms, both.ratio_low, both.ratio_high, both.rounds) == (2.0, 0.95, 1.2, 22)
    assert both.drift == -0.05 and both.latency_ms_p90 == pytest.approx(4.4)


def test_a_lost_device_is_an_input_error():
    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    with (
        pytest.raises(InputError, match=r"`cuda:0` must stay available.*was lost.*kept"),
        device_errors_as_input_errors(Workload(device="cuda:0")),
    ):
        lost()
    with pytest.raises(RuntimeError, match="CUDA error"), device_errors_as_input_errors(Workload()):
        lost()


def test_exhausted_memory_is_an_input_error_whatever_the_runtime_raises():
    class Fail(Exception):
        """Errors of ONNX Runtime have no narrower base class."""

    with pytest.raises(InputError, match=r"fit in memory.*batch_size"), device_errors_as_input_errors(Workload()):
        raise Fail("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer")


# -- memory and energy --------------------------------------------------------------------------------------------


def test_peak_memory_is_that_of_loading_and_running_the_model():
    def load():
        array = np.ones(8_000_000)
        return lambda: array.sum()

    peak_mb = peak_memory_mb(load, Workload())
    assert peak_mb is not None and 60 < peak_mb < 200


def test_energy_is_the_sum_of_all_package_counters_which_may_wrap(tmp_path):
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
    energy_mj = energy.energy_mj(lambda: passes.append(0), Workload(), seconds=0.01)
    assert energy_mj == pytest.approx(6e3 / len(passes))
    monkeypatch.setattr(energy, "counter", lambda workload: None)
    assert energy.energy_mj(lambda: None, Workload()) is None


@pytest.mark.parametrize("arguments", [{"rounds": 0}, {"candidates": {REFERENCE: product(8)}}])
def test_invalid_arguments_of_measure_are_refused(arguments):
    with pytest.raises(InputError):
        measure(**{"candidates": {}, "reference": product(8), "workload": Workload(), **arguments})


# -- the workload -------------------------------------------------------------------------------------------------


class Recipe(BaseModel):
    workload: Workload = Workload()


@pytest.mark.parametrize(
    "fields",
    [{"threads": 0}, {"batch_size": -1}, {"thread": 1}, {"dtype": "fp8"}, {"device": "tpu"}, {"runtime": "x"}],
)
def test_an_invalid_workload_is_refused_by_recipe_and_class(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        Recipe.model_validate({"workload": fields})
    with pytest.raises(InputError, match=f"workload.{next(iter(fields))}"):
        Workload.from_dict(fields)


def test_a_workload_round_trips_and_prints_as_one_line():
    workload = Workload(device="cuda:1", dtype="bfloat16", batch_size=8, threads=2)
    assert Workload.from_dict(json.loads(json.dumps(workload.to_dict()))) == workload
    assert Recipe.model_validate({"workload": workload.to_dict()}).workload == workload
    assert str(Workload()) == "torch · cpu · float32 · batch 1 · 128 tokens · 1 thread"


def test_a_missing_device_lists_those_that_exist():
    Workload().check_available()
    with pytest.raises(InputError, match="only: cpu"):
        Workload(device="cuda:99").check_available()


@pytest.mark.parametrize(
    ("visible", "index", "asked"),
    [(None, 1, 1), ("3,1", 0, 3), ("3, 1", 1, 1), ("GPU-5a,GPU-7b", 1, "GPU-7b")],
)
def test_the_energy_is_that_of_the_visible_gpu(
    visible: str | None, index: int, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nvml:
        NVMLError = RuntimeError
        nvmlInit = staticmethod(lambda: None)
        nvmlDeviceGetHandleByIndex = staticmethod(int)
        nvmlDeviceGetHandleByUUID = staticmethod(str)
        nvmlDeviceGetTotalEnergyConsumption = staticmethod(lambda gpu: gpus.append(gpu) or 2000)

    gpus: list[Any] = []
    monkeypatch.setitem(sys.modules, "pynvml", Nvml)
    monkeypatch.setattr(energy, "find_spec", lambda name: name)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    joules = energy.counter(Workload(device=f"cuda:{index}"))
    assert joules is not None and joules() == 2.0 and {*gpus} == {asked}


def test_the_name_is_that_of_the_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> Any:
        return SimpleNamespace(stdout=f"{command[1]}\n")

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7b")
    device_name.cache_clear()
    names = [device_name(Workload(runtime="onnxruntime", device=f"cuda:{index}")) for index in (0, 1)]
    device_name.cache_clear()
    assert names == ["--id=3", "--id=GPU-7b"]


def test_a_megabyte_is_a_million_bytes() -> None:
    memory.reset_peak_memory()
    before = memory.peak_mb()
    kept = np.ones(200_000_000, dtype=np.uint8)
    assert memory.peak_mb() - before == pytest.approx(200, abs=4) and len(kept)
