"""The fuzzer's cases end as its tables say; it sees what ends otherwise."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from experiments.bench import fuzz
from experiments.bench.fuzz import Case, Result, World, call, problem_of, recipe_cases, run_cases, state
from nas.recipe.schema import Recipe


@pytest.fixture
def world(finished: tuple[Path, Path], tmp_path: Path) -> World:
    """The toy model, its data, its recipe and its finished run."""
    recipe, run = finished
    folder = Path(shutil.copytree(recipe.parent, tmp_path / "world"))
    run.rename(folder / "run")
    world = World(folder)
    world.write_places()
    return world


def problems(world: World, counts: dict[str, int], seed: int = 0) -> list[str]:
    return [f"{problem}: {case.about}: {list(case.words)}" for case, problem in fuzz.fuzz(world, counts, seed)[1]]


def test_recipes_and_command_lines_end_as_the_tables_say(world: World) -> None:
    assert not problems(world, {"recipes": 60})


def test_damaged_runs_are_one_line(world: World) -> None:
    assert not problems(world, {"runs": 40})


@pytest.mark.full
def test_thousands_end_as_the_tables_say(tmp_path: Path) -> None:
    world = World(tmp_path / "world")
    world.make()
    assert not problems(world, {"recipes": 2000, "runs": 200, "imports": 200}, seed=1)


def test_tables_and_generators_agree_with_themselves(world: World) -> None:
    """Every case is made again from its seed, and right values are right by the schema alone."""
    for cases in (recipe_cases, run_cases):
        made = [list(cases(world, Random(0), 50)) for _ in range(2)]
        assert made[0] == made[1] and {case.expected for case in made[0]} >= {"any", "refused"}
    for table in (fuzz.INTEGERS, fuzz.FLOATS):
        for key, (right, _) in table.items():
            for value in right:
                Recipe.load(world.recipe, [f"{key}={value}"])


def test_a_crash_a_write_and_a_wrong_verdict_are_seen(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(command: Callable[[], object]) -> Result:
        monkeypatch.setattr("nas.cli.main", command)
        return call(["show"])

    def crash() -> None:
        raise KeyError("x")

    refuse = Case("", ["show"], "refused")
    before = state(world.folder)
    assert problem_of(refuse, ends(crash), []).startswith("traceback")
    assert problem_of(refuse, ends(lambda: None), []) == "accepted though wrong"
    assert problem_of(refuse, Result(2, "", "nas: no\n"), ["x"]) == "wrote x"
    assert problem_of(refuse, Result(2, "", "nas: no\nno\n"), []).startswith("not one line")
    assert problem_of(refuse, Result(2, "", f"nas: {fuzz.SECRET}\n"), []) == "a secret is printed"
    assert problem_of(Case("", [], "accepted"), Result(2, "", "nas: no\n"), []).startswith("refused though right")
    assert problem_of(refuse, Result(None, "", ""), []).startswith("took over")
    assert not problem_of(refuse, Result(2, "", "nas: no\n"), [])
    (world.folder / "new").touch()
    assert state(world.folder).keys() - before.keys() == {str(world.folder / "new")}
