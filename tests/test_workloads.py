"""Several workloads in one run: each is profiled, predicted, verified and exported under its name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from test_remote import measured_by

from nas.commands.remote import export_plan, import_results
from nas.exports.card import write_card
from nas.exports.export import export_subnet
from nas.exports.model_info import by_workload, read_export_info
from nas.pipeline import profile, search
from nas.recipe.objectives import cost_name, is_cost
from nas.recipe.schema import Recipe
from nas.reports.summary import print_summary
from nas.runs.run import Run
from predictors import device_name
from search_spaces import InputError

WORKLOADS = {"short": {"sequence_length": 8}, "long": {"sequence_length": 16, "batch_size": 8}}
QUICK = ["profile.samples=10", "search.evaluations=8", "parent.epochs=1", "supernet.epochs=1", "finish.models=0"]


@pytest.fixture
def recipe_file(text_recipe: Path) -> Path:
    """The toy recipe under two workloads."""
    data = yaml.safe_load(text_recipe.read_text())
    del data["workload"]
    text_recipe.write_text(yaml.safe_dump({**data, "workloads": WORKLOADS}, sort_keys=False))
    return text_recipe


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def searched(shelf: Path, recipe_file: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A recipe with two workloads and its finished run, built once for all tests."""
    if not (shelf / "run").exists():
        shutil.copytree(recipe_file.parent, shelf / "text")
        bounds = ["constraints={latency_ms@long: <= 300%, samples_per_second@short: '>= 10%'}"]
        search(Recipe.load(shelf / "text" / recipe_file.name, [*QUICK, *bounds]), shelf / "run")
    return shelf / "text" / recipe_file.name, Path(shutil.copytree(shelf / "run", tmp_path / "run"))


def test_costs_of_several_workloads_carry_their_names(recipe_file: Path) -> None:
    recipe = Recipe.load(recipe_file)
    assert list(recipe.named_workloads) == ["short", "long"] and recipe.named_workloads["long"].batch_size == 8
    assert list(recipe.objectives) == ["accuracy", "latency_ms@short", "latency_ms@long"]
    assert cost_name("size_mb", "short") == "size_mb" and is_cost("macs@short") and not is_cost("accuracy")
    again = Recipe.parse(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe and not recipe.differences(again)


def test_a_single_workload_has_no_name(text_recipe: Path) -> None:
    recipe = Recipe.load(text_recipe)
    assert recipe.named_workloads == {"": recipe.workload} and "latency_ms" in recipe.objectives
    assert "workloads" not in recipe.to_yaml()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["workload.batch_size=2"], "short form of one of `workloads`, but both are given"),
        (["workloads.a b={}"], "identifiers as names, but got `a b`"),
        (["workloads.short.batch_size=0"], "`workloads.short.batch_size` must be a whole number"),
        (["workloads.short.phase=decode"], "`workloads.short.phase=decode` is for models that generate"),
        (["constraints={latency_ms: <= 5}"], "must name one of several workloads; choose `latency_ms@short`"),
        (["constraints={latency_ms@shrt: <= 5}"], "did you mean `latency_ms@short`"),
    ],
)
def test_a_wrong_workload_is_one_line(recipe_file: Path, tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        profile(Recipe.load(recipe_file, overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_every_workload_is_profiled_predicted_and_measured(searched: tuple[Path, Path]) -> None:
    run = Run(searched[1])
    short, long = run.targets
    assert [target.load_predictor().workload for target in run.targets] == list(run.recipe.named_workloads.values())
    assert short.device == device_name(short.workload) and short.predictor != long.predictor
    for point in run.verified_points():
        assert point.values["latency_ms@long"] != point.values["latency_ms@short"] and "latency_ms" not in point.values
        assert point.values["macs@long"] > point.values["macs@short"] and "macs" not in point.values
        assert point.values["samples_per_second@short"] == pytest.approx(1000 / point.values["latency_ms@short"])
        for target in run.targets:
            stored = target.store.reported_latency(point.key, target.workload)
            assert stored is not None and stored.latency_ms == point.values[target.cost_name("latency_ms")]


@pytest.mark.slow
def test_table_report_picks_and_exports_name_the_workloads(
    searched: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(searched[1])
    print_summary(run, run.front())
    shown = capsys.readouterr().out
    assert all(f"workload {name}" in shown and f"latency_ms@{name}" in shown for name in WORKLOADS)
    page = run.report.read_text(encoding="utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["workloads"] == list(data["history"]["predictor"]) == ["short", "long"]
    assert page.count('data-workload="short"') == page.count('data-workload="long"') == 3
    fastest = run.front().pick("fastest@long")
    assert fastest.values["latency_ms@long"] == min(point.values["latency_ms@long"] for point in run.front())
    with pytest.raises(InputError, match="try `fastest@"):
        run.front().pick("fastest")
    assert run.front().where("latency_ms@long > 0").points == run.front().points
    out = export_subnet(run, fastest, tmp_path / "out")
    info = read_export_info(out)
    assert {name: own["workload"]["batch_size"] for name, own in by_workload(info).items()} == {"short": 1, "long": 8}
    write_card(out, info)
    assert "short: torch" in (out / "README.md").read_text() and "latency_ms@long" in (out / "README.md").read_text()


@pytest.mark.slow
def test_a_run_of_several_workloads_goes_on(searched: tuple[Path, Path]) -> None:
    file, folder = searched
    before = [target.predictor.joinpath("predictor.json").read_bytes() for target in Run(folder).targets]
    objectives = "{accuracy: maximize, latency_ms@short: minimize, samples_per_second@long: maximize}"
    bounds = ["constraints={latency_ms@long: <= 300%, macs@short: <= 100%}", f"objectives={objectives}"]
    run = search(Recipe.load(file, [*QUICK, *bounds]), folder)
    assert [target.predictor.joinpath("predictor.json").read_bytes() for target in run.targets] == before
    data = run.report.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0]
    kinds = {series["kind"]: len(series["points"]) for series in json.loads(data)["series"]}
    assert kinds["earlier"] == len(run.earlier_front()) > 0, "the earlier front is not drawn beside the new one"


@pytest.mark.full
def test_one_workload_may_be_measured_elsewhere(recipe_file: Path, tmp_path: Path) -> None:
    recipe, folder = Recipe.load(recipe_file, QUICK), tmp_path / "run"
    with pytest.raises(InputError, match=r"must name one of the `workloads` \(short, long\), but got `laptop`"):
        export_plan(recipe, folder, tmp_path / "device", "laptop")
    export_plan(recipe, folder, tmp_path / "device", "long")
    with pytest.raises(InputError, match=r"latencies long of .* --export FOLDER --workload long"):
        search(recipe, folder)
    measured_by("abacus", tmp_path / "device")
    assert import_results(recipe, folder, tmp_path / "device").workload == recipe.workloads["long"]
    run = search(recipe, folder)
    short, long = run.targets
    assert (long.device, short.device) == ("abacus", device_name(short.workload))
    assert short.store.references(short.workload) and not short.store.references(long.workload)
    assert all(point.predicted for point in run.front())
    export_plan(recipe, folder, tmp_path / "front", "long")
    measured_by("abacus", tmp_path / "front")
    import_results(recipe, folder, tmp_path / "front")
    assert not any(point.predicted for point in Run(folder).front())
