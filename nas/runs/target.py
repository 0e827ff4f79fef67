"""Target: one workload of a run, on the device where it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.fronts.point import require_numbers
from nas.recipe.objectives import FOOTPRINTS, RATES, cost_name
from predictors import AnalyticCosts, MeasurementStore, SubnetPredictor, Workload
from predictors.costs.weighted_costs import MIN_FOOTPRINTS, WeightedCosts
from predictors.latency.throughput import CostPredictor, Throughput
from predictors.measurement.json_lines import JsonLines
from search_spaces import SubnetConfig

if TYPE_CHECKING:
    from nas.runs.run import Run


@dataclass(frozen=True)
class Target:
    """One workload of a run, on the device where it is measured.

    Attributes:
        run: The run.
        name: Name of the workload in the recipe; empty for the only one.
        workload: The workload.
    """

    run: Run
    name: str
    workload: Workload

    def cost_name(self, cost: str) -> str:
        """The name of a cost under this workload, see `nas.recipe.objectives.cost_name`."""
        return cost_name(cost, self.name)

    @property
    def label(self) -> str:
        """The name as a word of a line of text, with a space before it; empty for the only workload."""
        return f" {self.name}" if self.name else ""

    @property
    def device(self) -> str:
        """The CPU or GPU on which every latency of this workload is measured."""
        name = str(self._stored("device") or "another device, not measured yet")
        return "".join(character for character in name if character.isprintable())

    def set_device(self, name: str) -> None:
        """Stores the name of the device that has measured."""
        self._store_in_environment("device", name)

    @property
    def is_remote(self) -> bool:
        """Whether latencies are measured on another device and imported."""
        return bool(self._stored("elsewhere"))

    def measure_elsewhere(self) -> None:
        """From now on latencies are measured on another device and imported."""
        self._store_in_environment("device", None)
        self._store_in_environment("elsewhere", True)

    @property
    def store(self) -> MeasurementStore:
        """The latencies measured on the device."""
        return MeasurementStore(self.run.measurements, self.device)

    @property
    def reference_ms(self) -> float | None:
        """Median latency of the parent in milliseconds; None before it is measured."""
        return self.store.reference_ms(self.workload)

    @property
    def footprint_names(self) -> list[str]:
        """The costs among `FOOTPRINTS` that the recipe names under this workload."""
        return [cost for cost in FOOTPRINTS if self.names(cost)]

    def names(self, cost: str) -> bool:
        """Whether an objective or a constraint names a cost under this workload."""
        return self.cost_name(cost) in self.run.recipe.value_names

    def footprints(self) -> dict[str, dict[str, float]]:
        """Key of a subnetwork -> its measured costs among `FOOTPRINTS`, on the device."""
        here = (self.workload.to_dict(), self.device)
        return {
            row["key"]: row["values"] for row in self._footprints.read() if (row["workload"], row["device"]) == here
        }

    def footprint_subnets(self) -> list[SubnetConfig]:
        """The subnetworks of `footprints`."""
        known = self.footprints().keys()
        rows = {row["key"]: row["subnet"] for row in self._footprints.read()}
        return [SubnetConfig.from_dict(rows[key]) for key in known]

    def add_footprint(self, subnet: SubnetConfig, measured: Mapping[str, float | None]) -> None:
        """Stores the measured costs of a subnetwork; those that have no counter are left out."""
        values = {name: value for name, value in measured.items() if value is not None}
        row = {"key": subnet.key, "subnet": subnet.to_dict(), "workload": self.workload.to_dict()}
        self._footprints.append([{**row, "device": self.device, "values": values}])

    @property
    def _footprints(self) -> JsonLines[dict[str, Any]]:
        fix = "delete that line to measure again"
        return JsonLines(self.run.footprints, _checked_footprint, row="a footprint", fix=fix)

    @property
    def predictor(self) -> Path:
        """The folder of the latency predictor."""
        return self.run.predictor / self.name

    @property
    def is_profiled(self) -> bool:
        """Whether the latency predictor is fitted, and the costs of `footprint_names` are measured."""
        known = [values.keys() for values in self.footprints().values()] if self.footprint_names else []
        has_footprints = all(sum(name in names for names in known) >= MIN_FOOTPRINTS for name in self.footprint_names)
        return self.has_predictor and has_footprints

    @property
    def has_predictor(self) -> bool:
        """Whether the latency predictor is fitted."""
        return any(self.predictor.glob("*.json"))

    def load_predictor(self) -> SubnetPredictor:
        """The latency predictor, fitted by the profile stage.

        Raises:
            InputError: If it is missing, truncated or of another workload.
        """
        return SubnetPredictor.load(self.predictor, self.workload)

    def load_predictors(self, counts: AnalyticCosts) -> dict[str, CostPredictor]:
        """Name of a cost -> what predicts it: the latency; throughput and footprints if the recipe names them.

        Args:
            counts: The exact costs of the run's subnetworks.
        """
        latency = self.load_predictor()
        predictors: dict[str, CostPredictor] = {self.cost_name("latency_ms"): latency}
        for rate in (name for name in RATES if self.names(name)):
            predictors[self.cost_name(rate)] = Throughput(rate, latency)
        for cost in self.footprint_names:
            measured = self.footprints()
            subnets = [subnet for subnet in self.footprint_subnets() if cost in measured[subnet.key]]
            values = [measured[subnet.key][cost] for subnet in subnets]
            predictors[self.cost_name(cost)] = WeightedCosts.fit(counts, self.workload, subnets, values)
        return predictors

    def __str__(self) -> str:
        return f"{self.workload} · {self.device}"

    def _stored(self, key: str) -> Any:
        value = self.run.environment.get(key)
        return value.get(self.name) if isinstance(value, dict) else value

    def _store_in_environment(self, key: str, value: Any) -> None:
        stored = {**(self.run.environment.get(key) or {}), self.name: value} if self.name else value
        self.run.update_environment({key: stored})


def _checked_footprint(row: Any) -> dict[str, Any]:
    """A line of footprints.jsonl; raises what is in `DAMAGE` if it is something else."""
    require_numbers("values", row["values"])
    if SubnetConfig.from_dict(row["subnet"]).key != row["key"] or not isinstance(row["device"], str):
        raise ValueError("`key` must be that of `subnet`, and `device` a text")
    Workload.from_dict(row["workload"])
    return dict(row)
