"""Measurement: ratios to the anchor, the workload as a recipe field, and the file that outlives a kill."""

from __future__ import annotations

import gc
import json
import math

import pytest
import torch
from pydantic import BaseModel, ValidationError

from predictors import MeasurementStore, Timing, Workload, measure
from predictors import measure as measure_function
from search_spaces import InputError, SubnetConfig

SUBNET = SubnetConfig((0, 2), (4, 2), (64, 32), 48)
OTHER = SubnetConfig((1,), (4,), (64,), 48)


def timing(latency_ms: float) -> Timing:
    return Timing(0.5, latency_ms, latency_ms * 0.9, latency_ms * 1.1, latency_ms * 1.3, 11)


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


def test_rounds_whose_anchor_strays_do_not_count():
    module = __import__("sys").modules[measure_function.__module__]
    steady = [module._Visit("a", [100], [50], [100])] * 7
    spoiled = [module._Visit("a", [100], [90], [300])] * 3
    out = module._timings(steady + spoiled, None)["a"]
    assert (out.rounds, out.ratio) == (7, 0.5)
    few = module._timings(steady[:3] + spoiled, None)["a"]
    assert few.rounds == 6


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


def test_the_store_round_trips_and_keeps_stages_and_workloads_apart(tmp_path):
    store = MeasurementStore(tmp_path / "deep" / "measurements.jsonl")
    assert store.get(SUBNET.key, Workload(), "profile") is None
    store.add(SUBNET, Workload(), "profile", timing(math.pi))
    store.add(OTHER, Workload(), "profile", timing(2.0))
    store.add(SUBNET, Workload(), "export", timing(3.0))
    store.add(SUBNET, Workload(threads=2), "profile", timing(4.0))
    for reader in (store, MeasurementStore(store.path)):
        assert reader.get(SUBNET.key, Workload(), "profile") == timing(math.pi)
        assert reader.get(SUBNET.key, Workload(threads=2), "profile") == timing(4.0)
        assert [m.subnet for m in reader.rows(Workload(), "profile")] == [SUBNET, OTHER]
    row = json.loads(store.path.read_text().splitlines()[0])
    assert row["key"] == SUBNET.key and row["device_name"] and row["latency_ms"] == math.pi


def test_the_first_anchor_stays_the_reference(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    assert store.anchor_ms(Workload()) is None
    store.add(SUBNET, Workload(), "anchor", timing(10.0))
    store.add(OTHER, Workload(), "anchor", timing(12.0))
    store.add(SUBNET, Workload(), "anchor", timing(11.0))
    assert store.anchor_ms(Workload()) == 10.0
    assert store.anchor_ms(Workload(batch_size=2)) is None


def test_measuring_again_replaces_the_old_answer(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    for latency_ms in (1.0, 2.0):
        store.add(SUBNET, Workload(), "profile", timing(latency_ms))
    assert store.get(SUBNET.key, Workload(), "profile") == timing(2.0)
    assert len(store.rows(Workload(), "profile")) == 1


def test_another_machine_is_not_this_one(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    store.add(SUBNET, Workload(), "profile", timing(1.0))
    row = json.loads(store.path.read_text()) | {"device_name": "abacus"}
    store.path.write_text(json.dumps(row) + "\n")
    assert MeasurementStore(store.path).get(SUBNET.key, Workload(), "profile") is None


def test_a_torn_last_line_is_ignored_and_removed(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    store.add(SUBNET, Workload(), "profile", timing(1.0))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + whole[: len(whole) // 2])
    again = MeasurementStore(store.path)
    assert len(again.rows(Workload(), "profile")) == 1
    again.add(OTHER, Workload(), "profile", timing(2.0))
    assert len(store.path.read_text().splitlines()) == 2
    assert [m.subnet for m in MeasurementStore(store.path).rows(Workload(), "profile")] == [SUBNET, OTHER]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    store.add(SUBNET, Workload(), "profile", timing(1.0))
    line = store.path.read_text()
    for broken in ("{broken\n", "[]\n", '{"key": "x"}\n', "\n"):
        store.path.write_text(line + broken + line)
        with pytest.raises(InputError, match=r"m\.jsonl.*line 2"):
            MeasurementStore(store.path).rows(Workload(), "profile")
