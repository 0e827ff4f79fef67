"""MeasurementStore: measurements.jsonl, the file of finished measurements, so that nothing is measured twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from predictors.measurement.json_lines import JsonLines
from predictors.measurement.timing import ReportedLatency, Timing, median_reference, reported_latency
from predictors.measurement.workload import Workload, device_name
from search_spaces import SubnetConfig

MeasurementStage = Literal["profile", "export", "repeat", "anchor"]


@dataclass(frozen=True)
class Measurement:
    """One line of ``measurements.jsonl``: the timing of a subnetwork, with its workload and device.

    Attributes:
        subnet: The measured subnetwork.
        workload: Input shape, dtype, runtime and threads.
        device_name: The vendor's name of the processor or GPU.
        stage: ``profile`` for an extracted subnetwork, ``export`` for an exported model, ``repeat`` for an exported
            model that was loaded and measured a second time, ``anchor`` for the reference model.
        timing: Its latency.
    """

    subnet: SubnetConfig
    workload: Workload
    device_name: str
    stage: MeasurementStage
    timing: Timing

    def to_dict(self) -> dict[str, Any]:
        """One flat row of values that JSON can hold."""
        head = {"key": self.subnet.key, "subnet": self.subnet.to_dict(), "workload": self.workload.to_dict()}
        return head | {"device_name": self.device_name, "stage": self.stage} | asdict(self.timing)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Measurement:
        """Reads what `to_dict` returns."""
        subnet, workload = SubnetConfig.from_dict(row["subnet"]), Workload.from_dict(row["workload"])
        return cls(subnet, workload, row["device_name"], row["stage"], Timing.from_dict(row))


class MeasurementStore:
    """Measurements on disk: append-only, one JSON line each, for one writer at a time.

    Every latency is read as its ratio to the reference model times the median latency of the reference models in the
    file. All latencies are so on one scale, which does not depend on whether the machine was busy during some of them.
    A last line that was cut short when the process was killed is ignored, and removed by the next append. Measurements
    of other processors or GPUs stay in the file, but are not returned.

    Args:
        path: The file; it is created by the first `add`.
        device: Name of the processor or GPU whose measurements are returned; by default that of this machine.
    """

    def __init__(self, path: str | Path, device: str | None = None) -> None:
        self.path, self.device = Path(path), device
        self._lines = JsonLines(
            self.path, Measurement.from_dict, row="a measurement", fix="delete that line to measure again"
        )

    def add(self, subnet: SubnetConfig, workload: Workload, stage: MeasurementStage, timing: Timing) -> None:
        """Appends one measurement on the device; it is on disk when this returns."""
        self.add_all([(subnet, timing)], workload, stage)

    def add_all(
        self, timings: Iterable[tuple[SubnetConfig, Timing]], workload: Workload, stage: MeasurementStage
    ) -> None:
        """Appends several measurements; of one subnetwork the last one counts."""
        device = self._device(workload)
        self._lines.append([Measurement(s, workload, device, stage, timing).to_dict() for s, timing in timings])

    def get(self, key: str, workload: Workload, stage: MeasurementStage) -> Timing | None:
        """The latest timing of a subnetwork on the device, or None."""
        stored = [m for m in self._stored(workload, stage) if m.subnet.key == key]
        return self._scaled(stored[-1:], workload, stage)[0].timing if stored else None

    def rows(self, workload: Workload, stage: MeasurementStage) -> list[Measurement]:
        """The latest measurement of each subnetwork on the device under a workload in a stage, oldest first."""
        stored = self._stored(workload, stage)
        latest = {m.subnet.key: m for m in stored}
        return self._scaled([m for m in stored if m is latest[m.subnet.key]], workload, stage)

    def reference_ms(self, workload: Workload) -> float | None:
        """Median latency of the reference model on the device in milliseconds, or None."""
        reference = self.reference(workload)
        return None if reference is None else reference.latency_ms

    def reference(self, workload: Workload) -> Timing | None:
        """Timing of median latency of the reference model on the device, or None."""
        return median_reference(self.references(workload))

    def references(self, workload: Workload) -> list[Timing]:
        """All timings of the reference model on the device, oldest first."""
        return [m.timing for m in self._stored(workload, "anchor")]

    def reported_latency(self, key: str, workload: Workload) -> ReportedLatency | None:
        """Latency of an exported model with its interval, or None if it was not measured on the device."""
        first, second = (
            {m.subnet.key: m.timing for m in self.rows(workload, stage)} for stage in ("export", "repeat")
        )
        if key not in first:
            return None
        repeated = [(first[k], second[k]) for k in first.keys() & second.keys()]
        return reported_latency(first[key], second.get(key), repeated)

    def _device(self, workload: Workload) -> str:
        return self.device or device_name(workload)

    def _scaled(self, stored: list[Measurement], workload: Workload, stage: MeasurementStage) -> list[Measurement]:
        """The same measurements on the scale of the reference model."""
        reference_ms = self.reference_ms(workload)
        if stage == "anchor" or reference_ms is None:
            return stored
        return [replace(m, timing=m.timing.rescaled(reference_ms)) for m in stored]

    def _stored(self, workload: Workload, stage: MeasurementStage) -> list[Measurement]:
        conditions = (workload, self._device(workload), stage)
        return [m for m in self._lines.read() if (m.workload, m.device_name, m.stage) == conditions]
