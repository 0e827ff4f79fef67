"""Processes: those that torchrun, `accelerate launch` or Ray Train started to train one model together; mostly one.

The main one does everything. The others wait for what it prepares, train with it, and end.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

    from nas.runs.run import Run
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nas.runs.files import partial_path

if TYPE_CHECKING:
    pass


BARRIER_TIMEOUT = timedelta(days=7)
"""How long the others wait for the main one, which may measure latencies meanwhile."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""Variables in which a launcher tells a process its place among the others."""


def world_size() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_main() -> bool:
    """Whether this is the one that writes and prints."""
    return world_size() == 1 or int(os.environ["RANK"]) == 0


def barrier() -> None:
    """Returns once all of them have come here."""
    if world_size() > 1:
        _process_group().wait_for_everyone()


def exit_other_processes() -> None:
    """Ends every process but the main one, which goes on as if it had been alone."""
    if world_size() == 1:
        return
    main = is_main()
    _process_group().destroy_process_group()
    if not main:
        sys.exit()
    for name in RANK_VARIABLES:
        os.environ.pop(name, None)


def _process_group() -> PartialState:
    import torch
    from accelerate import PartialState

    if not torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # several processes without a GPU are not found otherwise
    return PartialState(timeout=BARRIER_TIMEOUT)


def exists_for_all(target: Path) -> bool:
    """Whether a stage has its result; all processes get the same answer."""
    found = target.exists()
    barrier()
    return found


@contextmanager
def build_in_main(run: Run, target: Path) -> Iterator[Path]:
    """`Run.building` in the main process; the others see the same folder, and leave with it."""
    if is_main():
        with run.building(target) as work:
            yield work
    else:
        yield partial_path(target)
    barrier()
