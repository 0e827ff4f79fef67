"""Prints lines, and progress bars with a note and the time left."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from nas.runs import processes

ProgressCallback = Callable[[int, int, str], None]
"""Called with (steps done, total steps, note)."""

console = Console(highlight=False, soft_wrap=True, quiet=not processes.is_main())


def print_line(text: str) -> None:
    """Prints one line."""
    console.print(text)


class ProgressBars(Progress):
    """Progress bars with the note of each on its own line, so that a narrow terminal shows all of it."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Each bar, then its note."""
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if task.fields["note"]:
                yield Text(f"  {task.fields['note']}", overflow="fold")


@contextmanager
def progress(title: str) -> Iterator[ProgressCallback]:
    """Shows a progress bar and yields the function that updates it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with ProgressBars(*columns, console=console, transient=console.is_terminal) as bar:
        task = bar.add_task(title, total=None, note="")

        def update(done: int, total: int, note: str) -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield update


def quiet_libraries() -> None:
    """Turns off the progress bars and notices of the libraries used."""
    import datasets
    import huggingface_hub
    import optuna
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()  # errors of connection are printed once, by us
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
