"""Failures: why an evaluation failed, and whether a second attempt may succeed."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from nas.tasks.metrics import MetricError, NotFiniteError

Cause = Literal["memory", "time limit", "input/output", "not finite", "metric", "worker", "error"]
"""Out of memory; a time limit or a file, disk or connection that an exception names; a value that is no finite number;
an exception of the user's metric; the loss of a Ray worker; any other exception."""

TRANSIENT: tuple[Cause, ...] = ("memory", "time limit", "input/output")
"""Causes that depend on what else the machine does. An evaluation repeats its computation, so others come again."""

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "std::bad_alloc")
"""Texts of the errors by which libraries in C++ say so."""


@dataclass(frozen=True)
class Failure:
    """Why an evaluation failed.

    Attributes:
        cause: One of `Cause`.
        details: The traceback, or what is known.
    """

    cause: Cause
    details: str

    @classmethod
    def from_exception(cls, error: BaseException) -> Failure:
        """The failure of an evaluation that raised."""
        return cls(_cause(error), "".join(traceback.format_exception(error)))

    @property
    def is_transient(self) -> bool:
        """Whether a second attempt may succeed."""
        return self.cause in TRANSIENT

    @property
    def message(self) -> str:
        """The last line of the details."""
        return self.details.strip().splitlines()[-1]


def count_causes(failures: Iterable[Failure]) -> str:
    """How many evaluations failed for which cause, in words: ``3 failed (2 memory, 1 metric)``."""
    counts = Counter(failure.cause for failure in failures)
    return f"{counts.total()} failed ({', '.join(f'{count} {cause}' for cause, count in counts.most_common())})"


def _cause(error: BaseException) -> Cause:
    chain = list(_chain(error))
    if any(_is_out_of_memory(each) for each in chain):
        return "memory"
    kinds: tuple[tuple[type[BaseException], Cause], ...] = (
        (TimeoutError, "time limit"),
        (OSError, "input/output"),
        (NotFiniteError, "not finite"),
        (MetricError, "metric"),
    )
    return next((cause for kind, cause in kinds if any(isinstance(each, kind) for each in chain)), "error")


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
