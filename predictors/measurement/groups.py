"""Measures many models within a budget of time: in groups that fit into memory, each with an equal share per model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar

from predictors.measurement.budget import Budget
from predictors.measurement.rounds import Call, Rounds, measuring
from predictors.measurement.timing import REFERENCE, Timing
from predictors.measurement.workload import Workload

PROPOSED_ROUNDS, PROPOSED_S = 12, (2.0, 600.0)
"""Rounds that a budget nobody set has time for, on a machine as fast as during the first; least and most seconds."""
LOADING_SHARE = 0.75
"""Most of the time that may be spent on loading models; if it does not suffice for all, fewer are measured."""
MAX_GROUP = 64
"""Models in memory at once, at most."""
SAVE_EVERY_S = 20.0
FIRST_CHECK, CHECK_GROWTH = 6, 1.5
"""Rounds after which `Visit.enough` is asked first, and their growth until it is asked again."""
MEMORY_SHARE = 0.25
"""Share of a device's memory that the models of a group may fill."""

Timings = Mapping[str, Timing]
T = TypeVar("T")


def group_size(model_mb: float, memory_mb: float) -> int:
    """Number of models that are measured together: as many as fit into a quarter of the memory, at most 64.

    Args:
        model_mb: Size of the largest model; loaded and prepared, it is taken to need twice as much.
        memory_mb: Memory of the device.
    """
    return max(1, min(MAX_GROUP, int(MEMORY_SHARE * memory_mb / (2 * model_mb + 1))))


@dataclass
class Visit:
    """What is measured in one visit to a device, and when it ends.

    Attributes:
        prepare: Loads a model by name and returns a call that runs it once; ``anchor`` is the reference model.
        workload: Where the calls run.
        budget: Time limit of the visit; an open one is proposed from the first round.
        store: Called with the timings of a group while and after it is measured; later ones replace earlier ones.
        reference_ms: The scale of the latencies, asked for when they are stored; None: that of the group.
        size: Models in memory at once.
        least: Models that are measured, one round at least, whatever the budget.
        save_every_s: How often the timings so far are stored while a group is measured.
        enough: Asked with a group's timings after ever more rounds; the group's rounds end when it returns True.
        is_done: Asked after each group; the visit ends when it returns True.
        on_progress: Called with (models loaded of a group, models of the group, round); round 0 while it is loaded.
        tolerance: Relative drift of the reference model that counts as quiet.
        seed: Order of the models in each round.
    """

    prepare: Callable[[str], Call]
    workload: Workload
    budget: Budget
    store: Callable[[Timings], None]
    reference_ms: Callable[[], float | None] = lambda: None
    size: int = MAX_GROUP
    least: int = 0
    save_every_s: float = SAVE_EVERY_S
    enough: Callable[[Timings], bool] = lambda timings: False
    is_done: Callable[[], bool] = lambda: False
    on_progress: Callable[[int, int, int], None] = lambda loaded, models, rounds: None
    tolerance: float = 0.0
    seed: int = 0
    measured: list[str] = field(default_factory=list)
    _reference: Call | None = None

    def measure(self, names: Sequence[str]) -> list[str]:
        """Measures models, the first ones first if time does not suffice for all.

        Returns:
            Those that were measured.
        """
        left = list(names)
        while left and not self.is_done() and not (self.budget.is_over and len(self.measured) >= self.least):
            group, later_s, share = self._load(left)
            self._measure(group, later_s, share, len(left))
            self.measured += group
            left = left[len(group) :]
            group.clear()  # before the next one is loaded
        return self.measured

    def _load(self, names: Sequence[str]) -> tuple[dict[str, Call], float, float]:
        """Loads models that fit into memory and into the time for loading.

        Returns:
            Their calls, the seconds that loading later groups takes, and the share of the other time that they have.
        """
        if self._reference is None:
            self._reference = self.prepare(REFERENCE)
        time, calls = self.budget.share(LOADING_SHARE), dict[str, Call]()
        for name in names[: self.size]:
            if time.is_over and len(self.measured) + len(calls) >= max(self.least, 1):
                break
            self.on_progress(len(calls), min(self.size, len(names)), 0)
            calls[name] = self.prepare(name)
        each_s, later = time.elapsed / len(calls), len(names) - len(calls)
        if each_s > 0:
            later = int(min(later, time.left / each_s))
        return calls, later * each_s, len(calls) / (len(calls) + later)

    def _measure(self, group: Mapping[str, Call], later_s: float, share: float, n_left: int) -> None:
        """Rounds over the models of a group until their share of the time is over or they are known well enough."""
        loading_s, reference = self.budget.elapsed, self._reference
        assert reference is not None
        with measuring(self.workload):
            rounds, part = Rounds(group, reference, self.workload, self.seed), self.budget.share(share, later_s)
            done, check, saved = 0, FIRST_CHECK, self.budget.elapsed

            def is_over() -> bool:
                return part.is_over and len(rounds.sampled) == len(group)

            while not is_over():
                self.on_progress(len(group), len(group), done + 1)
                rounds.run(stop=is_over)
                done += 1
                if self.budget.seconds is None:
                    self._propose(loading_s, part.elapsed, n_left / len(group))
                    part = self.budget.share(share, later_s)
                if done >= check:
                    check = max(check + 1, round(check * CHECK_GROWTH))
                    if self.enough(self._timings(rounds)):
                        break
                if self.budget.elapsed - saved > self.save_every_s:
                    self.store(self._timings(rounds))
                    saved = self.budget.elapsed
        self.store(self._timings(rounds))

    def _propose(self, loading_s: float, round_s: float, groups: float) -> None:
        """Proposes time to load all models, and for several rounds like the first one, which holds the warm-up."""
        rounds_s = min(max(PROPOSED_ROUNDS * round_s * groups, PROPOSED_S[0]), PROPOSED_S[1])
        self.budget.propose(max(loading_s * groups + rounds_s, loading_s * groups / LOADING_SHARE))

    def _timings(self, rounds: Rounds) -> dict[str, Timing]:
        return rounds.timings(self.reference_ms(), self.tolerance)


def shuffled(models: Sequence[T], seed: int) -> list[T]:
    """Models in random order, so that they have other neighbours in each visit."""
    return Random(seed).sample(list(models), len(models))
