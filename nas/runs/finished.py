"""Which models of a run were finished: trained on after the search, or quantized without the supernet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.runs.files import read_json, write_json
from search_spaces import SubnetConfig

if TYPE_CHECKING:
    from nas.fronts.point import Source
    from nas.runs.run import Run


@dataclass(frozen=True)
class Finished:
    """A model with weights of its own, in ``finished/KEY`` of a run.

    Attributes:
        subnet: Its architecture.
        source: ``search``: chosen from the front and trained on. ``layer-drop``: the parent without some layers,
            trained as long. ``int8``, ``parent-int8``: one of those, or the parent, with int8 layers.
    """

    subnet: SubnetConfig
    source: Source

    def folder(self, run: Run) -> Path:
        """The model folder."""
        return run.finished / self.subnet.key


def read_finished(run: Run) -> list[Finished]:
    """The finished models of a run; none before its finish stage has ended."""
    return _read(run, run.finished_list)


def read_finished_before(run: Run) -> list[Finished]:
    """The models that were finished before the run went on with another recipe."""
    return _read(run, run.finished_before)


def _read(run: Run, file: Path) -> list[Finished]:
    return list(read_json(file, run.finished, _parse)) if file.exists() else []


def _parse(entries: Sequence[Mapping[str, Any]]) -> list[Finished]:
    return [Finished(SubnetConfig.from_dict(entry["subnet"]), entry["source"]) for entry in entries]


def write_finished(run: Run, models: Iterable[Finished]) -> None:
    """Writes the list of finished models, the last file of the finish stage."""
    run.finished.mkdir(exist_ok=True)
    entries = [{"key": m.subnet.key, "source": m.source, "subnet": m.subnet.to_dict()} for m in models]
    write_json(run.finished_list, entries)
