"""The driver's side of a search on Ray: Tune runs the evaluations, the study says which and keeps the results."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from nas.ray.cluster import capacity, connected
from nas.ray.search_worker import Package, Task, Worker
from nas.recipe.schema import Search
from nas.runs.progress import print_line
from nas.studies.racing import Outcome
from nas.studies.trial_queue import Ticket
from search_spaces import InputError

if TYPE_CHECKING:
    from nas.studies.search_loop import Dispatcher

RETRIES = 3
"""How often Tune makes an evaluation again that has lost its worker; it does so at once."""
ROUNDS = 3
"""How often such an evaluation is handed out in all: a lost node may take seconds to be noticed."""
TASK_S = 0.25
"""Evaluations go into one task until it takes about this long: many times what Tune itself takes for a task."""
SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Tune keeps no state of its own: no snapshots, no result files, no handler for Ctrl-C."""


def run_on_ray(dispatcher: Dispatcher, package: Package, address: str, search: Search) -> None:
    """Makes every evaluation on the workers of a Ray cluster.

    Args:
        dispatcher: Says what to evaluate and is told what came of it.
        package: What a worker needs.
        address: ``auto``, ``local`` or ``host:port``.
        search: The recipe's section: workers, and what each takes.

    Raises:
        InputError: If the cluster cannot be reached, a worker is of another version, or the dispatcher gives up.
    """
    with connected(address), _environment(), tempfile.TemporaryDirectory() as folder:
        resources = {"cpu": search.cpus_per_worker, "gpu": search.gpus_per_worker}
        workers = search.workers or capacity(resources)
        if not capacity(resources):
            print_line(f"ray        no node offers {resources} yet: waiting for one to join")
        searcher = StudySearcher(dispatcher, workers := max(1, workers))
        trainable = tune.with_parameters(Worker, package=package.served())
        tune.Tuner(
            tune.with_resources(trainable, {name: amount for name, amount in resources.items() if amount}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=Patient(),
                num_samples=-1,
                max_concurrent_trials=workers,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                storage_path=folder, verbose=0, failure_config=tune.FailureConfig(max_failures=RETRIES)
            ),
        ).fit()
    if searcher.error is not None:
        raise searcher.error


class StudySearcher(Searcher):
    """Hands Tune what the study asks for, and tells the study every result at once.

    Args:
        dispatcher: The studies.
        workers: How many tasks run at once.
    """

    def __init__(self, dispatcher: Dispatcher, workers: int) -> None:
        super().__init__()
        self.dispatcher = dispatcher
        self.workers = workers
        self.error: BaseException | None = None
        self._tasks: dict[str, list[Ticket]] = {}
        self._seconds: deque[float] = deque(maxlen=20)
        self._lost: Counter[str] = Counter()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next task; None to be asked again later."""
        tickets: list[Ticket] = []
        try:
            while len(tickets) < self._batch and self.error is None and (ticket := self.dispatcher.ask()):
                tickets.append(ticket)
        except BaseException as error:
            self._stop(error)
        if self.error is not None and not self._tasks:
            return Searcher.FINISHED
        if not tickets:
            return Searcher.FINISHED if self.dispatcher.finished else None
        self._tasks[trial_id] = tickets
        return {"task": Task(tuple((ticket.subnet, ticket.race) for ticket in tickets))}

    @property
    def _batch(self) -> int:
        """Evaluations in the next task. A single worker gets one: it must not be asked before the last was told."""
        if self.workers == 1 or not self._seconds:
            return 1
        return max(1, min(64, round(TASK_S / max(statistics.median(self._seconds), 1e-4))))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells what came of a task."""
        tickets = self._tasks.pop(trial_id)
        if self.error is not None:
            return
        try:
            if result is not None and result.get("refusal"):
                raise InputError(
                    f"every worker must have the driver's versions, but {result['refusal']}; install them."
                )
            if error or result is None:
                self._give_back(tickets)
                return
            self._seconds.append(result["seconds"] / len(tickets))
            for ticket, outcome in zip(tickets, result["outcomes"], strict=True):
                self.dispatcher.tell(ticket, outcome)
        except BaseException as failed:
            self._stop(failed)

    def _give_back(self, tickets: list[Ticket]) -> None:
        """Hands evaluations out again that have lost their worker, or keeps them as failed after so many times."""
        for ticket in tickets:
            self._lost[ticket.subnet.key] += 1
            if self._lost[ticket.subnet.key] < ROUNDS:
                ticket.docket.take_back(ticket)
            else:
                times = ROUNDS * (RETRIES + 1)
                lost = f"its worker was lost, or could not load the supernet, {times} times; see Ray's own log"
                self.dispatcher.tell(ticket, Outcome(failure=lost))

    def _stop(self, error: BaseException) -> None:
        """Keeps an error for when Tune has ended, since an error inside Tune is reported as Tune's own."""
        self.error = error
        self.dispatcher.stop()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune would store its searcher, but the study is the only truth."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""


class Patient(FIFOScheduler):
    """Leaves a task whose worker is still starting to that worker.

    Tune's own scheduler gives it to the first worker that is free and stops the one that starts, so that with tasks
    shorter than a worker's start there is never more than one.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None: Tune then fills free workers with new tasks first, and with waiting ones where there are no new."""
        return None


@contextmanager
def _environment() -> Iterator[None]:
    """Tune's settings for the duration."""
    before = {name: os.environ.get(name) for name in SETTINGS}
    os.environ.update(SETTINGS)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
