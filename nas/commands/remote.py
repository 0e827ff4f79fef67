"""`nas profile --export / --import`: measures a run's subnetworks on another device and imports the results."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import numpy as np

from nas.exports.export import save_model
from nas.pipeline import run_stages
from nas.recipe.schema import Recipe
from nas.runs.files import check_place, delete, write_text
from nas.runs.progress import progress, quiet_libraries
from nas.runs.run import Run
from nas.runs.target import Target
from nas.stages.check import open_run
from nas.stages.profile import fit_predictor, profile_sample
from nas.stages.verify import PASSES, run_verify
from nas.supernets.load import load_supernet
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors import MeasurementStage, MeasurementStore, SubnetPredictor
from predictors.measurement.image_tower import image_tower
from predictors.measurement.plan import Plan, Result, results_file
from predictors.measurement.runtimes import RUNTIMES
from predictors.measurement.timing import REFERENCE
from search_spaces import InputError, SearchSpace, SubnetConfig
from search_spaces.dimension import FULL

BUNDLED_MODULES = {
    "search_spaces": ("dimension", "errors", "module_kinds"),
    "search_spaces.dimensions": ("bits",),
    "predictors": (),
}
"""Package -> modules copied into the folder; they import each other, NumPy and the runtime only."""

BUNDLED_PACKAGES = ("predictors.measurement", "predictors.measurement.runtimes")
"""Packages copied with all their modules."""

SCRIPT = '''"""Measures the models of this folder on this device; the same command resumes.

    python measure.py

Needs {packages} and NumPy only. Then copy the folder back (results.jsonl suffices) and run

    nas profile RECIPE --import FOLDER
"""

import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER / "lib"))

from predictors.measurement.plan import main

main(FOLDER)
'''


def export_plan(recipe: Recipe, folder: str | Path, out: Path, workload: str = "") -> str:
    """Writes a folder with what a run needs measured next: sampled subnetworks, or verified ones after the search.

    Models for PyTorch are model folders; sampled ones have no weights, as latency does not depend on them. Models for
    a runtime that needs no PyTorch are its files.

    Args:
        recipe: The recipe.
        folder: The run; it is created if it does not exist.
        out: The folder to write.
        workload: Name of one of several workloads.

    Returns:
        What to do next, in one line.

    Raises:
        InputError: If the run is measured on this device, nothing is left to measure, or ``out`` exists.
    """
    quiet_libraries()
    if os.path.lexists(out):
        raise InputError(f"`--export` must be a new folder, but `{out}` exists; choose another one.")
    check_place(out, "--export")
    if recipe.supernet.sampler == "latency_ms":
        raise InputError(
            "`supernet.sampler` must not be `latency_ms`, as another device measures latencies after the training; "
            "choose `macs`."
        )
    _check_name(recipe, workload)
    context, run = open_run(recipe, folder, remote=[workload])
    target = next(target for target in run.targets if target.name == workload)
    if not target.is_remote and target.reference_ms is not None:
        raise InputError(
            f"all latencies{target.label} of a run must come from one device, but `{run.folder}` is measured on this "
            f"device ({target.device}); choose another folder with --run."
        )
    with run.locked():
        if not target.is_remote:
            target.measure_elsewhere()
        run_stages(run, context, last="supernet")
        supernet, space = load_supernet(run, context)
        subnets, stages = pending_measurements(run, space)
        if all(target.store.get(key, target.workload, stage) for key in subnets for stage in stages):
            raise InputError(f"`{run.folder}` has every measurement it needs now; continue with `nas search`.")
        work = out.with_name(f".{out.name}.partial")
        delete(work)
        _write_bundle(target, context, supernet, subnets, stages, work)
        work.rename(out)
    return (
        f"{len(subnets)} models in {out}: copy it to the device, run `python measure.py` in it, copy it back, run "
        f"`nas profile RECIPE --import {out}`"
    )


def _check_name(recipe: Recipe, workload: str) -> None:
    """Raises InputError unless a recipe has a workload of this name."""
    if workload not in recipe.named_workloads:
        names = ", ".join(recipe.workloads) or "none: the recipe has one `workload`"
        raise InputError(f"`--workload` must name one of the `workloads` ({names}), but got `{workload}`.")


def import_results(recipe: Recipe, folder: str | Path, source: Path) -> SubnetPredictor:
    """Imports the measurements of another device into a run; an existing front is verified again with them.

    Args:
        recipe: The recipe of the run.
        folder: The run.
        source: The folder that `export_plan` wrote, with the results of the device.

    Returns:
        The latency predictor of that device.

    Raises:
        InputError: If results are missing, of another run, workload or device.
    """
    quiet_libraries()
    Run(folder)
    context, run = open_run(recipe, folder)
    with run.locked():
        supernet, space = load_supernet(run, context)
        subnets, stages = pending_measurements(run, space)
        plan = Plan.read(source)
        _check_name(recipe, plan.workload_name)
        target = next(target for target in run.targets if target.name == plan.workload_name)
        results = _distinct(source, plan, results_file(source).read())
        _check_results(source, plan, results, target, subnets, len(stages))
        with _all_or_nothing(run):
            target.set_device(results[0].device_name)
            _store_results(target.store, results, {**subnets, REFERENCE: context.layout.parent}, stages)
            if not target.has_predictor:
                fit_predictor(target, context, supernet, space)
        if run.front_file.exists():
            run_verify(run, context)
            delete(run.exports / run.front().knee().key)
            run_stages(run, context)
    return target.load_predictor()


def pending_measurements(run: Run, space: SearchSpace) -> tuple[dict[str, SubnetConfig], tuple[MeasurementStage, ...]]:
    """Key -> subnetwork to measure next, and the measurement stage of each pass."""
    if run.front_file.exists():
        return {point.key: point.subnet for point in run.verified_points()}, PASSES
    sample = profile_sample(space, run.recipe.profile.samples, run.recipe.seed)
    return {subnet.key: subnet for subnet in sample}, ("profile",)


def _write_bundle(
    target: Target,
    context: TaskContext,
    supernet: Supernet,
    subnets: Mapping[str, SubnetConfig],
    stages: Sequence[MeasurementStage],
    out: Path,
) -> None:
    """Writes the models, the plan, the script and the modules that the script needs."""
    recipe, workload, inputs = context.recipe, target.workload, context.dummy_inputs(target.workload)
    runtime = RUNTIMES[workload.runtime]
    models, model_inputs = {}, {}
    weights = stages == PASSES
    out.mkdir(parents=True)
    np.savez(out / "inputs.npz", **{name: tensor.numpy() for name, tensor in inputs.items()})  # type: ignore[arg-type]
    with progress("export") as report:
        for number, (key, subnet) in enumerate({**subnets, REFERENCE: supernet.parent}.items(), 1):
            place = out / "models" / key
            place.mkdir(parents=True)
            own = context.workload_inputs(subnet, workload)
            if not workload.needs_torch:
                file, feed = runtime.write(*image_tower(supernet.extract(subnet).eval(), own), workload, place)
                np.savez(place / "inputs.npz", **feed)  # type: ignore[arg-type]
                models[key], model_inputs[key] = (str(path.relative_to(out)) for path in (file, place / "inputs.npz"))
            else:
                save_model(supernet.extract(subnet), context, place, weights=weights)
                models[key], model_inputs[key] = str(place.relative_to(out)), "inputs.npz"
                if subnet.input_size != FULL:
                    np.savez(place / "inputs.npz", **{name: tensor.numpy() for name, tensor in own.items()})  # type: ignore[arg-type]
                    model_inputs[key] = str((place / "inputs.npz").relative_to(out))
            report(number, len(subnets) + 1, "")
    untrained = [] if weights or not workload.needs_torch else list(models)
    Plan(
        workload,
        context.auto_class,
        models,
        model_inputs,
        REFERENCE,
        passes=len(stages),
        precision=recipe.profile.precision,
        reference_ms=target.reference_ms,
        remote_code=True,
        untrained=untrained,
        minutes=recipe.verify.minutes if stages == PASSES else recipe.profile.minutes,
        workload_name=target.name,
    ).write(out)
    (out / "measure.py").write_text(SCRIPT.format(packages=", ".join(runtime.packages)))
    _copy_modules(out / "lib")


def _copy_modules(out: Path) -> None:
    """Writes the modules that the script needs."""
    for package, modules in BUNDLED_MODULES.items():
        target = out / Path(*package.split("."))
        target.mkdir(parents=True)
        (target / "__init__.py").touch()
        for module in modules:
            shutil.copy(str(files(package) / f"{module}.py"), target)
    for package in BUNDLED_PACKAGES:
        target = out / Path(*package.split("."))
        target.mkdir()
        for file in Path(str(files(package))).glob("*.py"):
            shutil.copy(file, target)


@contextmanager
def _all_or_nothing(run: Run) -> Iterator[None]:
    """A block after whose failure the run has the measurements and the device that it had before."""
    size = run.measurements.stat().st_size if run.measurements.exists() else None
    before = (run.folder / "environment.json").read_text(encoding="utf-8")
    try:
        yield
    except Exception:
        write_text(run.folder / "environment.json", before)
        if size is None:
            delete(run.measurements)
        else:
            os.truncate(run.measurements, size)
        raise


def _distinct(source: Path, plan: Plan, results: Sequence[Result]) -> list[Result]:
    """The results, each model once a pass.

    A model that was measured before the first line of the reference is measured again on the device, as its scale was
    lost with lines that were deleted; the new result counts.

    Raises:
        InputError: If two lines disagree otherwise.
    """
    first = next((k for k, result in enumerate(results) if result.name == REFERENCE), 0)
    lost = 0 if plan.reference_ms is not None else first
    lines: dict[tuple[str, int], int] = {}
    for line, result in enumerate(results):
        earlier = lines.get((result.name, result.number))
        if earlier is not None and earlier >= lost and results[earlier] != result:
            raise InputError(
                f"`{source}` must hold each measurement once, but {result.name} has two that differ in pass "
                f"{result.number}, in lines {earlier + 1} and {line + 1} of results.jsonl; delete the wrong one."
            )
        lines[result.name, result.number] = line
    return [results[line] for line in sorted(lines.values())]


def _check_results(
    source: Path,
    plan: Plan,
    results: Sequence[Result],
    target: Target,
    subnets: Mapping[str, SubnetConfig],
    passes: int,
) -> None:
    """Raises InputError unless the results are complete, of this run, and of one workload and one device."""
    workload = target.workload
    for other in [plan.workload, *(result.workload for result in results)]:
        if other != workload:
            raise InputError(
                f"measurements must be of the run's workload ({workload}), but `{source}` has some of ({other}); "
                "export and measure again."
            )
    if plan.models.keys() != {*subnets, REFERENCE} or plan.passes != passes:
        raise InputError(
            f"`{source}` must be exported by the current state of this run, but is by another run or before it "
            "continued; export again."
        )
    last_pass = max((result.number for result in results if result.name != REFERENCE), default=0)
    if last_pass >= plan.passes:
        raise InputError(
            f"`{source}` must hold the results of passes 0 to {plan.passes - 1}, but has some of pass {last_pass}; "
            "export and measure again."
        )
    devices = {result.device_name for result in results}
    known = target.reference_ms and {target.device}
    if len(devices) > 1 or (devices and known and devices != known):
        raise InputError(
            f"all latencies{target.label} of a run must come from one device, but `{source}` was measured on "
            f"{' and '.join(sorted(devices))}{f', and the run on {target.device}' if known else ''}; measure all on "
            "one."
        )
    expected = {(name, number) for name in subnets for number in range(plan.passes)}
    expected |= set() if plan.reference_ms else {(REFERENCE, 0)}
    missing = expected - {(result.name, result.number if result.name != REFERENCE else 0) for result in results}
    if missing:
        raise InputError(
            f"`{source}` must hold the results of all its {len(expected)} measurements, but {len(missing)} are "
            "missing; run `python measure.py` in it on the device again, it resumes."
        )


def _store_results(
    store: MeasurementStore,
    results: Sequence[Result],
    subnets: Mapping[str, SubnetConfig],
    stages: Sequence[MeasurementStage],
) -> None:
    """Stores results that are not in the store yet, those of the reference model first."""
    references = [result for result in results if result.name == REFERENCE]
    for result in references[len(store.references(results[0].workload)) :]:
        store.add(subnets[REFERENCE], result.workload, "anchor", result.timing)
    for result in (result for result in results if result.name != REFERENCE):
        stage = stages[result.number]
        if result.name in subnets and store.get(subnets[result.name].key, result.workload, stage) is None:
            store.add(subnets[result.name], result.workload, stage, result.timing)
