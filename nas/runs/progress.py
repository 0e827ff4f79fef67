"""Progress of long work: one bar with what is best so far and the time left; plain lines when nobody watches."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from nas.runs import processes

if TYPE_CHECKING:
    pass


ProgressCallback = Callable[[int, int, str], None]
"""Called with (steps done, steps in all, what to show) while a training runs."""

console = Console(highlight=False, soft_wrap=True, quiet=not processes.is_main())


def print_line(text: str) -> None:
    """Prints one line."""
    console.print(text)


class ProgressBars(Progress):
    """Bars whose notes stand on a line of their own, so that nothing is squeezed in a narrow terminal."""

    def get_renderables(self) -> Iterator[RenderableType]:
        """A bar, then its note."""
        for task in self.tasks:
            yield self.make_tasks_table([task])
            if task.fields["note"]:
                yield Text(f"  {task.fields['note']}", overflow="fold")


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar; the function it yields takes (done, in all, what to show)."""
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
    """Silences the bars and notices of the libraries underneath, so that ours can be read."""
    import datasets
    import huggingface_hub
    import optuna
    import transformers

    huggingface_hub.utils.logging.set_verbosity_error()  # of no connection, we say so once
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
