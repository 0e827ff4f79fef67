"""What a run needs beside its model and data, checked before it trains: a folder, processes, a cluster, a storage."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nas.recipe.schema import TRAININGS, Recipe
from nas.runs import processes
from nas.runs.files import check_place
from nas.runs.run import check_new, is_run
from nas.studies.storage import check_storage
from search_spaces import InputError


def check_resources(recipe: Recipe, folder: str | Path, cluster: str | None = None) -> None:
    """Checks what a run writes to and is computed on; writes nothing.

    Args:
        recipe: The recipe.
        folder: The run.
        cluster: Address of a Ray cluster; None for none.

    Raises:
        InputError: With the first thing that is missing.
    """
    folder = Path(folder)
    check_folder(folder)
    due = [name for name in TRAININGS if not (is_run(folder) and (folder / name).exists())]
    check_processes(recipe, cluster, due)
    if cluster is not None and not (is_run(folder) and (folder / "front.json").exists()):
        check_cluster(cluster)
    if recipe.search.storage is not None:
        check_storage(recipe.search.storage, folder)


def check_folder(folder: Path) -> None:
    """Raises InputError unless a run can be written into a folder."""
    check_place(folder, "--run")
    if not is_run(folder):
        check_new(folder)


def check_processes(recipe: Recipe, cluster: str | None, trainings: Iterable[str]) -> None:
    """Raises InputError if a training wants other processes than were launched, and no cluster can give them."""
    launched = processes.world_size()
    for name in trainings:
        workers = getattr(recipe, name).workers
        if workers not in (None, launched) and (cluster is None or launched > 1):
            raise InputError(
                f"`{name}.workers` must be the number of launched processes, {launched}, but got {workers}; "
                f"add --ray, or launch with `torchrun --nproc-per-node {workers} -m -- nas.cli ...`."
            )


def check_cluster(address: str) -> None:
    """Raises InputError unless a Ray cluster accepts this driver; `local` is started when it is needed."""
    if address == "local":
        return
    from nas.ray.cluster import ray_connection

    with ray_connection(address):
        pass
