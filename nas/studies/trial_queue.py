"""Queue of trials of one study; all state is in the study, so a search resumes from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.fronts.point import Point
from nas.samplers.trial_history import STANDARD_ERRORS
from nas.studies.concurrent_drivers import ConcurrentDrivers
from nas.studies.evaluation_cache import EvaluationCache
from nas.studies.evaluator import Evaluator
from nas.studies.failures import Failure, count_causes
from nas.studies.racing import EarlyStopping, Outcome
from nas.studies.sampler import SamplerFactory
from nas.studies.search_progress import SearchProgress
from nas.studies.stopping import Stopwatch
from nas.studies.storage import batched_writes, trial_id
from nas.studies.study import point_from_trial, search_seconds, standard_errors, study_kind
from search_spaces import InputError, SearchSpace, SubnetConfig

MAX_FAILURES = 5
"""Failed evaluations after which a search stops if none has ever succeeded."""

StartupPhase = Callable[[Mapping[str, Point]], Sequence[SubnetConfig]]
"""Key -> point of what is evaluated so far -> subnetworks to evaluate next; called once all before it are finished."""


class TrialQueue:
    """Asks a study for trials and records the outcomes of their evaluations.

    First come the trials that an earlier command left running, under their own numbers, then the enqueued ones, among
    them what failed in earlier commands, then those that the sampler proposes.

    Args:
        study: Holds all state.
        space: Turns the parameters of a trial into a subnetwork.
        evaluator: Values of subnetworks.
        cache: Results that the studies of the run share.
        phases: Subnetworks to evaluate before the sampler is used, phase after phase.
        sampler: Proposes the trials after the phases; None: there are none.
        budget: Returns how many distinct subnetworks to evaluate.
        drivers: The other drivers, where several share the study.
        limit_s: Returns for how many seconds the study may be worked on.

    Attributes:
        running: Number -> every trial of this driver that is not finished.
        waiting_for_other_drivers: Those of them whose subnetwork another driver is evaluating.
        evaluated_keys: Keys of the subnetworks that the study has evaluated.
        failures: Key -> why its evaluation failed in this command.
        progress: Front and hypervolume of the study.
        seconds: How long the study had been worked on when its last trial was finished.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        evaluator: Evaluator,
        cache: EvaluationCache,
        phases: Sequence[StartupPhase],
        sampler: SamplerFactory | None,
        budget: Callable[[], int],
        drivers: ConcurrentDrivers | None = None,
        limit_s: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.study, self.space, self.evaluator, self.cache = study, space, evaluator, cache
        self.name = study_kind(study)
        self.sampler, self.budget, self.drivers, self.limit_s = sampler, budget, drivers, limit_s
        scalings = len({subnet.key for subnet in space.uniform_scalings()})
        self.progress = SearchProgress(evaluator.recipe, scalings, cache.reference)
        self.running: dict[int, PendingEvaluation] = {}
        self.waiting_for_other_drivers: dict[int, PendingEvaluation] = {}
        self.evaluated_keys: set[str] = set()
        self.failures: dict[str, Failure] = {}
        self._phases = list(phases)
        self._phases_begun = self._sampler_exhausted = False
        self._retry: list[PendingEvaluation] = []
        if drivers is not None:
            drivers.queues.append(self)
        self._resumed = self._resume()
        self.seconds = search_seconds(study)
        self._stopwatch = Stopwatch(self.seconds)

    # -- ask ------------------------------------------------------------------------------------------------------

    def ask(self) -> PendingEvaluation | None:
        """The next evaluation to make; None if there is none now. Trials of known results are finished at once."""
        self._stopwatch.start()
        if self.drivers is not None:
            self.drivers.refresh()
            self._retry += self.waiting_for_other_drivers.values()
            self.waiting_for_other_drivers = {}
        retry, self._retry = self._retry, []
        for index, evaluation in enumerate(retry):
            if not self._resolve(evaluation):
                self._retry += retry[index + 1 :]
                return evaluation
        while not self.is_done:
            with batched_writes(self.study, durable=False):
                trial = self._next_trial()
                if trial is None:
                    return None
                subnet = self.space.parameters.suggest(trial)
            evaluation = PendingEvaluation(self, trial, subnet, self._early_stopping(trial, subnet))
            self.running[trial.number] = evaluation
            if not self._resolve(evaluation):
                return evaluation
        return None

    @property
    def has_pending(self) -> bool:
        """Whether this driver is evaluating a trial of the study."""
        return len(self.running) > len(self.waiting_for_other_drivers)

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be asked, unless an evaluation in flight fails."""
        if self._retry or self._resumed:
            return False
        return self._budget_spent or (self.sampler is None and not self._phases and not self._n_enqueued)

    @property
    def n_evaluations(self) -> int:
        """Distinct subnetworks evaluated or in flight."""
        in_flight = {evaluation.subnet.key for evaluation in self.running.values()}
        others = self.drivers.running(self.study) if self.drivers is not None else []
        return len(self.evaluated_keys) + len(in_flight - self.evaluated_keys) + len(others)

    @property
    def _budget_spent(self) -> bool:
        patience, budget = self.evaluator.recipe.search.patience, self.budget()
        max_trials = 2 * budget + self._n_failed_before + len(self.failures)
        spent = self._sampler_exhausted or self.n_evaluations >= budget or len(self.failures) >= budget
        spent = spent or len(self._seen_trials) >= max_trials
        has_stalled = self.sampler is not None and patience is not None and self.progress.has_stalled(patience)
        return spent or has_stalled or self._stopwatch.seconds >= self.limit_s()

    def _next_trial(self) -> optuna.Trial | None:
        """A resumed, an enqueued or a new trial; None while a phase waits for the one before it."""
        if self._resumed:
            trial = self._resumed.pop(0)
            self._set_sampler(trial.number)
            return optuna.Trial(self.study, trial_id(trial))
        while self._phases and not self._n_enqueued:
            if self._phases_begun and self.running:
                return None
            self._phases_begun = True
            self._enqueue(self._phases.pop(0)(self.cache.complete))
        if self.sampler is None and not self._n_enqueued:
            return None
        self._set_sampler(len(self.study.get_trials(deepcopy=False)))
        new = self.study.ask()
        if self.drivers is not None:
            new.set_user_attr("driver", self.drivers.driver)
        return new

    def _set_sampler(self, number: int) -> None:
        if self.sampler is not None:
            self.study.sampler = self.sampler(number)

    def _enqueue(self, subnets: Sequence[SubnetConfig]) -> None:
        """Adds the subnetworks that no trial of the study was planned for, as waiting trials."""
        trials = self.study.get_trials(deepcopy=False)
        parameters = self.space.parameters
        planned = {parameters.to_subnet(t.params).key for t in trials if t.user_attrs.get("planned")}
        for subnet in subnets:
            if subnet.key not in planned:
                self._add_waiting(parameters.from_subnet(subnet), {"planned": True})

    def _add_waiting(self, params: Mapping[str, Any], attributes: dict[str, Any]) -> None:
        self.study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=dict(params),
                distributions=self.space.parameters.distributions(),
                user_attrs=attributes,
            )
        )

    def _early_stopping(self, trial: optuna.Trial, subnet: SubnetConfig) -> EarlyStopping | None:
        """The stopping rule of a trial; None for the planned trials of a search, which are evaluated in full."""
        planned = self.sampler is not None and trial.user_attrs.get("planned")
        return None if planned else self.evaluator.early_stopping(subnet, self.progress.front)

    def _resolve(self, evaluation: PendingEvaluation) -> bool:
        """Whether an evaluation need not be made here and now."""
        return self._resolve_from_cache(evaluation) or not self._claim(evaluation)

    def _resolve_from_cache(self, evaluation: PendingEvaluation) -> bool:
        """Whether the subnetwork is evaluated, or in flight for another trial; records the result if there is one."""
        key, cache, rule = evaluation.subnet.key, self.cache, evaluation.early_stopping
        if key in cache.in_flight:
            cache.in_flight[key].append(evaluation)
        elif key in cache.complete:
            self._record(evaluation, cache.complete[key], None)
        elif key in cache.failed:
            self.fail(evaluation, cache.failed[key])
        elif key in cache.truncated and rule is not None and self._cannot_reach_front(rule, *cache.truncated[key]):
            self._record(evaluation, *cache.truncated[key])
        else:
            return False
        return True

    def _claim(self, evaluation: PendingEvaluation) -> bool:
        """Claims an evaluation, unless another driver is making it or has just made it."""
        if self.drivers is not None:
            is_claimed = self.drivers.claim(evaluation.trial, evaluation.subnet.key)
            self.drivers.refresh()
            if self._resolve_from_cache(evaluation):
                return False
            if not is_claimed:
                self.waiting_for_other_drivers[evaluation.trial.number] = evaluation
                return False
        self.cache.in_flight[evaluation.subnet.key] = [evaluation]
        return True

    def _cannot_reach_front(self, rule: EarlyStopping, point: Point, examples: int) -> bool:
        scores = {name: (point.values[name], point.errors[name]) for name in self.evaluator.recipe.metric_names}
        return rule.cannot_reach_front(scores, examples / len(self.evaluator.examples))

    # -- tell -----------------------------------------------------------------------------------------------------

    def tell(self, evaluation: PendingEvaluation, outcome: Outcome) -> None:
        """Records an outcome in every trial that waits for the evaluation.

        Raises:
            InputError: If the first evaluations have all failed, or none of many is feasible.
        """
        waiting = self.cache.in_flight.pop(evaluation.subnet.key)
        if outcome.failure is not None:
            self._tell_failure(waiting, outcome.failure)
            return
        point = self.evaluator.point(evaluation.subnet, outcome)
        examples = None if outcome.is_complete else outcome.examples
        for each in waiting:
            each.queue.settle(each, point, examples)
        if self.sampler is not None:
            self.progress.check_feasibility()

    def _tell_failure(self, waiting: Sequence[PendingEvaluation], failure: Failure) -> None:
        """Tries a subnetwork once more if its failure is transient, else finishes its trials as failed."""
        subnet, cache = waiting[0].subnet, self.cache
        if failure.is_transient and subnet.key not in cache.tried_again:
            cache.tried_again.add(subnet.key)
            for each in waiting:
                each.queue._retry.append(each)
            return
        cache.failed[subnet.key] = failure
        for each in waiting:
            each.queue.fail(each, failure)
        if not cache.has_succeeded and len(cache.failed) >= MAX_FAILURES:
            self._raise_all_failed(subnet, failure)

    def requeue(self, evaluation: PendingEvaluation) -> None:
        """Hands out again an evaluation whose worker was lost."""
        for waiting in self.cache.in_flight.pop(evaluation.subnet.key):
            waiting.queue._retry.append(waiting)

    def settle(self, evaluation: PendingEvaluation, point: Point, examples: int | None) -> None:
        """Finishes a trial with the values of its subnetwork, or requeues it.

        Args:
            evaluation: One that waits for these values.
            point: The values.
            examples: How many examples they are of, if the evaluation stopped early; None: of all. A trial is
                requeued if so few examples do not exclude the subnetwork from the front of this study.
        """
        rule = evaluation.early_stopping
        if examples is not None and (rule is None or not self._cannot_reach_front(rule, point, examples)):
            self._retry.append(evaluation)
        else:
            self._record(evaluation, point, examples)

    def _record(self, evaluation: PendingEvaluation, point: Point, examples: int | None) -> None:
        """Finishes a trial with the values of its subnetwork."""
        trial, objectives = evaluation.trial, self.evaluator.recipe.objectives
        self.seconds = self._stopwatch.seconds
        attributes = {"key": point.key, "point": point.to_dict(), "search_s": self.seconds}
        attributes[STANDARD_ERRORS] = standard_errors(point, self.evaluator.recipe)
        with batched_writes(self.study, durable=True):
            for name, violation in self.evaluator.violations(point.values).items():
                trial.set_constraint(name, violation)
            for name, value in (attributes | ({} if examples is None else {"examples": examples})).items():
                trial.set_user_attr(name, value)
            self._finish(evaluation, [point.values[name] for name in objectives])
        self._remember(trial.number, point, examples, bool(trial.user_attrs.get("planned")))

    def fail(self, evaluation: PendingEvaluation, failure: Failure) -> None:
        """Finishes a trial as failed, with the cause and the traceback."""
        self.failures[evaluation.subnet.key] = failure
        with batched_writes(self.study, durable=True):
            evaluation.trial.set_user_attr("key", evaluation.subnet.key)
            evaluation.trial.set_user_attr("cause", failure.cause)
            evaluation.trial.set_user_attr("failure", failure.details[-4000:])
            self._finish(evaluation, None)
        self._seen_trials.add(evaluation.trial.number)

    def _finish(self, evaluation: PendingEvaluation, values: list[float] | None) -> None:
        try:
            self.study.tell(evaluation.trial, values, TrialState.FAIL if values is None else None)
        except RuntimeError as error:  # BruteForceSampler calls Study.stop once it has proposed everything
            if "Study.stop" not in str(error):
                raise
            self._sampler_exhausted = True
        del self.running[evaluation.trial.number]

    def _raise_all_failed(self, subnet: SubnetConfig, failure: Failure) -> None:
        raise InputError(
            f"at least one evaluation must succeed, but {count_causes(self.cache.failed.values())}, the last "
            f"({subnet}) with `{failure.message}`; the tracebacks are in trials.csv. Fix the cause and type the "
            "same command again: it tries them again."
        )

    def summary(self) -> str:
        """The progress of the study in a few words, what failed, and when a time limit stops it."""
        parts, left_min = [self.progress.summary()], (self.limit_s() - self._stopwatch.seconds) / 60
        if self.failures:
            parts.append(count_causes(self.failures.values()))
        if math.isfinite(left_min):
            parts.append(f"stops in {max(0.0, left_min):.0f} min")
        return " · ".join(parts)

    # -- the study ------------------------------------------------------------------------------------------------

    def _resume(self) -> list[FrozenTrial]:
        """Reads the study; returns the trials that an earlier command of this driver left running."""
        driver = self.drivers and self.drivers.driver
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        failed = self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        self._seen_trials, self._n_failed_before = {trial.number for trial in failed}, len(failed)
        self.refresh()
        self._try_again([trial for trial in failed if "failure" in trial.user_attrs])
        return [trial for trial in trials if trial.user_attrs.get("driver") == driver]

    def _try_again(self, failed: Sequence[FrozenTrial]) -> None:
        """Enqueues the subnetworks that failed in earlier commands, except those that succeeded or wait already."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        known = {self.space.parameters.to_subnet(trial.params).key for trial in waiting} | self.evaluated_keys
        last = {trial.user_attrs["key"]: trial for trial in failed if trial.user_attrs["key"] not in known}
        for trial in last.values():
            attributes = {name: True for name in ("planned",) if trial.user_attrs.get(name)}
            self._add_waiting(trial.params, attributes)

    def refresh(self) -> None:
        """Reads the trials that were finished since the last call, by other drivers too."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.number not in self._seen_trials and trial.state.is_finished():
                if trial.state == TrialState.COMPLETE and "point" in trial.user_attrs:
                    point = point_from_trial(trial, self.name)
                    attributes = trial.user_attrs
                    self._remember(trial.number, point, attributes.get("examples"), bool(attributes.get("planned")))
                elif "failure" in trial.user_attrs:
                    failure = Failure(trial.user_attrs.get("cause", "error"), trial.user_attrs["failure"])
                    self.cache.failed.setdefault(trial.user_attrs["key"], failure)
                self._seen_trials.add(trial.number)

    def _remember(self, number: int, point: Point, examples: int | None, is_planned: bool) -> None:
        self._seen_trials.add(number)
        if examples is None:
            self.cache.complete.setdefault(point.key, point)
        else:
            self.cache.truncated.setdefault(point.key, (point, examples))
        if point.key not in self.evaluated_keys:
            self.evaluated_keys.add(point.key)
            self.progress.add(point, is_planned=is_planned)

    @property
    def _n_enqueued(self) -> int:
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


@dataclass(frozen=True)
class PendingEvaluation:
    """One evaluation to make.

    Attributes:
        queue: Where its trial comes from.
        trial: The running trial that it finishes.
        subnet: What to evaluate.
        early_stopping: When to stop before all examples are scored; None: never.
    """

    queue: TrialQueue
    trial: optuna.Trial
    subnet: SubnetConfig
    early_stopping: EarlyStopping | None
