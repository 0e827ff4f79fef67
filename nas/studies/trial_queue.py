"""Queue of trials of one study; all state is in the study, so a search resumes from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from nas.fronts.point import Point
from nas.studies.concurrent_drivers import ConcurrentDrivers
from nas.studies.evaluation_cache import EvaluationCache
from nas.studies.evaluator import Evaluator
from nas.studies.racing import EarlyStopping, Outcome
from nas.studies.sampler import SamplerFactory
from nas.studies.search_progress import SearchProgress
from nas.studies.stopping import ElapsedTime, should_stop
from nas.studies.storage import batched_writes, trial_id
from nas.studies.study import complete_trials, point_from_trial, study_kind
from search_spaces import InputError, SearchSpace, SubnetConfig

MAX_CONSECUTIVE_FAILURES = 5
"""Failed evaluations in a row after which a search stops."""

StartupPhase = Callable[[Mapping[str, Point]], Sequence[SubnetConfig]]
"""Key -> point of what is evaluated so far -> subnetworks to evaluate next; called once all before it are finished."""


class TrialQueue:
    """Asks a study for trials and records the outcomes of their evaluations.

    First come the trials that an earlier command left running, under their own numbers, then the enqueued ones, then
    those that the sampler proposes.

    Args:
        study: Holds all state.
        space: Turns the parameters of a trial into a subnetwork.
        evaluator: Values of subnetworks.
        cache: Results that the studies of the run share.
        phases: Subnetworks to evaluate before the sampler is used, phase after phase.
        sampler: Proposes the trials after the phases; None: there are none.
        budget: Returns how many distinct subnetworks to evaluate.
        drivers: The other drivers, where several share the study.

    Attributes:
        running: Number -> every trial of this driver that is not finished.
        waiting_for_other_drivers: Those of them whose subnetwork another driver is evaluating.
        evaluated_keys: Keys of the subnetworks that the study has evaluated.
        progress: Front and hypervolume of the study.
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
    ) -> None:
        self.study, self.space, self.evaluator, self.cache = study, space, evaluator, cache
        self.name = study_kind(study)
        self.sampler, self.budget, self.drivers = sampler, budget, drivers
        scalings = len({subnet.key for subnet in space.uniform_scalings()})
        self.progress = SearchProgress(evaluator.recipe, scalings, cache.reference)
        self.running: dict[int, PendingEvaluation] = {}
        self.waiting_for_other_drivers: dict[int, PendingEvaluation] = {}
        self.evaluated_keys: set[str] = set()
        self._phases = list(phases)
        self._phases_begun = self._sampler_exhausted = False
        self._seen_trials: set[int] = set()
        self._retry: list[PendingEvaluation] = []
        if drivers is not None:
            drivers.queues.append(self)
        self._resumed = self._resume()
        times = (trial.user_attrs.get("search_s", 0.0) for trial in complete_trials(study))
        self.elapsed_time = ElapsedTime(max(times, default=0.0))

    # -- ask ------------------------------------------------------------------------------------------------------

    def ask(self) -> PendingEvaluation | None:
        """The next evaluation to make; None if there is none now. Trials of known results are finished at once."""
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
        search, budget = self.evaluator.recipe.search, self.budget()
        max_trials = 2 * budget + len(self.cache.failed)
        spent = self._sampler_exhausted or self.n_evaluations >= budget or len(self._seen_trials) >= max_trials
        return spent or (self.sampler is not None and should_stop(search, self.progress, self.elapsed_time))

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
        distributions = parameters.distributions()
        for subnet in subnets:
            if subnet.key not in planned:
                self.study.add_trial(
                    optuna.create_trial(
                        state=TrialState.WAITING,
                        params=parameters.from_subnet(subnet),
                        distributions=distributions,
                        user_attrs={"planned": True},
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
            InputError: If too many evaluations in a row have failed, or none of many is feasible.
        """
        waiting, cache = self.cache.in_flight.pop(evaluation.subnet.key), self.cache
        if outcome.failure is not None:
            cache.failed[evaluation.subnet.key] = outcome.failure
            for each in waiting:
                each.queue.fail(each, outcome.failure)
            cache.consecutive_failures += 1
            if cache.consecutive_failures >= MAX_CONSECUTIVE_FAILURES:
                self._raise_too_many_failures(evaluation, outcome.failure)
            return
        cache.consecutive_failures = 0
        point = self.evaluator.point(evaluation.subnet, outcome)
        examples = None if outcome.is_complete else outcome.examples
        for each in waiting:
            each.queue.settle(each, point, examples)
        if self.sampler is not None:
            self.progress.check_feasibility()

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
        attributes = {"key": point.key, "point": point.to_dict(), "search_s": self.elapsed_time.seconds}
        with batched_writes(self.study, durable=True):
            for name, violation in self.evaluator.violations(point.values).items():
                trial.set_constraint(name, violation)
            for name, value in (attributes | ({} if examples is None else {"examples": examples})).items():
                trial.set_user_attr(name, value)
            self._finish(evaluation, [point.values[name] for name in objectives])
        self._remember(trial.number, point, examples)

    def fail(self, evaluation: PendingEvaluation, failure: str) -> None:
        """Finishes a trial as failed, with the traceback."""
        with batched_writes(self.study, durable=True):
            evaluation.trial.set_user_attr("key", evaluation.subnet.key)
            evaluation.trial.set_user_attr("failure", failure[-4000:])
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

    def _raise_too_many_failures(self, evaluation: PendingEvaluation, failure: str) -> None:
        raise InputError(
            f"{MAX_CONSECUTIVE_FAILURES} evaluations in a row have failed, the last ({evaluation.subnet}) with "
            f"`{failure.strip().splitlines()[-1]}`; the tracebacks are in trials.csv. Fix the cause and type the "
            "same command again."
        )

    def summary(self) -> str:
        """The progress of the study in a few words, and when a time limit stops it."""
        hours = self.evaluator.recipe.search.hours
        if hours is None or self.sampler is None:
            return self.progress.summary()
        left_min = max(0.0, 60 * hours - self.elapsed_time.seconds / 60)
        return f"{self.progress.summary()} · stops in {left_min:.0f} min"

    # -- the study ------------------------------------------------------------------------------------------------

    def _resume(self) -> list[FrozenTrial]:
        """Reads the study; returns the trials that an earlier command of this driver left running."""
        driver = self.drivers and self.drivers.driver
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        self.refresh()
        return [trial for trial in trials if trial.user_attrs.get("driver") == driver]

    def refresh(self) -> None:
        """Reads the trials that were finished since the last call, by other drivers too."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.number not in self._seen_trials and trial.state.is_finished():
                if trial.state == TrialState.COMPLETE and "point" in trial.user_attrs:
                    point = point_from_trial(trial, self.name)
                    self._remember(trial.number, point, trial.user_attrs.get("examples"))
                elif "failure" in trial.user_attrs:
                    self.cache.failed.setdefault(trial.user_attrs["key"], trial.user_attrs["failure"])
                self._seen_trials.add(trial.number)

    def _remember(self, number: int, point: Point, examples: int | None) -> None:
        self._seen_trials.add(number)
        if examples is None:
            self.cache.complete.setdefault(point.key, point)
        else:
            self.cache.truncated.setdefault(point.key, (point, examples))
        if point.key not in self.evaluated_keys:
            self.evaluated_keys.add(point.key)
            self.progress.add(point)

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
