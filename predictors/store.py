"""MeasurementStore: the file that keeps what was measured, so that nothing is measured twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from predictors.measure import Timing, device_name
from predictors.workload import Workload
from search_spaces import InputError, SubnetConfig

Stage = Literal["profile", "export", "anchor"]


@dataclass(frozen=True)
class Measurement:
    """One line of ``measurements.jsonl``: which subnetwork took how long, on what.

    Attributes:
        subnet: What was measured; for stage ``anchor``, the anchor.
        workload: Shapes, precision and threads.
        device_name: The processor or GPU, as its maker names it.
        stage: ``profile`` for a subnetwork inside the supernet, ``export`` for an exported model, ``anchor``.
        timing: How long it took.
    """

    subnet: SubnetConfig
    workload: Workload
    device_name: str
    stage: Stage
    timing: Timing

    def to_dict(self) -> dict[str, Any]:
        """One flat row, ready for JSON."""
        head = {"key": self.subnet.key, "subnet": self.subnet.to_dict(), "workload": self.workload.to_dict()}
        return head | {"device_name": self.device_name, "stage": self.stage} | asdict(self.timing)

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Measurement:
        """Reads back what `to_dict` wrote."""
        timing = Timing(**{field.name: row[field.name] for field in fields(Timing)})
        subnet, workload = SubnetConfig.from_dict(row["subnet"]), Workload.from_dict(row["workload"])
        return cls(subnet, workload, row["device_name"], row["stage"], timing)


class MeasurementStore:
    """Measurements on disk: append-only, one JSON line each, for one writer at a time.

    A last line that a kill cut short is ignored, and removed by the next append. What was measured on another
    processor or GPU stays in the file, but answers no question asked on this one.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._measurements: list[Measurement] = []
        self._read_to = 0

    def add(self, subnet: SubnetConfig, workload: Workload, stage: Stage, timing: Timing) -> None:
        """Appends one measurement made on this machine; it is on the disk when this returns."""
        self._refresh()
        row = Measurement(subnet, workload, device_name(workload), stage, timing).to_dict()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.truncate(self._read_to)
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def get(self, key: str, workload: Workload, stage: Stage) -> Timing | None:
        """The latest timing of a subnetwork on this machine, or None."""
        found = [m.timing for m in self._found(workload, stage) if m.subnet.key == key]
        return found[-1] if found else None

    def rows(self, workload: Workload, stage: Stage) -> list[Measurement]:
        """Everything measured on this machine under a workload in a stage, oldest first; the latest of each key."""
        found = self._found(workload, stage)
        latest = {m.subnet.key: m for m in found}
        return [m for m in found if m is latest[m.subnet.key]]

    def anchor_ms(self, workload: Workload) -> float | None:
        """The reference latency of the anchor in milliseconds: the first one stored, so the scale never moves."""
        anchors = self._found(workload, "anchor")
        return anchors[0].timing.latency_ms if anchors else None

    def _found(self, workload: Workload, stage: Stage) -> list[Measurement]:
        self._refresh()
        here = (workload, device_name(workload), stage)
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
