"""Memory, energy and throughput as objectives: measured, predicted in the search, refused without a counter."""

from __future__ import annotations

import time
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from toys import bert

from nas.pipeline import profile
from nas.recipe.objectives import DIRECTIONS, format_value, reduced_costs
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.check import _check_costs, check_recipe
from nas.stages.footprints import measure_footprints
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts, SubnetPredictor, Workload
from predictors.costs.weighted_costs import WeightedCosts
from predictors.latency.throughput import Throughput, per_second
from predictors.measurement import energy
from predictors.measurement.first_run import FirstRun
from search_spaces import InputError, SearchSpace, SubnetConfig


def counts_and_subnets(n: int = 40) -> tuple[AnalyticCosts, SearchSpace, list[SubnetConfig]]:
    supernet = Supernet(bert())
    space = SearchSpace(supernet.parent, num_hidden_layers=[1, 2, 3, 4], intermediate_size=[24, 48, 96])
    subnets = {subnet.key: subnet for subnet in (space.sample(rng) for rng in [Random(0)] for _ in range(20 * n))}
    return AnalyticCosts.from_model(supernet.model, supernet.layout), space, list(subnets.values())[:n]


def test_measured_costs_are_fitted_with_weights_of_at_least_zero() -> None:
    counts, _, subnets = counts_and_subnets()
    costs = counts.count(("size_mb", "macs"), subnets, Workload())
    truth = 30 + 2 * costs["size_mb"]
    noisy = truth * (1 + 0.01 * np.random.default_rng(0).standard_normal(len(truth)))
    model = WeightedCosts.fit(counts, Workload(), subnets[:12], noisy[:12].tolist())
    assert (model.weights >= 0).all() and 0 < model.residual_bound < 0.05
    np.testing.assert_allclose(model.predict(subnets[12:]), truth[12:], rtol=0.03)
    falling = WeightedCosts.fit(counts, Workload(), subnets, (1 / costs["size_mb"]).tolist())
    assert (falling.weights >= 0).all(), "a larger subnetwork was predicted to need less"
    with pytest.raises(InputError, match="at least 8 measured subnetworks, but got 3"):
        WeightedCosts.fit(counts, Workload(), subnets[:3], [1.0, 2.0, 3.0])


def test_throughput_follows_from_the_latency_of_a_batch() -> None:
    _, space, subnets = counts_and_subnets()
    workload = Workload(batch_size=4)
    latency = SubnetPredictor.fit(
        space, subnets, [1.0 + s.num_hidden_layers for s in subnets], workload, macs=[1] * 40
    )
    throughput = Throughput("samples_per_second", latency)
    np.testing.assert_allclose(throughput.predict(subnets), 4000 / latency.predict(subnets))
    assert throughput.residual_bound == latency.residual_bound and DIRECTIONS["samples_per_second"] == "maximize"
    assert (
        format_value("samples_per_second@server", 1234.5) == "1234" and format_value("energy_mj", 0.01234) == "0.0123"
    )
    assert reduced_costs(["memory_mb@phone", "accuracy"]) == {"memory_mb", "size_mb", "accuracy"}


@pytest.mark.parametrize(("phase", "tokens"), [("encode", 50), ("prefill", 50), ("decode", 1)])
def test_tokens_per_second_are_those_of_a_call(phase: Any, tokens: int) -> None:
    workload = Workload(batch_size=4, sequence_length=50, phase=phase)
    assert per_second("tokens_per_second", workload, np.array([2.0])) == [4 * tokens / 2e-3]
    assert per_second("samples_per_second", workload, np.array([2.0])) == [4 / 2e-3]


def test_images_have_no_tokens_per_second() -> None:
    task = SimpleNamespace(type="image-classification")
    recipe: Any = SimpleNamespace(task=task, value_names=["tokens_per_second@phone"])
    with pytest.raises(InputError, match="needs a model that reads tokens, but `image-classification` reads images"):
        _check_costs(SimpleNamespace(recipe=recipe))  # type: ignore[arg-type]


def test_without_a_counter_energy_is_refused(text_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.load(text_recipe, ["constraints={energy_mj: <= 5, memory_mb: <= 500}"])
    monkeypatch.setattr(energy, "POWERCAP", Path("nowhere"))
    monkeypatch.setattr("nas.stages.check.counter", lambda workload: energy.counter(workload, Path("nowhere")))
    with pytest.raises(InputError, match=r"`energy_mj` must be measured on this device, but no counter.*leave it out"):
        check_recipe(recipe)
    recipe = Recipe.load(text_recipe, ["constraints={memory_mb: <= 500}"])
    with pytest.raises(InputError, match=r"`memory_mb` must be measured .* another device measures latencies only"):
        check_recipe(recipe, remote=[""])


def test_a_throughput_is_no_cost_to_minimize(text_recipe: Path) -> None:
    objectives = "objectives={accuracy: maximize, samples_per_second: maximize}"
    assert "samples_per_second" in Recipe.load(text_recipe, [objectives]).objectives
    with pytest.raises(InputError, match="needs a cost to minimize"):
        Recipe.load(text_recipe, [objectives, "search.sampler=BlockSearch"])


def test_only_the_first_pass_counts_as_the_first() -> None:
    calls = []
    first = FirstRun(lambda: lambda: calls.append(time.sleep(0.02)), lambda: None)
    run = first.load()
    run()
    times = (first.load_ms, first.first_inference_ms)
    run()
    assert (first.load_ms, first.first_inference_ms) == times and len(calls) == 2
    assert times[0] is not None and times[1] is not None and times[1] >= 20


@pytest.mark.slow
def test_memory_is_measured_once_in_a_process_of_its_own(text_recipe: Path, tmp_path: Path) -> None:
    data = yaml.safe_load(text_recipe.read_text())
    text_recipe.write_text(yaml.safe_dump({**data, "constraints": {"memory_mb": "<= 500", "load_ms": "<= 60000"}}))
    quick = ["profile.samples=10", "parent.epochs=0.1", "supernet.epochs=0.1"]
    recipe = Recipe.load(text_recipe, quick)
    profile(recipe, tmp_path / "run")
    target, context = Run(tmp_path / "run").target, TaskContext(recipe)
    measured = target.footprints()
    assert len(measured) == 10 and all(values["memory_mb"] > 0 for values in measured.values()) and target.is_profiled
    supernet = Supernet(context.load_model(target.run.parent))
    measure_footprints(target, context, supernet, target.footprint_subnets())
    assert target.footprints() == measured, "what was measured was measured again"
    counts = AnalyticCosts.from_model(supernet.model, supernet.layout)
    assert all(min(each["load_ms"], each["first_inference_ms"]) > 0 for each in measured.values())
    assert {"latency_ms", "memory_mb", "load_ms"} == target.load_predictors(counts).keys()
