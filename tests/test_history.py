"""History of a run: hypervolume curves, parameter importance, predicted and measured latency."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from nas.fronts.front import ParetoFront
from nas.fronts.point import Point
from nas.recipe.objectives import Direction
from nas.reports.history import growth, importance, predicted_vs_measured
from search_spaces import SubnetConfig

OBJECTIVES: dict[str, Direction] = {"accuracy": "maximize", "latency_ms": "minimize"}
DISTRIBUTIONS = {name: optuna.distributions.IntDistribution(1, 8) for name in ("num_attention_heads.0", "hidden_size")}


def study_of(name: str, count: int) -> optuna.Study:
    """A study whose accuracy depends only on the heads, and whose latency only on the hidden size."""
    study, rng = optuna.create_study(study_name=name, directions=["maximize", "minimize"]), Random(name)
    study.set_metric_names(list(OBJECTIVES))
    for number in range(count):
        heads, hidden = rng.randint(1, 8), rng.randint(1, 8)
        subnet = SubnetConfig((0,), (heads,), (8,), hidden)
        values = {"accuracy": heads / 10, "latency_ms": float(hidden)}
        attributes = {"point": Point(subnet, values).to_dict(), "search_s": 5.0 + number}
        study.add_trial(
            optuna.create_trial(
                params={"num_attention_heads.0": heads, "hidden_size": hidden},
                distributions=DISTRIBUTIONS,
                values=list(values.values()),
                user_attrs=attributes,
            )
        )
    return study


@pytest.fixture(scope="module")
def studies() -> dict[str, optuna.Study]:
    return {name: study_of(name, count) for name, count in (("search", 20), ("uniform", 0), ("random", 40))}


def run() -> Any:
    recipe = SimpleNamespace(objectives=OBJECTIVES, bounds={}, primary_metric="accuracy")
    recipe.with_parent = lambda values: recipe
    return SimpleNamespace(recipe=recipe, parent_values=Path("none"))


def test_growth_ends_at_the_hypervolume_of_the_front(studies: dict[str, optuna.Study]) -> None:
    result = growth(run(), studies.values())
    curves = {curve["study"]: curve for curve in result["curves"]}
    points = [Point.from_dict(trial.user_attrs["point"]) for trial in studies["search"].trials]
    assert curves["search"]["hypervolume"][-1] == pytest.approx(
        ParetoFront.of(points, OBJECTIVES).hypervolume(result["reference"])
    )
    assert curves["search"]["hypervolume"] == sorted(curves["search"]["hypervolume"])
    assert curves["search"]["seconds"][:2] == [0.0, 1.0] and curves["uniform"]["hypervolume"] == []


def test_importance_finds_the_deciding_parameter(studies: dict[str, optuna.Study]) -> None:
    result = importance(studies)
    assert result["accuracy"]["num_attention_heads.0"] > 0.9 and result["latency_ms"]["hidden_size"] > 0.9
    assert importance({"search": study_of("search", 3), "random": study_of("random", 2)}) == {}


def test_an_objective_that_is_the_same_in_all_trials_has_no_importance() -> None:
    flat = optuna.create_study(study_name="random", directions=["maximize", "minimize"])
    flat.set_metric_names(list(OBJECTIVES))
    for trial in study_of("random", 40).trials:
        values = [0.5, trial.values[1]]
        flat.add_trial(optuna.create_trial(params=trial.params, distributions=DISTRIBUTIONS, values=values))
    assert importance({"search": flat, "random": flat}).keys() == {"latency_ms"}


def test_predictions_are_paired_with_measurements(studies: dict[str, optuna.Study]) -> None:
    chosen = Point.from_dict(studies["search"].trials[0].user_attrs["point"])
    measured = Point(chosen.subnet, {"accuracy": 0.5, "latency_ms": 99.0}, measured=True)
    report = SimpleNamespace(model="linear", held_out={"linear": SimpleNamespace(mape_percent=1.5)})
    result = predicted_vs_measured(studies.values(), SimpleNamespace(report=report), [measured])  # type: ignore[arg-type]
    assert result["measured_ms"] == [99.0] and result["predicted_ms"] == [chosen.values["latency_ms"]]
    assert result["mape_percent"] == {"linear": 1.5} and result["key"] == [chosen.key]
