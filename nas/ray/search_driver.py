"""The driver of a search on Ray: Tune runs the evaluations, the studies choose them and keep the results."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from nas.ray.cluster import max_workers, ray_connection
from nas.ray.search_worker import EvaluationBatch, Worker, WorkerPayload
from nas.recipe.schema import Search
from nas.runs.progress import print_line
from nas.studies.failures import Failure
from nas.studies.racing import Outcome
from nas.studies.trial_queue import PendingEvaluation
from search_spaces import InputError

if TYPE_CHECKING:
    from nas.studies.search_loop import EvaluationScheduler

MAX_RETRIES = 3
"""How often Tune repeats a batch whose worker was lost; it does so at once."""
MAX_HANDOUTS = 3
"""How often such an evaluation is handed out in all, as it may take seconds until the loss of a node is noticed. After
the first loss it is in a batch of its own: one that kills its worker then takes no other with it."""
TARGET_BATCH_S = 0.25
"""Evaluations are put into one batch until it takes about this long: many times the overhead of Tune for a batch."""
TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Environment in which Tune keeps no state: no snapshots, no result files, no handler for Ctrl-C."""


def run_on_ray(scheduler: EvaluationScheduler, payload: WorkerPayload, address: str, search: Search) -> None:
    """Makes all evaluations of a scheduler on the workers of a Ray cluster.

    Args:
        scheduler: Hands out evaluations and records their outcomes.
        payload: What a worker needs to evaluate.
        address: ``auto``, ``local`` or ``host:port``.
        search: The recipe's section: number of workers, and the resources of each.

    Raises:
        InputError: If the cluster cannot be reached, a worker has other versions, or the scheduler raises it.
    """
    resources = {"cpu": search.cpus_per_worker, "gpu": search.gpus_per_worker}
    with (
        patch.dict(os.environ, TUNE_SETTINGS),
        ray_connection(address),
        tempfile.TemporaryDirectory() as folder,
    ):
        room = max_workers(resources)
        if not room:
            print_line(f"ray        no node offers {resources} yet: waiting for one to join")
        workers = max(1, search.workers or room)
        searcher = StudySearcher(scheduler, workers)
        trainable = tune.with_parameters(Worker, payload=payload.with_file_server())
        tune.Tuner(
            tune.with_resources(trainable, {name: amount for name, amount in resources.items() if amount}),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=KeepStartingWorkers(),
                num_samples=-1,
                max_concurrent_trials=workers,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=tune.RunConfig(
                storage_path=folder, verbose=0, failure_config=tune.FailureConfig(max_failures=MAX_RETRIES)
            ),
        ).fit()
    if searcher.error is not None:
        raise searcher.error


class StudySearcher(Searcher):
    """A searcher of Tune whose suggestions are batches of evaluations of a scheduler.

    Args:
        scheduler: Hands out evaluations and records their outcomes.
        workers: How many batches run at once.

    Attributes:
        error: The error that stopped the search; Tune would report it as its own.
    """

    def __init__(self, scheduler: EvaluationScheduler, workers: int) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.workers = workers
        self.error: BaseException | None = None
        self._batches: dict[str, list[PendingEvaluation]] = {}
        self._seconds: deque[float] = deque(maxlen=20)
        self._lost_counts: Counter[str] = Counter()
        self._put_back: list[PendingEvaluation] = []

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next batch; None if there is none before the outcome of one in flight is known."""
        batch: list[PendingEvaluation] = []
        try:
            while len(batch) < self._batch_size and self.error is None and (evaluation := self._next()):
                if self._lost_counts[evaluation.subnet.key] and batch:
                    self._put_back.append(evaluation)
                    break
                batch.append(evaluation)
                if self._lost_counts[evaluation.subnet.key]:
                    break
        except BaseException as error:
            self._stop(error)
        if self.error is not None and not self._batches:
            return Searcher.FINISHED
        if not batch:
            return Searcher.FINISHED if self.scheduler.is_finished else None
        self._batches[trial_id] = batch
        return {"batch": EvaluationBatch(tuple((each.subnet, each.early_stopping) for each in batch))}

    def _next(self) -> PendingEvaluation | None:
        """An evaluation that was not in the last batch because it must be alone, or the scheduler's next."""
        return self._put_back.pop() if self._put_back else self.scheduler.ask()

    @property
    def _batch_size(self) -> int:
        """Evaluations in the next batch; one for a single worker, as the sampler must see each outcome first."""
        if self.workers == 1 or not self._seconds:
            return 1
        return max(1, min(64, round(TARGET_BATCH_S / max(statistics.median(self._seconds), 1e-4))))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Records the outcomes of a batch."""
        batch = self._batches.pop(trial_id)
        if self.error is not None:
            return
        try:
            if result is not None and result.get("version_error"):
                raise InputError(
                    f"every worker must have the driver's versions, but {result['version_error']}; install them."
                )
            if error or result is None:
                self._requeue(batch)
                return
            self._seconds.append(result["seconds"] / len(batch))
            for evaluation, outcome in zip(batch, result["outcomes"], strict=True):
                self.scheduler.tell(evaluation, outcome)
        except BaseException as caught:
            self._stop(caught)

    def _requeue(self, batch: list[PendingEvaluation]) -> None:
        """Hands out again the evaluations of a lost worker; those that were lost too often have failed."""
        for evaluation in batch:
            self._lost_counts[evaluation.subnet.key] += 1
            if self._lost_counts[evaluation.subnet.key] < MAX_HANDOUTS:
                evaluation.queue.requeue(evaluation)
            else:
                times = MAX_HANDOUTS * (MAX_RETRIES + 1)
                details = f"its worker was lost, or could not load the supernet, {times} times; see Ray's own log"
                self.scheduler.tell(evaluation, Outcome(failure=Failure("worker", details)))

    def _stop(self, error: BaseException) -> None:
        """Keeps an error until Tune has ended."""
        self.error = error
        self.scheduler.stop()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune stores its searcher, but all state is in the studies."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: all state is in the studies."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: all state is in the studies."""


class KeepStartingWorkers(FIFOScheduler):
    """A scheduler of Tune that leaves a batch to the worker that is starting for it.

    Tune's own scheduler gives the batch to the first free worker and stops the one that is starting. With batches
    shorter than the start of a worker there would never be more than one.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None: Tune then gives free workers new batches first, and waiting ones if there are no new ones."""
        return None
