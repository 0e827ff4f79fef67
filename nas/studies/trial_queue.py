"""Docket: one study of a run as what is planned, in flight and decided; the study is the only truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from nas.fronts.point import Point
from nas.studies.concurrent_drivers import Rivals
from nas.studies.evaluation_cache import Book
from nas.studies.evaluator import Evaluator
from nas.studies.racing import Outcome, Race
from nas.studies.sampler import MakeSampler
from nas.studies.search_progress import Standing
from nas.studies.stopping import Clock, has_had_enough
from nas.studies.storage import together
from nas.studies.study import finished, point_of, short_name
from search_spaces import InputError, SearchSpace, SubnetConfig

FAILURES = 5
"""Failed evaluations in a row after which a search stops."""

Phase = Callable[[Mapping[str, Point]], Sequence[SubnetConfig]]
"""What was found so far -> subnetworks to evaluate next; asked once everything before it is finished."""


class Docket:
    """Asks a study for evaluations and tells it what came of them.

    Trials that an earlier command left running are handed out again under their own numbers, then what is enqueued,
    then what the sampler proposes.

    Args:
        study: Where everything is kept.
        space: Meaning of its parameters.
        evaluator: Figures of its subnetworks.
        book: What it shares with the other studies of the run.
        phases: What to evaluate before the sampler has a say, phase after phase.
        sampler: Proposes the rest; None: there is no rest.
        budget: Distinct subnetworks to evaluate.
        rivals: The other drivers, where several share the study.

    Attributes:
        running: Number -> every trial of this driver that is not finished.
        parked: Those of them whose subnetwork another driver is evaluating.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        evaluator: Evaluator,
        book: Book,
        phases: Sequence[Phase],
        sampler: MakeSampler | None,
        budget: Callable[[], int],
        rivals: Rivals | None = None,
    ) -> None:
        self.study, self.space, self.evaluator, self.book = study, space, evaluator, book
        self.name = short_name(study)
        self.sampler, self.budget, self.rivals = sampler, budget, rivals
        scalings = len({subnet.key for subnet in space.uniform_scalings()})
        self.standing = Standing(evaluator.recipe, scalings, book.reference)
        self.running: dict[int, Ticket] = {}
        self.parked: dict[int, Ticket] = {}
        self._phases = list(phases)
        self.done: set[str] = set()
        self._read: set[int] = set()
        self._begun = self._exhausted = False
        self._again: list[Ticket] = []
        if rivals is not None:
            rivals.dockets.append(self)
        self._adopted = self._resume()
        self.clock = Clock(max((t.user_attrs.get("search_s", 0.0) for t in finished(study)), default=0.0))

    # -- asking ---------------------------------------------------------------------------------------------------

    def ask(self) -> Ticket | None:
        """The next evaluation to make; None if there is none now. What is known already is told at once."""
        if self.rivals is not None:
            self.rivals.refresh()
            self._again += self.parked.values()
            self.parked = {}
        again, self._again = self._again, []
        for place, ticket in enumerate(again):
            if not self._answered(ticket):
                self._again += again[place + 1 :]
                return ticket
        while not self.closed:
            with together(self.study._storage, durable=False):
                trial = self._next_trial()
                if trial is None:
                    return None
                subnet = self.space.parameters.suggest(trial)
            ticket = Ticket(self, trial, subnet, self._race(trial, subnet))
            self.running[trial.number] = ticket
            if not self._answered(ticket):
                return ticket
        return None

    @property
    def busy(self) -> bool:
        """Whether an evaluation of it is in flight here."""
        return len(self.running) > len(self.parked)

    @property
    def closed(self) -> bool:
        """Whether nothing more will be asked unless an evaluation in flight fails, here or elsewhere."""
        if self._again or self._adopted:
            return False
        return self._enough or (self.sampler is None and not self._phases and not self._waiting)

    @property
    def claimed(self) -> int:
        """Distinct subnetworks evaluated or in flight."""
        flying = {ticket.subnet.key for ticket in self.running.values()}
        others = self.rivals.running(self.study) if self.rivals is not None else []
        return len(self.done) + len(flying - self.done) + len(others)

    @property
    def _enough(self) -> bool:
        search, budget = self.evaluator.recipe.search, self.budget()
        spent = self._exhausted or self.claimed >= budget or len(self._read) >= 2 * budget + len(self.book.failed)
        return spent or (self.sampler is not None and has_had_enough(search, self.standing, self.clock))

    def _next_trial(self) -> optuna.Trial | None:
        """A trial that is running again, enqueued, or new; None while a phase waits for the one before it."""
        if self._adopted:
            number, trial_id = self._adopted.pop(0)
            self._use_sampler(number)
            return optuna.Trial(self.study, trial_id)
        while self._phases and not self._waiting:
            if self._begun and self.running:
                return None
            self._begun = True
            self._enqueue(self._phases.pop(0)(self.book.known))
        if self.sampler is None and not self._waiting:
            return None
        self._use_sampler(len(self.study.get_trials(deepcopy=False)))
        trial = self.study.ask()
        if self.rivals is not None:
            trial.set_user_attr("driver", self.rivals.driver)
        return trial

    def _use_sampler(self, number: int) -> None:
        if self.sampler is not None:
            self.study.sampler = self.sampler(number)

    def _enqueue(self, subnets: Sequence[SubnetConfig]) -> None:
        """Adds what the study does not hold yet as waiting trials."""
        trials = self.study.get_trials(deepcopy=False)
        parameters = self.space.parameters
        held = {parameters.to_subnet(t.params).key for t in trials if t.user_attrs.get("planned")}
        distributions = parameters.distributions()
        for subnet in subnets:
            if subnet.key not in held:
                self.study.add_trial(
                    optuna.create_trial(
                        state=TrialState.WAITING,
                        params=parameters.from_subnet(subnet),
                        distributions=distributions,
                        user_attrs={"planned": True},
                    )
                )

    def _race(self, trial: optuna.Trial, subnet: SubnetConfig) -> Race | None:
        planned = self.sampler is not None and trial.user_attrs.get("planned")
        return None if planned else self.evaluator.race(subnet, self.standing.front)

    def _answered(self, ticket: Ticket) -> bool:
        """Whether a ticket needs no evaluation here and now."""
        return self._answered_by_book(ticket) or not self._begun_here(ticket)

    def _answered_by_book(self, ticket: Ticket) -> bool:
        """Whether its subnetwork is known, or in flight for another trial."""
        key, book = ticket.subnet.key, self.book
        if key in book.in_flight:
            book.in_flight[key].append(ticket)
        elif key in book.known:
            self._record(ticket, book.known[key], None)
        elif key in book.failed:
            self._fail(ticket, book.failed[key])
        elif key in book.partial and ticket.race is not None and self._is_lost(ticket.race, *book.partial[key]):
            self._record(ticket, *book.partial[key])
        else:
            return False
        return True

    def _begun_here(self, ticket: Ticket) -> bool:
        """Claims an evaluation, unless another driver makes it or has just made it."""
        if self.rivals is not None:
            mine = self.rivals.claim(ticket.trial, ticket.subnet.key)
            self.rivals.refresh()
            if self._answered_by_book(ticket):
                return False
            if not mine:
                self.parked[ticket.trial.number] = ticket
                return False
        self.book.in_flight[ticket.subnet.key] = [ticket]
        return True

    def _is_lost(self, race: Race, point: Point, examples: int) -> bool:
        scores = {name: (point.values[name], point.errors[name]) for name in self.evaluator.recipe.metric_names}
        return race.is_lost(scores, examples / len(self.evaluator.examples))

    # -- telling --------------------------------------------------------------------------------------------------

    def tell(self, ticket: Ticket, outcome: Outcome) -> None:
        """Tells what came of an evaluation to every trial that waits for it.

        Raises:
            InputError: If this is one of too many failures in a row, or nothing feasible is in sight.
        """
        tickets, book = self.book.in_flight.pop(ticket.subnet.key), self.book
        if outcome.failure is not None:
            book.failed[ticket.subnet.key] = outcome.failure
            for waiting in tickets:
                waiting.docket._fail(waiting, outcome.failure)
            book.failures += 1
            if book.failures >= FAILURES:
                self._give_up(ticket, outcome.failure)
            return
        book.failures = 0
        point = self.evaluator.point(ticket.subnet, outcome)
        examples = None if outcome.whole else outcome.examples
        for waiting in tickets:
            waiting.docket._settle(waiting, point, examples)
        if self.sampler is not None:
            self.standing.check_hope()

    def take_back(self, ticket: Ticket) -> None:
        """Hands an evaluation out again that nobody could make."""
        for waiting in self.book.in_flight.pop(ticket.subnet.key):
            waiting.docket._again.append(waiting)

    def _settle(self, ticket: Ticket, point: Point, examples: int | None) -> None:
        """Finishes a trial whose subnetwork was evaluated, unless that stopped too early for this study's front."""
        if examples is not None and (ticket.race is None or not self._is_lost(ticket.race, point, examples)):
            self._again.append(ticket)
        else:
            self._record(ticket, point, examples)

    def _record(self, ticket: Ticket, point: Point, examples: int | None) -> None:
        """Finishes a trial with the figures of its subnetwork."""
        trial, objectives = ticket.trial, self.evaluator.recipe.objectives
        attributes = {"key": point.key, "point": point.to_dict(), "search_s": self.clock.elapsed_s}
        with together(self.study._storage, durable=True):
            for name, violation in self.evaluator.violations(point.values).items():
                trial.set_constraint(name, violation)
            for name, value in (attributes | ({} if examples is None else {"examples": examples})).items():
                trial.set_user_attr(name, value)
            self._finish(ticket, [point.values[name] for name in objectives])
        self._note(trial.number, point, examples)

    def _fail(self, ticket: Ticket, failure: str) -> None:
        """Closes a trial as failed, with the traceback."""
        with together(self.study._storage, durable=True):
            ticket.trial.set_user_attr("key", ticket.subnet.key)
            ticket.trial.set_user_attr("failure", failure[-4000:])
            self._finish(ticket, None)
        self._read.add(ticket.trial.number)

    def _finish(self, ticket: Ticket, values: list[float] | None) -> None:
        try:
            self.study.tell(ticket.trial, values, TrialState.FAIL if values is None else None)
        except RuntimeError as error:  # how BruteForceSampler says that it has proposed everything
            if "Study.stop" not in str(error):
                raise
            self._exhausted = True
        del self.running[ticket.trial.number]

    def _give_up(self, ticket: Ticket, failure: str) -> None:
        raise InputError(
            f"{FAILURES} evaluations in a row have failed, the last ({ticket.subnet}) with "
            f"`{failure.strip().splitlines()[-1]}`; the tracebacks are in trials.csv. Mend the cause and type the "
            "same command again."
        )

    def note(self) -> str:
        """The standing of this study in a few words, and when a limit of time stops it."""
        hours = self.evaluator.recipe.search.hours
        left = "" if hours is None else f" · stops in {max(0.0, 60 * hours - self.clock.elapsed_s / 60):.0f} min"
        return self.standing.note() + (left if self.sampler is not None else "")

    # -- what the study holds -------------------------------------------------------------------------------------

    def _resume(self) -> list[tuple[int, int]]:
        """Reads the study; returns the trials that an earlier command of this driver left running."""
        left, driver = [], self.rivals and self.rivals.driver
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state == TrialState.RUNNING and trial.user_attrs.get("driver") == driver:
                left.append((trial.number, trial._trial_id))
        self.refresh()
        return left

    def refresh(self) -> None:
        """Reads what other drivers have told since the last look."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.number not in self._read and trial.state.is_finished():
                if trial.state == TrialState.COMPLETE and "point" in trial.user_attrs:
                    self._note(trial.number, point_of(trial, self.name), trial.user_attrs.get("examples"))
                elif "failure" in trial.user_attrs:
                    self.book.failed.setdefault(trial.user_attrs["key"], trial.user_attrs["failure"])
                self._read.add(trial.number)

    def _note(self, number: int, point: Point, examples: int | None) -> None:
        self._read.add(number)
        if examples is None:
            self.book.known.setdefault(point.key, point)
        else:
            self.book.partial.setdefault(point.key, (point, examples))
        if point.key not in self.done:
            self.done.add(point.key)
            self.standing.add(point)

    @property
    def _waiting(self) -> int:
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


@dataclass(frozen=True)
class Ticket:
    """One evaluation to make.

    Attributes:
        docket: Who asked for it.
        trial: The running trial that it will finish.
        subnet: What to evaluate.
        race: What it must beat to be finished; None: evaluate it in full.
    """

    docket: Docket
    trial: optuna.Trial
    subnet: SubnetConfig
    race: Race | None
