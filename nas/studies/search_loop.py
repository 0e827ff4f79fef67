"""The search: an Optuna study over the space and its two baselines beside it, evaluated here or by workers."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import optuna

from nas.fronts.point import Point
from nas.recipe.objectives import COSTS
from nas.recipe.schema import Recipe
from nas.runs.files import digest
from nas.runs.progress import progress
from nas.runs.run import Run
from nas.studies.block_search import block_solutions, replacements
from nas.studies.concurrent_drivers import Rivals
from nas.studies.evaluation_cache import Book
from nas.studies.evaluator import Evaluator
from nas.studies.racing import Evaluate, Outcome, Scorer, attempt
from nas.studies.sampler import sampler_for
from nas.studies.startup_trials import corners, distinct, feasible_samples, plan
from nas.studies.stopping import finishing_on_interrupt
from nas.studies.study import claim, driver_id, open_studies
from nas.studies.trial_queue import Docket, Phase, Ticket
from search_spaces import SearchSpace, SubnetConfig

POLL_S = 0.2
"""How often the storage is asked whether another driver has finished what this one waits for."""


def run_studies(
    run: Run, recipe: Recipe, space: SearchSpace, evaluator: Evaluator, execute: Callable[[Dispatcher, Scorer], None]
) -> None:
    """Runs what is missing of the search and of both baselines.

    Args:
        run: Holds the studies, the supernet and the latency predictor.
        recipe: What to search for, and how long.
        space: All subnetworks.
        evaluator: Their figures.
        execute: Makes the evaluations that a dispatcher hands out: `run_here`, or one of a cluster.

    Raises:
        InputError: If no subnetwork of the space meets the constraints, the studies belong to something else, or
            evaluations or the cluster fail.
        KeyboardInterrupt: After Ctrl-C, once what was in flight is finished.
    """
    studies = open_studies(run.study, recipe)
    made_for = identity(recipe, space, (run.supernet / "model.safetensors", run.predictor / "predictor.json"))
    for study in studies.values():
        claim(study, made_for)
    driver = None if recipe.search.storage is None else driver_id(run.folder)
    dispatcher = Dispatcher(dockets_of(studies, recipe, space, evaluator, driver))
    with finishing_on_interrupt(dispatcher.stop), dispatcher.reporting():
        execute(dispatcher, evaluator.scorer)


def identity(recipe: Recipe, space: SearchSpace, files: Sequence[Path]) -> dict[str, Any]:
    """What the figures in a study depend on."""
    described = {name: str(distribution) for name, distribution in space.parameters.distributions().items()}
    text = json.dumps([described, space.layer_order], sort_keys=True)
    found: dict[str, Any] = {
        "objectives": list(recipe.objectives),
        "constraints": dict(recipe.constraints),
        "seed": recipe.seed,
        "space": hashlib.sha256(text.encode()).hexdigest()[:10],
    }
    return found | {file.parent.name: digest(file) for file in files if file.exists()}


def dockets_of(
    studies: Mapping[str, optuna.Study],
    recipe: Recipe,
    space: SearchSpace,
    evaluator: Evaluator,
    driver: str | None = None,
) -> list[Docket]:
    """The search and its baselines; random search gets as many evaluations as the search has had."""
    budget = min(recipe.search.evaluations, space.size)
    shared = (space, evaluator, Book())

    def random(_: Mapping[str, Point]) -> list[SubnetConfig]:
        return distinct(feasible_samples(space, evaluator, Random(f"{recipe.seed}/random")), search.claimed)

    def uniform(_: Mapping[str, Point]) -> list[SubnetConfig]:
        return space.uniform_scalings()

    rivals = None if driver is None else Rivals(driver)
    sampler = sampler_for(recipe, space, evaluator)
    phases = phases_of(recipe, space, evaluator, budget)
    search = Docket(studies["search"], *shared, phases, sampler, lambda: budget, rivals)
    scalings = len(uniform({}))
    return [
        search,
        Docket(studies["uniform"], *shared, [uniform], None, lambda: scalings, rivals),
        Docket(studies["random"], *shared, [random], None, lambda: search.claimed, rivals),
    ]


def phases_of(recipe: Recipe, space: SearchSpace, evaluator: Evaluator, budget: int) -> list[Phase]:
    """What a search evaluates before its sampler: its plan, or the blocks of its layers and what they add up to."""
    if recipe.search.sampler != "BlockSearch":
        return [lambda known: plan(space, evaluator, recipe, budget)]
    sign = 1.0 if recipe.objectives[recipe.primary_metric] == "minimize" else -1.0

    def blocks(known: Mapping[str, Point]) -> list[SubnetConfig]:
        feasible = [subnet for subnet in corners(space) if evaluator.feasible(subnet)]
        return distinct(iter([*feasible, *replacements(space)]), budget)

    def solutions(known: Mapping[str, Point]) -> list[SubnetConfig]:
        losses = {key: sign * point.values[recipe.primary_metric] for key, point in known.items()}
        costs = [name for name in recipe.objectives if name in COSTS]
        bounds = {name: bound for name, bound in recipe.bounds.items() if name in COSTS}
        left = max(1, (budget - len(blocks(known))) // 2)
        return block_solutions(space, losses, evaluator.cost, objectives=costs, bounds=bounds, limit=left)

    return [blocks, solutions]


class Dispatcher:
    """Hands out the evaluations of several dockets, one docket after the other, and takes back what came of them."""

    def __init__(self, dockets: Sequence[Docket]) -> None:
        self.dockets = list(dockets)
        self.stopping = False
        self._bars = ExitStack()
        self._shown: Docket | None = None

    def stop(self) -> None:
        """Hands out nothing more; what is in flight may still be told."""
        self.stopping = True

    def ask(self) -> Ticket | None:
        """The next evaluation to make; None if there is none before one in flight, here or elsewhere, is told."""
        for docket in [] if self.stopping else self.dockets:
            self._show()
            ticket = docket.ask()
            if ticket is not None or not docket.closed:
                return ticket
        return None

    def tell(self, ticket: Ticket, outcome: Outcome) -> None:
        """Records what came of an evaluation."""
        ticket.docket.tell(ticket, outcome)
        self._show()

    @property
    def finished(self) -> bool:
        """Whether nothing is in flight and nothing more will be handed out."""
        if any(docket.busy for docket in self.dockets):
            return False
        return self.stopping or all(docket.closed and not docket.parked for docket in self.dockets)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Shows the bar of the docket that is at work."""
        with self._bars:
            yield
            self._show()

    def _show(self) -> None:
        at_work = next((d for d in self.dockets if d.running or not d.closed), self.dockets[-1])
        first = 0 if self._shown is None else self.dockets.index(self._shown)
        for docket in self.dockets[first : self.dockets.index(at_work) + 1]:
            if docket is not self._shown:
                self._bars.close()
                self._report = self._bars.enter_context(progress(docket.name))
            self._report(len(docket.done), max(docket.budget(), 1), docket.note())
        self._shown = at_work


def run_here(dispatcher: Dispatcher, evaluate: Evaluate) -> None:
    """Makes every evaluation in this process, one at a time, and waits for those that another driver is making."""
    while not dispatcher.finished:
        ticket = dispatcher.ask()
        if ticket is not None:
            dispatcher.tell(ticket, attempt(evaluate, ticket.subnet, ticket.race))
        elif not dispatcher.finished:
            time.sleep(POLL_S)
