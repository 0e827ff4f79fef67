"""A search whose evaluations are stand-ins of a given length: only the search engine is timed or killed.

    python -m experiments.bench.stand_in FOLDER --evaluations 40 --seconds 0.1 --ray auto

Everything but the evaluation is real: space, costs, latency predictor, sampler, studies. Each evaluation writes its
key, process and time to ``FOLDER/evaluations.log`` when it begins and when it ends.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, cast

import numpy as np

from nas.recipe.schema import Recipe
from nas.runs.progress import quiet_libraries
from nas.studies.evaluator import Evaluator
from nas.studies.interrupt import graceful_interrupt
from nas.studies.racing import EarlyStopping, Outcome
from nas.studies.search_loop import EvaluationScheduler, build_queues, run_locally
from nas.studies.startup_trials import first_distinct
from nas.studies.study import driver_id, open_studies
from nas.supernets.supernet import Supernet
from nas.tasks.evaluation import EvaluationSet
from predictors import SubnetPredictor, Workload
from search_spaces import SearchSpace, SubnetConfig


@dataclass(frozen=True)
class StandIn:
    """Takes a while and returns a quality with falling returns and noise, the same for the same subnetwork.

    Attributes:
        log: Where each evaluation is noted.
        seconds: How long one takes.
        deadly: Key of a subnetwork whose evaluation kills its process.
        failing: Share of the evaluations that raise, at random.
    """

    log: Path
    seconds: float
    deadly: str | None = None
    failing: float = 0.0

    def __call__(self, subnet: SubnetConfig, early_stopping: EarlyStopping | None) -> Outcome:
        """The quality of a subnetwork."""
        self._write("begin", subnet)
        if subnet.key == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        if SystemRandom().random() < self.failing:
            self._write("raise", subnet)
            raise ArithmeticError("it failed at random")
        size = sum(h**0.5 + (w / 24) ** 0.5 for h, w in zip(*subnet_widths(subnet), strict=True))
        noise = int(hashlib.sha256(subnet.key.encode()).hexdigest()[:4], 16) / 65535
        self._write("end", subnet)
        return Outcome({"accuracy": (1 - np.exp(-size / 10) + 0.01 * noise, 0.01)}, examples=100)

    def _write(self, what: str, subnet: SubnetConfig) -> None:
        line = f"{what} {subnet.key} {os.getpid()} {time.time()}\n".encode()
        handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line)
        os.close(handle)


def subnet_widths(subnet: SubnetConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Heads and neurons of each layer."""
    return subnet.num_attention_heads, subnet.intermediate_size


def stand_in_recipe(evaluations: int, **search: object) -> Recipe:
    """A recipe of a tiny BERT."""
    task = {"type": "text-classification", "train": "none", "test": "none"}
    return Recipe.parse({"model": "none", "task": task, "space": {}, "search": {"evaluations": evaluations, **search}})


def stand_in_evaluator(recipe: Recipe, layers: int = 6) -> tuple[SearchSpace, Evaluator]:
    """A space over a tiny random BERT, and its exact and predicted costs."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=20, hidden_size=48, num_hidden_layers=layers, num_attention_heads=8, intermediate_size=192
    )
    supernet = Supernet(BertForSequenceClassification(config))
    space = SearchSpace(
        supernet.parent,
        num_hidden_layers=range(2, layers + 1),
        num_attention_heads=[1, 2, 4, 8],
        intermediate_size=[24, 48, 96, 192],
    )
    subnets = first_distinct(iter(space.sample(rng) for rng in [Random(0)] for _ in range(60)), 40)
    latency = [1.0 + sum(map(sum, subnet_widths(s))) / 50 for s in subnets]
    predictor = SubnetPredictor.fit(space, subnets, latency, Workload(), macs=latency)
    examples = EvaluationSet(cast(Any, None), (), ([[{}]] * 100,))
    return space, Evaluator(recipe, supernet, examples, {"latency_ms": predictor})


def stand_in_search(
    folder: Path,
    recipe: Recipe,
    seconds: float,
    cluster: str | None = None,
    *,
    baselines: bool = True,
    deadly: str | None = None,
    failing: float = 0.0,
) -> None:
    """Runs a search with its studies in a folder, in this process or on a Ray cluster."""
    space, evaluator = stand_in_evaluator(recipe)
    driver = None if recipe.search.storage is None else driver_id(folder)
    queues = build_queues(open_studies(folder / "study.log", recipe), recipe, space, evaluator, driver)
    scheduler = EvaluationScheduler(queues if baselines else queues[:1])
    evaluate = StandIn(folder / "evaluations.log", seconds, deadly, failing)
    with graceful_interrupt(scheduler.stop), scheduler.reporting():
        if cluster is None:
            run_locally(scheduler, evaluate)
        else:
            from nas.ray.search_driver import run_on_ray
            from nas.ray.search_worker import WorkerPayload

            run_on_ray(scheduler, WorkerPayload(load=LoadedEvaluator(evaluate), folder=folder), cluster, recipe.search)


@dataclass(frozen=True)
class LoadedEvaluator:
    """Loads nothing: the evaluating function is there already."""

    evaluate: StandIn

    def __call__(self, folder: Path) -> StandIn:
        """The evaluating function."""
        return self.evaluate


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.1)
    parser.add_argument("--sampler", default="SurrogateSampler")
    parser.add_argument("--storage", default=None)
    parser.add_argument("--ray", default=None)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--deadly", default=None, help="key of a subnetwork that kills its process")
    parser.add_argument("--failing", type=float, default=0.0, help="share of the evaluations that raise, at random")
    arguments = parser.parse_args()
    quiet_libraries()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    recipe = stand_in_recipe(
        arguments.evaluations, sampler=arguments.sampler, storage=arguments.storage, workers=arguments.workers
    )
    stand_in_search(
        arguments.folder,
        recipe,
        arguments.seconds,
        arguments.ray,
        deadly=arguments.deadly,
        failing=arguments.failing,
    )
