"""MeasurementStore: the file that keeps what was measured, so that nothing is measured twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from predictors.measurement.timing import Stated, Timing, median_anchor, stated
from predictors.measurement.workload import Workload, device_name
from search_spaces import InputError, SubnetConfig

MeasurementStage = Literal["profile", "export", "repeat", "anchor"]


@dataclass(frozen=True)
class Measurement:
    """One line of ``measurements.jsonl``: which subnetwork took how long, on what.

    Attributes:
        subnet: What was measured; for stage ``anchor``, the anchor.
        workload: Shapes, precision and threads.
        device_name: The processor or GPU, as its maker names it.
        stage: ``profile`` for a sampled subnetwork, extracted, ``export`` for an exported model, ``repeat`` for the
            same loaded and measured again, ``anchor``.
        timing: How long it took.
    """

    subnet: SubnetConfig
    workload: Workload
    device_name: str
    stage: MeasurementStage
    timing: Timing

    def to_dict(self) -> dict[str, Any]:
        """One flat row, ready for JSON."""
        head = {"key": self.subnet.key, "subnet": self.subnet.to_dict(), "workload": self.workload.to_dict()}
        return head | {"device_name": self.device_name, "stage": self.stage} | asdict(self.timing)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Measurement:
        """Reads back what `to_dict` wrote."""
        subnet, workload = SubnetConfig.from_dict(row["subnet"]), Workload.from_dict(row["workload"])
        return cls(subnet, workload, row["device_name"], row["stage"], Timing.from_dict(row))


class MeasurementStore:
    """Measurements on disk: append-only, one JSON line each, for one writer at a time.

    Every latency is read as its ratio to the anchor times the median of the anchors in the file, so all are on one
    scale, and a machine that was busy or boosted beside a few does not stretch it. A last line that a kill cut short
    is ignored, and removed by the next append. What was measured on another processor or GPU stays in the file, but
    answers no question asked of this one.

    Args:
        path: The file; it need not exist yet.
        device: Name of the processor or GPU that is asked about; default: the one of this machine.
    """

    def __init__(self, path: str | Path, device: str | None = None) -> None:
        self.path, self.device = Path(path), device
        self._measurements: list[Measurement] = []
        self._read_to = 0

    def add(self, subnet: SubnetConfig, workload: Workload, stage: MeasurementStage, timing: Timing) -> None:
        """Appends one measurement made on the device; it is on the disk when this returns."""
        self._refresh()
        row = Measurement(subnet, workload, self._device(workload), stage, timing).to_dict()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.truncate(self._read_to)
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def get(self, key: str, workload: Workload, stage: MeasurementStage) -> Timing | None:
        """The latest timing of a subnetwork on the device, or None."""
        found = [m for m in self._stored(workload, stage) if m.subnet.key == key]
        return self._scaled(found[-1:], workload, stage)[0].timing if found else None

    def rows(self, workload: Workload, stage: MeasurementStage) -> list[Measurement]:
        """Everything measured on the device under a workload in a stage, oldest first; the latest of each key."""
        stored = self._stored(workload, stage)
        latest = {m.subnet.key: m for m in stored}
        return self._scaled([m for m in stored if m is latest[m.subnet.key]], workload, stage)

    def anchor_ms(self, workload: Workload) -> float | None:
        """The reference latency of the anchor in milliseconds, the median of those stored."""
        anchor = self.anchor(workload)
        return None if anchor is None else anchor.latency_ms

    def anchor(self, workload: Workload) -> Timing | None:
        """The median timing of the anchor on the device."""
        return median_anchor(self.anchors(workload))

    def anchors(self, workload: Workload) -> list[Timing]:
        """Every timing of the anchor on the device, oldest first."""
        return [m.timing for m in self._stored(workload, "anchor")]

    def stated(self, key: str, workload: Workload) -> Stated | None:
        """The latency of an exported model and its interval, or None where it was not measured on the device."""
        first, again = ({m.subnet.key: m.timing for m in self.rows(workload, stage)} for stage in ("export", "repeat"))
        if key not in first:
            return None
        return stated(first[key], again.get(key), [(first[k], again[k]) for k in first.keys() & again.keys()])

    def _device(self, workload: Workload) -> str:
        return self.device or device_name(workload)

    def _scaled(self, stored: list[Measurement], workload: Workload, stage: MeasurementStage) -> list[Measurement]:
        """The same on the scale of the anchor."""
        anchor_ms = self.anchor_ms(workload)
        if stage == "anchor" or anchor_ms is None:
            return stored
        return [replace(m, timing=m.timing.beside(anchor_ms)) for m in stored]

    def _stored(self, workload: Workload, stage: MeasurementStage) -> list[Measurement]:
        self._refresh()
        here = (workload, self._device(workload), stage)
        return [m for m in self._measurements if (m.workload, m.device_name, m.stage) == here]

    def _refresh(self) -> None:
        """Reads the complete lines written since the last look."""
        data = self.path.read_bytes() if self.path.exists() else b""
        if len(data) < self._read_to:
            self._measurements, self._read_to = [], 0
        for line in data[self._read_to :].splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return
            self._measurements.append(self._parse(line))
            self._read_to += len(line)

    def _parse(self, line: bytes) -> Measurement:
        try:
            return Measurement.from_dict(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"every line of `{self.path}` must be a measurement, but line {len(self._measurements) + 1} is not "
                f"({error}); delete that line to measure again."
            ) from error
