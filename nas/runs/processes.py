"""The data-parallel processes that torchrun, `accelerate launch` or Ray Train started; usually one.

The main process does everything. The others wait for what it prepares, train with it, and exit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from nas.runs.files import partial_path

if TYPE_CHECKING:
    from accelerate import PartialState

    from nas.runs.run import Run

BARRIER_TIMEOUT = timedelta(days=7)
"""How long the others wait for the main process, which may be measuring latencies."""
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
"""Environment variables in which a launcher gives a process its rank."""


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Number of this process, from 0."""
    return 0 if world_size() == 1 else int(os.environ["RANK"])


def is_main() -> bool:
    """Whether this is the main process, the one that writes and prints."""
    return rank() == 0


def barrier() -> None:
    """Waits until every process has reached this point."""
    if world_size() > 1:
        _process_group().wait_for_everyone()


def exit_other_processes() -> None:
    """Exits in every process but the main one, which then continues as a single process."""
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
        os.environ["ACCELERATE_USE_CPU"] = "true"  # otherwise accelerate sees one process if there is no GPU
    return PartialState(timeout=BARRIER_TIMEOUT)


@contextmanager
def build_in_main(run: Run, target: Path) -> Iterator[Path]:
    """`Run.building` in the main process; the others get the same folder and wait for the main process at the end."""
    if is_main():
        with run.building(target) as work:
            yield work
    else:
        yield partial_path(target)
    barrier()
