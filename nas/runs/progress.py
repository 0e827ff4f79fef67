"""Prints lines, and shows for each stage a bar that moves: in a terminal, or as a line every ten seconds in a log."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nas.runs import processes

if TYPE_CHECKING:
    from predictors.measurement.budget import Budget

ProgressCallback = Callable[[int, int, str], None]
"""Called with (steps done, total steps, note)."""
TimeReport = Callable[[str], None]
"""Called with a note; how far it is follows from the time."""

LOG_EVERY_S = 10.0
REFRESHES_PER_SECOND = 2.0
"""Of a bar in a terminal; more would disturb what is measured at the same time."""
BAR_WIDTH = 10

console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=not processes.is_main())
"""Prints texts as they are: brackets in the name of a folder are no markup."""


def print_line(text: str) -> None:
    """Prints one line, without control characters: a name in a run of someone else must not command the terminal."""
    console.print("".join(c if c.isprintable() or c == "\n" else "?" for c in text))


@dataclass
class Task:
    """One thing that takes time.

    Attributes:
        title: The stage, or what is waited for.
        budget: Time limit; None: the time left follows from the steps.
        done: Steps done.
        total: All steps; 0 if there are none to count.
        note: The number that matters so far.
    """

    title: str
    budget: Budget | None = None
    done: int = 0
    total: int = 0
    note: str = ""
    start: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.start if self.budget is None else self.budget.elapsed

    @property
    def left(self) -> float | None:
        """Seconds that are left; None if unknown."""
        if self.budget is not None:
            return None if self.budget.seconds is None else self.budget.left
        return self.elapsed * (self.total - self.done) / self.done if self.done and self.total else None

    @property
    def fraction(self) -> float | None:
        """How much of it is done; None if unknown."""
        if self.budget is not None:
            return None if self.budget.seconds is None else min(self.budget.elapsed / self.budget.seconds, 1.0)
        return self.done / self.total if self.total else None

    @property
    def counts(self) -> list[str]:
        """Steps, time since the beginning and time left."""
        steps = [f"{self.done}/{self.total}"] if self.total else []
        left = self.left if self.done < self.total or self.budget is not None else None
        return [*steps, clock_text(self.elapsed), *([] if left is None else [f"{clock_text(left)} left"])]

    @property
    def line(self) -> str:
        """All of it on one line, for a log."""
        return f"{self.title:<10} {' · '.join([*self.counts, *filter(None, [self.note])])}"

    def rendered(self) -> RenderableType:
        """A bar for a terminal; the note is on a line of its own, so that a narrow terminal shows all of it."""
        row, fraction = Table.grid(padding=(0, 1)), self.fraction
        bar = ProgressBar(total=None if fraction is None else 1.0, completed=fraction or 0.0, width=BAR_WIDTH)
        row.add_row(self.title, bar, *self.counts)
        return Group(row, *([Text(f"  {self.note}", overflow="fold")] if self.note else []))


class _Display:
    """Shows the innermost of the running tasks, from a thread of its own."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self._live: Live | None = None
        self._stopped = threading.Event()

    @contextmanager
    def showing(self, task: Task) -> Iterator[Task]:
        self.tasks.append(task)
        if len(self.tasks) == 1:
            self._start()
        try:
            yield task
        finally:
            self.tasks.remove(task)
            if not self.tasks:
                self._stop()

    def _start(self) -> None:
        if console.is_terminal:
            options: dict[str, Any] = {"transient": True, "refresh_per_second": REFRESHES_PER_SECOND}
            self._live = Live(console=console, get_renderable=self._rendered, **options)
            self._live.start()
        else:
            self._stopped = threading.Event()
            threading.Thread(target=self._log, args=(self._stopped,), daemon=True).start()

    def _stop(self) -> None:
        self._stopped.set()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _rendered(self) -> RenderableType:
        tasks = self.tasks[-1:]
        return tasks[0].rendered() if tasks else Text("")

    def _log(self, stopped: threading.Event) -> None:
        while not stopped.wait(LOG_EVERY_S):
            for task in self.tasks[-1:]:
                print_line(task.line)


_display = _Display()


@contextmanager
def progress(title: str) -> Iterator[ProgressCallback]:
    """Shows a progress bar and yields the function that updates it."""
    with _display.showing(Task(title)) as task:

        def update(done: int, total: int, note: str) -> None:
            task.done, task.total, task.note = done, total, note

        yield update
    if not console.is_terminal:
        print_line(task.line)


@contextmanager
def time_progress(title: str, budget: Budget) -> Iterator[TimeReport]:
    """Shows how much of a time budget is used, and yields the function that updates the note."""
    with _display.showing(Task(title, budget)) as task:

        def update(note: str) -> None:
            task.note = note

        yield update


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows for how long something that cannot be counted has been waited for."""
    with _display.showing(Task(what)):
        yield


def clock_text(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def quiet_libraries() -> None:
    """Turns off the progress bars and notices of the libraries used, now or once they are imported."""
    import wrapt

    for name, quiet in _QUIET.items():
        wrapt.when_imported(name)(quiet)


def _quiet_hub(module: Any) -> None:
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # errors of connection are printed once, by us


def _quiet_transformers(module: Any) -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _quiet_datasets(module: Any) -> None:
    module.disable_progress_bars()
    module.logging.set_verbosity(module.logging.CRITICAL)  # it logs what it raises as well


def _quiet_optuna(module: Any) -> None:
    module.logging.set_verbosity(module.logging.WARNING)
    warnings.filterwarnings("ignore", category=module.exceptions.ExperimentalWarning)


_QUIET: dict[str, Callable[[Any], None]] = {
    "huggingface_hub": _quiet_hub,
    "transformers": _quiet_transformers,
    "datasets": _quiet_datasets,
    "optuna": _quiet_optuna,
}
"""Module -> function that makes it quiet, called once it is imported."""
