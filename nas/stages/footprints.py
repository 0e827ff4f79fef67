"""Footprints: memory, energy, loading and first pass of subnetworks, each in a process of its own; kept in the run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nas.exports.export import save_model
from nas.runs.isolated import run_in_subprocess
from nas.runs.progress import progress
from nas.runs.target import Target
from nas.stages.held_out import LEAST
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors.measurement.budget import Budget
from predictors.measurement.image_tower import image_tower
from predictors.measurement.plan import Plan
from predictors.measurement.runtimes import RUNTIMES
from search_spaces import SubnetConfig


def measure_footprints(
    target: Target,
    context: TaskContext,
    supernet: Supernet,
    subnets: Sequence[SubnetConfig],
    budget: Budget | None = None,
) -> None:
    """Measures the costs of subnetworks among `FOOTPRINTS`, as far as the recipe names one and they are missing.

    They hardly depend on the weights: those of the supernet are taken, and a finished model has the same.

    Args:
        target: The workload, on this device.
        context: The context of the run's recipe.
        supernet: What is extracted from.
        subnets: What to measure.
        budget: Time limit; `LEAST` are measured whatever it says. Default: none.

    Raises:
        InputError: If a process fails.
    """
    known, names = target.footprints(), set(target.footprint_names)
    missing = {subnet.key: subnet for subnet in subnets if not names <= known.get(subnet.key, {}).keys()}
    if not missing:
        return
    with progress(f"footprint{target.label}") as report:
        for number, subnet in enumerate(missing.values(), 1):
            if budget is not None and budget.is_over and number > LEAST:
                break
            with tempfile.TemporaryDirectory(dir=target.run.folder, prefix=".verify-") as folder:
                _write(target, context, supernet, subnet, Path(folder))
                call = ("predictors.measurement.plan", "footprint", folder, subnet.key)
                target.add_footprint(subnet, run_in_subprocess(*call, what=f"footprint of {subnet.key}"))
            report(number, len(missing), subnet.key)


def _write(target: Target, context: TaskContext, supernet: Supernet, subnet: SubnetConfig, folder: Path) -> None:
    """Writes one subnetwork with its inputs and a plan that names it."""
    workload, inputs = target.workload, context.workload_inputs(subnet, target.workload)
    model, feed = supernet.extract(subnet).eval(), {name: tensor.numpy() for name, tensor in inputs.items()}
    path = folder / "model"
    path.mkdir()
    if workload.needs_torch:
        save_model(model, context, path)
    else:
        path, feed = RUNTIMES[workload.runtime].write(*image_tower(model, inputs), workload, path)
    np.savez(folder / "inputs.npz", **feed)  # type: ignore[arg-type]
    plan = Plan(
        workload,
        context.auto_class,
        {subnet.key: str(path.relative_to(folder))},
        {subnet.key: "inputs.npz"},
        subnet.key,
        passes=1,
        precision=context.recipe.profile.precision,
        remote_code=True,
    )
    plan.write(folder)
