"""One table over all families of compression on three tasks.

    python experiments/compression-benchmark/run.py [--runs RUNS] [[TASK:]KEY=VALUE ...]

`banking77.yaml`, `imdb.yaml` and `wikitext.yaml` are the recipes; `families.yaml` says what each family changes in
them, which is its part of the space. Each cell does what `nas search` does, from the same fine-tuned parent, with as
many evaluations and examples to train on; then one model is exported, and its memory measured as `nas bench` does. It
is the cheapest of the verified models of the search that keeps 95 % of the parent's quality on the held-out split
(cheapest: the least product of time and bytes); where none does, the best. An override such as `imdb:finish.epochs=1`
is for one task, one without a task for all.

Minutes are CPU time; of a cell that was stopped and resumed, those since. A finished cell is not run again. The table
is RUNS/table.md, made anew after each cell; `nas show RUNS/TASK/FAMILY` prints the front of a cell.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import nas
from nas.commands.bench import bench_rows
from nas.fronts.point import Point
from nas.pipeline import locked_run, run_stages
from nas.recipe import strict_yaml
from nas.recipe.schema import Recipe
from nas.runs.files import read_json, write_json, write_text
from search_spaces import InputError

HERE = Path(__file__).parent
TASKS = ("banking77", "imdb", "wikitext")
KEPT = 0.95
"""Part of the parent's quality that a row keeps, if a model does."""
MEMORY_MINUTES = 0.05
"""Of latencies in a bench that is asked for memory only."""
HEAD = ("task", "family", "quality", "kept", "MB", "ms", "of the parent's time", "memory, MB", "minutes", "model")


@dataclass(frozen=True)
class Cell:
    """A family on a task.

    Attributes:
        changes: Keys of the task's recipe and their values; a text: why there are none.
        overrides: Those of the command line, for this task.
    """

    family: str
    task: str
    runs: Path
    changes: Mapping[str, Any] | str
    overrides: tuple[str, ...]

    @property
    def recipe(self) -> Path:
        """The recipe of the task."""
        return HERE / f"{self.task}.yaml"

    @property
    def parent(self) -> Path:
        """The run that only has the parent of all cells of the task."""
        return self.runs / self.task / "parent"

    @property
    def has_other_inputs(self) -> bool:
        """Whether its models, the parent too, read something else than the other cells'."""
        return any(key.startswith(("task.", "workload.")) for key in self.changes)

    @property
    def run(self) -> Path:
        """The run of the cell."""
        return self.runs / self.task / self.family.replace(" ", "-")

    @property
    def result(self) -> Path:
        """What its row is made of."""
        return self.run.with_suffix(".json")

    @property
    def base(self) -> Recipe:
        """The recipe that all cells of the task share."""
        return Recipe.load(self.recipe, self.overrides)

    @property
    def settings(self) -> Recipe:
        """The recipe of the cell: the parent is trained, and only what the family has is searched."""
        changes = {"model": self.parent / "parent", "parent.epochs": "null", "parent.minutes": "null"}
        words = [f"{key}={_text(value)}" for key, value in {**changes, **dict(self.changes)}.items()]
        return Recipe.load(self.recipe, (*self.overrides, *words))

    def make(self) -> None:
        """Searches, exports and measures, unless that is done."""
        if isinstance(self.changes, str) or self.result.exists():
            return
        print(f"== {self.family}, {self.task}", flush=True)
        before = _cpu_minutes()
        run = nas.search(self.settings, self.run)
        parent = next(point for point in run.verified_points() if point.source == "parent")
        point = self.pick(run.verified_points(), parent)
        export = nas.export_subnet(run, point, self.run / "model", trust=True)
        [bench] = bench_rows([str(export)], run.recipe, minutes=MEMORY_MINUTES)
        row = {"point": point.to_dict(), "parent": parent.to_dict(), "minutes": _cpu_minutes() - before}
        write_json(self.result, {**row, "memory_mb": bench.memory_mb})

    def pick(self, points: Sequence[Point], parent: Point) -> Point:
        """The model of the row, of those that its search found.

        Raises:
            InputError: If the time did not suffice to verify any.
        """
        found = [point for point in points if point.source == "search"]
        if not found:
            raise InputError(
                f"a row needs a verified model of the search, but `{self.run}` has none; raise `verify.minutes`."
            )
        good = [point for point in found if kept(self.base, point, parent) >= KEPT]
        if good:
            return min(good, key=lambda point: point.values["latency_ms"] * point.values["size_mb"])
        return max(found, key=lambda point: kept(self.base, point, parent))


def all_cells(runs: Path, overrides: Sequence[str] = ()) -> list[Cell]:
    """Every family on every task, in the order of the table."""
    own = {task: tuple(_of_task(overrides, task)) for task in TASKS}
    families = strict_yaml.load((HERE / "families.yaml").read_text())
    return [
        Cell(family, task, runs, changes[task], own[task]) for task in TASKS for family, changes in families.items()
    ]


def kept(recipe: Recipe, point: Point, parent: Point) -> float:
    """Part of the parent's quality that a model keeps."""
    metric = recipe.primary_metric
    ratio = point.values[metric] / parent.values[metric]
    return ratio if recipe.objectives[metric] == "maximize" else 1 / ratio


def make_parent(cell: Cell) -> None:
    """Fine-tunes the parent of a task and measures its memory, unless that is done."""
    result = cell.parent.with_suffix(".json")
    if result.exists():
        return
    before = _cpu_minutes()
    with locked_run(cell.base, cell.parent) as (context, run):
        run_stages(run, context, last="parent")
    minutes = _cpu_minutes() - before
    [bench] = bench_rows([str(run.parent)], cell.base, minutes=MEMORY_MINUTES)
    write_json(result, {"minutes": minutes, "memory_mb": bench.memory_mb})


def rows(cells: Sequence[Cell]) -> Iterator[list[str]]:
    """The lines of the table, a parent before the families of its task."""
    for task in TASKS:
        own = [cell for cell in cells if cell.task == task]
        made = {cell.family: read_json(cell.result) for cell in own if cell.result.exists()}
        same = [made[cell.family] for cell in own if cell.family in made and not cell.has_other_inputs]
        if same:
            yield _parent_row(own[0], same)
        for cell in own:
            reason = cell.changes if isinstance(cell.changes, str) else "not run yet"
            yield _row(cell, made[cell.family], same) if cell.family in made else _no_row(cell, reason)


def _no_row(cell: Cell, reason: str) -> list[str]:
    return [cell.task, cell.family, *["–"] * (len(HEAD) - 3), reason]


def _parent_row(cell: Cell, same: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parent: quality and size of its first cell, median time over those with the task's own workload."""
    parent, made = Point.from_dict(same[0]["parent"]), read_json(cell.parent.with_suffix(".json"))
    milliseconds = _parent_ms(same)
    return _line(cell, "parent", parent, (1.0, milliseconds, 1.0, made["memory_mb"], made["minutes"]), "")


def _row(cell: Cell, made: Mapping[str, Any], same: Sequence[Mapping[str, Any]]) -> list[str]:
    """A cell. Its time is over its own parent's, measured in the same rounds, unless that read other inputs."""
    point, own = Point.from_dict(made["point"]), Point.from_dict(made["parent"])
    whole = own if not (cell.has_other_inputs and same) else Point.from_dict(same[0]["parent"])
    milliseconds = point.values["latency_ms"]
    whole_ms = own.values["latency_ms"] if whole is own else _parent_ms(same)
    numbers = (
        kept(cell.base, point, whole),
        milliseconds,
        milliseconds / whole_ms,
        made["memory_mb"],
        made["minutes"],
    )
    return _line(cell, cell.family, point, numbers, _model(point, own))


def _line(cell: Cell, family: str, point: Point, numbers: tuple[float, ...], model: str) -> list[str]:
    share, milliseconds, time, megabytes, minutes = numbers
    quality = f"{point.values[cell.base.primary_metric]:.3f} ± {point.errors[cell.base.primary_metric]:.3f}"
    costs = [f"{point.values['size_mb']:.1f}", f"{milliseconds:.3g}", f"{time:.2f}", f"{megabytes:.0f}"]
    return [cell.task, family, quality, f"{share:.3f}", *costs, f"{minutes:.1f}", model]


def _model(point: Point, parent: Point) -> str:
    """What differs from the parent: each value, in brackets the number of layers that have it."""
    whole, parts = parent.subnet.to_dict(), []
    for name, value in point.subnet.to_dict().items():
        if value != whole.get(name):
            parts.append(f"{name} {_counted(value) if isinstance(value, list) and name != 'layers' else value}")
    return " · ".join(parts or ["the parent"]) + ", trained" * point.finished


def _counted(values: Sequence[Any]) -> str:
    """Each value, the most frequent first, and in how many layers it is."""
    counts = Counter(values).most_common()
    return str(values[0]) if len(counts) == 1 else ", ".join(f"{value} ({count})" for value, count in counts)


def _parent_ms(same: Sequence[Mapping[str, Any]]) -> float:
    return median(row["parent"]["values"]["latency_ms"] for row in same)


def _text(value: Any) -> str:
    """A value as an override has it."""
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _cpu_minutes() -> float:
    """CPU time of this process and of those that it has started."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used) / 60


def main() -> None:
    """Makes every cell and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/compression-benchmark"))
    parser.add_argument("overrides", nargs="*", metavar="[TASK:]KEY=VALUE")
    arguments = parser.parse_intermixed_args()
    cells = all_cells(arguments.runs, arguments.overrides)
    for cell in cells:
        try:
            make_parent(cell)
            cell.make()
        except InputError as error:
            print(f"{cell.task}, {cell.family}: {error}", file=sys.stderr)
        lines = [HEAD, ["---"] * len(HEAD), *rows(cells)]
        write_text(arguments.runs / "table.md", "".join(f"| {' | '.join(line)} |\n" for line in lines))
    print((arguments.runs / "table.md").read_text())


def _of_task(overrides: Sequence[str], task: str) -> Iterator[str]:
    """The overrides for a task, without its name."""
    for override in overrides:
        name, colon, rest = override.partition(":")
        if name in TASKS and colon:
            if name == task:
                yield rest
        else:
            yield override


if __name__ == "__main__":
    main()
