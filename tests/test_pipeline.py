"""The pipeline on a tiny BERT: stages, front, report, export, resume, determinism."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from command import Command

from nas import pipeline
from nas.pipeline import STAGES, Stage, run_stages
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.studies.study import STUDIES, evaluated_points, open_studies
from nas.supernets.device import faster_threads, set_threads


def test_the_resolved_recipe_and_the_measurements_reproduce_a_run(finished: tuple[Path, Path], tmp_path: Path) -> None:
    first, again = Run(finished[1]), tmp_path / "again"
    recipe = Recipe.load(first.folder / "recipe.yaml")
    assert recipe == Recipe.load(finished[0]) and not recipe.differences(first.recipe)
    Run.open(again, recipe)
    shutil.copy(first.measurements, again)
    done = Command("search", first.folder / "recipe.yaml", "--run", again)
    said = done.communicate()[1]
    assert done.returncode == 0, said
    second = Run(again)

    assert first.measurements.read_bytes() == second.measurements.read_bytes()
    assert first.trials.read_text() == second.trials.read_text()
    assert [(p.key, p.values) for p in first.front()] == [(p.key, p.values) for p in second.front()]
    for name in STUDIES:
        assert evaluated_points(open_studies(first.study, recipe)[name]) == evaluated_points(
            open_studies(second.study, recipe)[name]
        )
    assert {p.source for p in first.verified_points()} == {"search", "uniform", "random", "layer-drop", "parent"}
    assert all(p.measured for p in first.verified_points())
    assert first.report.stat().st_size > 100_000 and any(first.exports.iterdir())


def test_a_folder_without_a_recipe_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe\.yaml"):
        Run(tmp_path)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_stage_names_a_function_that_takes_run_context_and_cluster(stage: Stage) -> None:
    function = resolve_name(stage.function)
    assert function.__module__ == f"nas.stages.{stage.name}" and function.__name__ == f"run_{stage.name}"
    assert list(inspect.signature(function).parameters) == ["run", "context", "cluster"]
    assert stage.meaning.endswith(".") and stage.meaning.count(". ") == 0


def test_only_stages_without_a_result_run_up_to_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    results = {"parent"}

    def stage(name: str) -> Stage:
        return Stage(name, "A stage.", lambda run: name in results, f"{__name__}:_unused")

    def run(self: Stage, *_: object) -> None:
        calls.append(self.name)
        results.add(self.name)

    monkeypatch.setattr(pipeline, "STAGES", tuple(map(stage, ("parent", "supernet", "profile", "search"))))
    monkeypatch.setattr(Stage, "run", run)
    run_stages(object(), object(), last="profile")  # type: ignore[arg-type]
    assert calls == ["supernet", "profile"]
    run_stages(object(), object(), last="search")  # type: ignore[arg-type]
    assert calls == ["supernet", "profile", "search"]


def test_the_help_lists_the_stages_and_imports_no_torch() -> None:
    code = "import sys, nas.cli; print(nas.cli.SEARCH_HELP); print('torch' in sys.modules)"
    lines = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line.split()[0] for line in lines[-1 - len(STAGES) : -1]] == [stage.name for stage in STAGES]
    assert lines[-1] == "False"


def test_the_page_on_concepts_names_the_stages_in_order() -> None:
    page = (Path(__file__).parent.parent / "docs" / "concepts.md").read_text()
    assert f"The stages of a run: {', '.join(stage.name for stage in STAGES)}" in page


def test_a_run_keeps_the_threads_of_its_first_command(
    finished: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(finished[1])
    assert run.threads == 1, "tests run in one thread"
    monkeypatch.setattr("nas.supernets.device.faster_threads", lambda: pytest.fail("they are chosen twice"))
    set_threads(run)
    run.threads = 64
    set_threads(run)
    assert torch.get_num_threads() == 1, "no more than this process has"


@pytest.mark.parametrize(("slow", "chosen"), [(4, 1), (1, 4)])
def test_threads_that_wait_for_each_other_are_not_used(
    slow: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, clock = [4], [0.0]

    def now() -> float:
        clock[0] += 2.0 if used[-1] == slow else 1.0
        return clock[0]

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    monkeypatch.setattr("nas.supernets.device.time.perf_counter", now)
    assert faster_threads() == chosen and used[-1] == 4
