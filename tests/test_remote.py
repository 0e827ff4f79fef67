"""Measuring on another device: a folder that needs only Python, NumPy and the runtime, and the import of results."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from samples import one_slow
from test_resume import heed_ctrl_c, stop_when

from nas.commands.remote import export_plan, import_results
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.runs.files import write_json
from nas.runs.run import Run
from predictors import Workload, device_name
from predictors.measurement.plan import Plan, measure_plan, results_file
from predictors.measurement.timing import REFERENCE
from search_spaces import InputError

GUARD = """
import runpy, sys
for name in {refused!r} + ("nas", "search_spaces.space", "predictors.latency"):
    sys.modules[name] = None
runpy.run_path(sys.argv[1], run_name="__main__")
"""
"""Runs a script as a device would that lacks our packages, and others by name."""


def script(folder: Path, *refused: str) -> list[str]:
    """Measures a folder in an isolated Python."""
    return [sys.executable, "-I", "-c", GUARD.format(refused=refused), str(folder / "measure.py")]


def on_device(folder: Path, *refused: str) -> subprocess.CompletedProcess[str]:
    """The same, from another directory, to its end."""
    return subprocess.run(script(folder, *refused), capture_output=True, text=True, cwd=folder.parent, timeout=500)


def small(text_recipe: Path, *overrides: str) -> Recipe:
    quick = ["profile.samples=10", "search.evaluations=8", "parent.epochs=1", "supernet.epochs=1"]
    return Recipe.load(text_recipe, [*quick, *overrides])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def exported(shelf: Path, text_recipe: Path, text_folder: Path, tmp_path: Path) -> tuple[Recipe, Path, Path]:
    """A run that another device measures, and its folder with made-up results, built once for all tests."""
    if not (shelf / "device").exists():
        shutil.copytree(text_folder, shelf / "text")
        export_plan(small(shelf / "text" / text_recipe.name), shelf / "run", shelf / "device")
        measured_by("abacus", shelf / "device")
    for name in ("run", "device"):
        shutil.copytree(shelf / name, tmp_path / name)
    return small(shelf / "text" / text_recipe.name), tmp_path / "run", tmp_path / "device"


def measured_by(name: str, folder: Path) -> None:
    """Measures a folder on this device under the name of another one."""
    measure_plan(folder)
    rename(folder, name)


def rename(folder: Path, name: str) -> None:
    rows = [replace(result, device_name=name).to_dict() for result in results_file(folder).read()]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("runtime", one_slow(["torch", "onnxruntime"], "torch"))
def test_a_device_needs_nothing_of_ours(runtime: str, text_recipe: Path, tmp_path: Path) -> None:
    if runtime == "onnxruntime":
        pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    recipe = small(text_recipe, f"workload.runtime={runtime}")
    message = export_plan(recipe, tmp_path / "run", tmp_path / "device")
    assert "10 models" in message and "--import" in message
    done = on_device(tmp_path / "device", *(("torch", "transformers") if runtime == "onnxruntime" else ()))
    assert done.returncode == 0, done.stderr
    predictor = import_results(recipe, tmp_path / "run", tmp_path / "device")
    assert len(predictor.subnets) == 10 and predictor.workload.runtime == runtime
    again = on_device(tmp_path / "device")
    assert again.returncode == 0 and again.stdout == "" and "Traceback" not in again.stderr


@pytest.mark.slow
def test_a_search_takes_only_the_latencies_of_its_device(exported: tuple[Recipe, Path, Path], tmp_path: Path) -> None:
    recipe, folder, device = exported
    with pytest.raises(InputError, match=r"another device.*10 are missing.*--export"):
        search(recipe, folder)
    import_results(recipe, folder, device)
    run = search(recipe, folder)
    assert run.target.device == "abacus" and run.target.is_remote
    assert all(point.predicted and point.measured for point in run.front())
    stages = {row["stage"] for row in map(json.loads, run.measurements.read_text().splitlines())}
    assert stages == {"anchor", "profile"}

    export_plan(recipe, folder, tmp_path / "front")
    plan = Plan.read(tmp_path / "front")
    assert plan.precision == recipe.profile.precision == 0.5
    assert plan.passes == 2 and plan.reference_ms == run.target.reference_ms and not plan.untrained
    measured_by("abacus", tmp_path / "front")
    import_results(recipe, folder, tmp_path / "front")
    results = {(r.name, r.number): r.timing.latency_ms for r in results_file(tmp_path / "front").read()}
    for point in Run(folder).front():
        assert not point.predicted
        mean = (results[point.key, 0] * results[point.key, 1]) ** 0.5
        assert point.values["latency_ms"] == pytest.approx(mean) and point.errors["latency_ms"] > 0
    assert all(row["device_name"] == "abacus" for row in map(json.loads, run.measurements.read_text().splitlines()))
    with pytest.raises(InputError, match="every measurement it needs"):
        export_plan(recipe, folder, tmp_path / "more")


def test_what_a_kill_left_is_not_measured_again(exported: tuple[Recipe, Path, Path]) -> None:
    _, _, device = exported
    results = (device / "results.jsonl").read_bytes()
    lines = results.splitlines(keepends=True)
    (device / "results.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:30])
    measure_plan(device)
    assert (device / "results.jsonl").read_bytes().startswith(b"".join(lines[:-1]))
    assert {r.name for r in results_file(device).read()} == {json.loads(line)["name"] for line in lines}


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_loses_nothing(exported: tuple[Recipe, Path, Path]) -> None:
    _, _, device = exported
    replace(Plan.read(device), passes=1000).write(device)
    before = (device / "results.jsonl").read_bytes()
    nowhere, pipe = subprocess.DEVNULL, subprocess.PIPE
    process = subprocess.Popen(script(device), stdout=nowhere, stderr=pipe, text=True, preexec_fn=heed_ctrl_c)
    message = stop_when(process, lambda: (device / "results.jsonl").read_bytes() > before, signal.SIGINT)
    assert message == "measure.py: stopped; type the same command again to go on.\n" and process.returncode == 2
    assert (device / "results.jsonl").read_bytes().startswith(before) and results_file(device).read()[-1].number >= 1


def incomplete(folder: Path, device: Path) -> None:
    rows = (device / "results.jsonl").read_bytes().splitlines(keepends=True)
    (device / "results.jsonl").write_bytes(b"".join(rows[:-2]))


def other_workload(folder: Path, device: Path) -> None:
    plan = Plan.read(device)
    replace(plan, workload=Workload(threads=7)).write(device)


def mixed_workload(folder: Path, device: Path) -> None:
    rows = [result.to_dict() for result in results_file(device).read()]
    rows[3]["workload"]["batch_size"] = 64
    (device / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def two_devices(folder: Path, device: Path) -> None:
    rows = [result.to_dict() for result in results_file(device).read()]
    rows[3]["device_name"] = "calculator"
    (device / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def other_run(folder: Path, device: Path) -> None:
    plan = Plan.read(device)
    models, inputs = (
        {"0123456789": "models/x", **dict(list(paths.items())[1:])} for paths in (plan.models, plan.inputs)
    )
    replace(plan, models=models, inputs=inputs).write(device)


def damaged(folder: Path, device: Path) -> None:
    (device / "results.jsonl").write_text("{}\n" + (device / "results.jsonl").read_text())


def third_pass(folder: Path, device: Path) -> None:
    rows = [result.to_dict() for result in results_file(device).read()]
    rows[3]["number"] = 2
    (device / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def contradiction(folder: Path, device: Path) -> None:
    rows = [result.to_dict() for result in results_file(device).read()]
    slower = {**rows[3], "timing": {**rows[3]["timing"], "raw_ms": 2 * rows[3]["timing"]["raw_ms"]}}
    (device / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*rows, slower)))


def half_a_pass(folder: Path, device: Path) -> None:
    plan = json.loads((device / "plan.json").read_text())
    (device / "plan.json").write_text(json.dumps({**plan, "passes": 0.5}))


def more_passes(folder: Path, device: Path) -> None:
    replace(Plan.read(device), passes=2).write(device)


def no_plan(folder: Path, device: Path) -> None:
    (device / "plan.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (incomplete, r"all its 11 measurements, but 2 are missing.*measure\.py"),
        (other_workload, r"of the run's workload.*7 threads.*export and measure again"),
        (mixed_workload, r"of the run's workload.*batch 64.*export and measure again"),
        (two_devices, r"one device.*abacus and calculator"),
        (other_run, r"current state of this run"),
        (damaged, r"results\.jsonl` must be a measurement, but line 1 is not.*delete that line"),
        (third_pass, r"passes 0 to 0, but has some of pass 2; export and measure again"),
        (contradiction, r"has two that differ in pass 0, in lines 4 and \d+ of results\.jsonl"),
        (half_a_pass, r"complete plan\.json.*`passes` must be a whole number"),
        (more_passes, r"current state of this run"),
        (no_plan, r"complete plan\.json.*--export"),
    ],
)
def test_results_that_do_not_fit_the_run_are_refused(
    damage: object, message: str, exported: tuple[Recipe, Path, Path]
) -> None:
    recipe, folder, device = exported
    damage(folder, device)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        import_results(recipe, folder, device)
    assert not (folder / "measurements.jsonl").exists() and not (folder / "predictor").exists()


@pytest.mark.parametrize(
    ("field", "value", "law"),
    [
        ("latency_ms", math.nan, "above 0, but got nan"),
        ("latency_ms", math.inf, "above 0, but got inf"),
        ("latency_ms", "fast", "above 0, but got 'fast'"),
        ("ratio", -1.0, r"above 0, but got -1\.0"),
        ("raw_ms", 0.0, r"above 0, but got 0\.0"),
        ("rounds", True, "above 0, but got True"),
        ("rounds", 2.5, r"whole number, but got 2\.5"),
        ("latency_ms", 10**400, "at most 1e"),
        ("raw_ms", 1e308, "at most 1e"),
        ("latency_ms_p10", 1e6, "and `latency_ms_p90`, but got 1e"),
        ("latency_ms_p90", 1e-9, "but got .*1e-09"),
        ("ratio_low", 1e6, "and `ratio_high`, but got 1e"),
        ("device_name", "\x1b[31mred", "printable"),
        ("ratio_high", math.nan, "above 0, but got nan"),
        ("drift", -1.0, r"above -1, but got -1\.0"),
        ("number", "0", "whole number from 0, but got '0'"),
        ("device_name", None, "strings, but got .* and None"),
    ],
)
def test_a_number_that_no_measurement_gives_is_not_stored(
    field: str, value: object, law: str, exported: tuple[Recipe, Path, Path]
) -> None:
    recipe, folder, device = exported
    good = (device / "results.jsonl").read_text()
    lines = good.splitlines(keepends=True)
    row = json.loads(lines[-1])
    (row["timing"] if field in row["timing"] else row)[field] = value
    (device / "results.jsonl").write_text("".join(lines[:-1]) + json.dumps(row) + "\n")
    message = rf"results\.jsonl` must be a measurement, but line {len(lines)} is not \(.*`{field}`.*{law}.*measure\.py"
    with pytest.raises(InputError, match=message):
        import_results(recipe, folder, device)
    assert not (folder / "measurements.jsonl").exists()
    if field == "number":  # the way out
        (device / "results.jsonl").write_text(good)
        import_results(recipe, folder, device)


def test_a_measurement_given_twice_counts_once(exported: tuple[Recipe, Path, Path]) -> None:
    recipe, folder, device = exported
    lines = (device / "results.jsonl").read_text().splitlines(keepends=True)
    (device / "results.jsonl").write_text("".join([*lines, lines[-1]]))
    assert len(import_results(recipe, folder, device).subnets) == 10


def test_an_import_whose_fit_fails_leaves_the_run_as_it_was(
    exported: tuple[Recipe, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder, device = exported
    before = {path: path.read_bytes() for path in folder.glob("*.json*")}

    def fail(*arguments: object, **options: object) -> None:
        raise InputError("the predictor cannot be fitted")

    monkeypatch.setattr("nas.commands.remote.fit_predictor", fail)
    with pytest.raises(InputError, match="cannot be fitted"):
        import_results(recipe, folder, device)
    assert {path: path.read_bytes() for path in folder.glob("*.json*")} == before
    monkeypatch.undo()
    assert len(import_results(recipe, folder, device).subnets) == 10


@pytest.mark.parametrize("lost", ["last", "first reference", "all references"])
def test_lines_that_were_deleted_are_measured_again(lost: str, exported: tuple[Recipe, Path, Path]) -> None:
    recipe, folder, device = exported
    lines = (device / "results.jsonl").read_text().splitlines(keepends=True)
    references = [line for line in lines if json.loads(line)["name"] == REFERENCE]
    dropped = {"last": lines[-1:], "first reference": references[:1], "all references": references}[lost]
    (device / "results.jsonl").write_text("".join(line for line in lines if line not in dropped))
    measured_by("abacus", device)
    assert len(import_results(recipe, folder, device).subnets) == 10


def test_a_second_device_is_refused(exported: tuple[Recipe, Path, Path]) -> None:
    recipe, folder, device = exported
    import_results(recipe, folder, device)
    rename(device, "calculator")
    with pytest.raises(InputError, match="measured on calculator, and the run on abacus"):
        import_results(recipe, folder, device)


def test_a_run_of_this_device_is_not_exported(exported: tuple[Recipe, Path, Path], tmp_path: Path) -> None:
    recipe, folder, device = exported
    rename(device, device_name(recipe.workload))
    import_results(recipe, folder, device)
    environment = json.loads((folder / "environment.json").read_text())
    write_json(folder / "environment.json", {**environment, "elsewhere": False})
    with pytest.raises(InputError, match=r"measured on this device.*--run"):
        export_plan(recipe, folder, tmp_path / "new")
    with pytest.raises(InputError, match="exists"):
        export_plan(recipe, folder, folder)
    assert not (tmp_path / "new").exists()


def test_a_device_that_lacks_a_package_or_gpu_says_so_in_one_line(exported: tuple[Recipe, Path, Path]) -> None:
    _, _, device = exported
    for changed, message in (
        (Workload(runtime="openvino", sequence_length=16), "pip install"),
        (replace(Plan.read(device).workload, device="cuda:9"), "must be on this machine"),
    ):
        replace(Plan.read(device), workload=changed).write(device)
        done = on_device(device, "openvino")
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr
