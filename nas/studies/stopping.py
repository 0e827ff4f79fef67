"""Stopping a search: by its time limit or by a stalled hypervolume."""

from __future__ import annotations

import time

from nas.recipe.schema import Search
from nas.studies.search_progress import SearchProgress


class ElapsedTime:
    """How long a search has run, over all commands of its run.

    Args:
        before_s: Seconds that earlier commands took.
    """

    def __init__(self, before_s: float = 0.0) -> None:
        self._start = time.monotonic() - before_s

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._start


def should_stop(search: Search, progress: SearchProgress, elapsed_time: ElapsedTime) -> bool:
    """Whether the recipe's time limit is over, or the hypervolume has stalled for ``search.patience`` evaluations."""
    is_late = search.hours is not None and elapsed_time.seconds >= 3600 * search.hours
    return is_late or (search.patience is not None and progress.n_since_improvement >= search.patience)
