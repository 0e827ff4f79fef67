"""Measurements on disk: on one scale, separate by device, workload and stage, and not lost by a kill."""

from __future__ import annotations

import json
import math

import pytest

from predictors import MeasurementStore, Timing, Workload
from search_spaces import InputError, SubnetConfig

SUBNET = SubnetConfig((0, 2), (4, 2), (64, 32), 48)
OTHER = SubnetConfig((1,), (4,), (64,), 48)


def timing(latency_ms: float) -> Timing:
    return Timing(0.5, latency_ms, latency_ms * 0.9, latency_ms * 1.1, latency_ms * 1.3, 11)


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


def test_all_latencies_are_on_the_scale_of_the_median_reference(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    assert store.reference_ms(Workload()) is None
    store.add(SUBNET, Workload(), "anchor", timing(12.0))
    store.add(OTHER, Workload(), "profile", timing(6.0))
    assert store.get(OTHER.key, Workload(), "profile") == timing(6.0)
    store.add(SUBNET, Workload(), "anchor", timing(8.0))
    assert store.reference_ms(Workload()) == 8.0  # the lower of two
    store.add(SUBNET, Workload(), "anchor", timing(10.0))
    assert store.reference_ms(Workload()) == 10.0 and len(store.references(Workload())) == 3
    assert store.reference_ms(Workload(batch_size=2)) is None
    moved = store.get(OTHER.key, Workload(), "profile")
    assert moved == timing(6.0).rescaled(10.0) and moved.latency_ms == pytest.approx(5.0)
    assert moved.drift == pytest.approx(0.2)
    assert store.rows(Workload(), "profile")[0].timing == moved


def test_an_exported_model_is_stated_from_both_of_its_measurements(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    store.add(SUBNET, Workload(), "export", timing(1.0))
    assert store.reported_latency(OTHER.key, Workload()) is None
    assert store.reported_latency(SUBNET.key, Workload()).error_ms == pytest.approx(0.1)
    store.add(SUBNET, Workload(), "repeat", timing(1.21))
    reported = store.reported_latency(SUBNET.key, Workload())
    assert reported.latency_ms == pytest.approx(1.1) and reported.error_ms == pytest.approx(1.1 * math.log(1.21))


def test_a_row_without_intervals_can_be_read(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    store.add(SUBNET, Workload(), "export", timing(1.0))
    row = json.loads(store.path.read_text())
    for name in ("ratio_low", "ratio_high", "drift"):
        del row[name]
    store.path.write_text(json.dumps(row) + "\n")
    assert MeasurementStore(store.path).reported_latency(SUBNET.key, Workload()).latency_ms == 1.0


def test_measurements_of_another_device_are_read_by_its_name(tmp_path):
    there = MeasurementStore(tmp_path / "m.jsonl", device="abacus")
    there.add(SUBNET, Workload(device="cuda:7"), "profile", timing(1.0))
    assert there.get(SUBNET.key, Workload(device="cuda:7"), "profile") == timing(1.0)
    there.add(SUBNET, Workload(), "profile", timing(1.0))
    assert MeasurementStore(there.path).get(SUBNET.key, Workload(), "profile") is None


def test_a_second_measurement_replaces_the_first(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    for latency_ms in (1.0, 2.0):
        store.add(SUBNET, Workload(), "profile", timing(latency_ms))
    assert store.get(SUBNET.key, Workload(), "profile") == timing(2.0)
    assert len(store.rows(Workload(), "profile")) == 1


def test_measurements_of_another_machine_are_not_returned(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    store.add(SUBNET, Workload(), "profile", timing(1.0))
    row = json.loads(store.path.read_text()) | {"device_name": "abacus"}
    store.path.write_text(json.dumps(row) + "\n")
    assert MeasurementStore(store.path).get(SUBNET.key, Workload(), "profile") is None


def test_an_incomplete_last_line_is_ignored_and_removed(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    store.add(SUBNET, Workload(), "profile", timing(1.0))
    line = store.path.read_bytes()
    store.path.write_bytes(line + line[: len(line) // 2])
    again = MeasurementStore(store.path)
    assert len(again.rows(Workload(), "profile")) == 1
    again.add(OTHER, Workload(), "profile", timing(2.0))
    assert len(store.path.read_text().splitlines()) == 2
    assert [m.subnet for m in MeasurementStore(store.path).rows(Workload(), "profile")] == [SUBNET, OTHER]


def test_a_damaged_line_is_named(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    store.add(SUBNET, Workload(), "profile", timing(1.0))
    line = store.path.read_text()
    for broken in ("{broken\n", "[]\n", '{"key": "x"}\n', "\n"):
        store.path.write_text(line + broken + line)
        with pytest.raises(InputError, match=r"m\.jsonl.*line 2"):
            MeasurementStore(store.path).rows(Workload(), "profile")


def test_a_stored_number_that_cannot_be_measured_is_named_with_its_line(tmp_path):
    store = MeasurementStore(tmp_path / "m.jsonl")
    store.add(SUBNET, Workload(), "anchor", timing(1.0))
    store.add(SUBNET, Workload(), "profile", timing(math.nan))
    with pytest.raises(InputError, match=r"line 2 is not \(`latency_ms` must be .* but got nan\); delete that line"):
        MeasurementStore(store.path).rows(Workload(), "profile")
