"""Bootstrap: the standard error of a metric, from resampled examples (Efron 1979)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from nas.tasks.metrics import ExampleStats, Metric, OfClasses
from search_spaces import InputError

SAMPLES = 200


class Resample(Mapping[str, np.ndarray]):
    """Statistics of some of the examples; each is gathered when a metric reads it.

    Args:
        stats: Statistics of all examples.
        rows: Numbers of the examples, one may occur several times.
    """

    def __init__(self, stats: ExampleStats, rows: np.ndarray) -> None:
        self.stats, self.rows = stats, rows

    def __getitem__(self, name: str) -> np.ndarray:
        """A statistic of these examples."""
        return self.stats[name][self.rows]

    def __iter__(self) -> Iterator[str]:
        """The names of the statistics."""
        return iter(self.stats)

    def __len__(self) -> int:
        """The number of statistics."""
        return len(self.stats)


def standard_error(metric: Metric, stats: ExampleStats) -> tuple[float, int]:
    """Computes the bootstrap standard error of a metric over examples.

    Returns:
        The standard error, and the number of resamples that were left out, see `resampled`.
    """
    values = resampled(metric, stats)
    return float(np.std(values, ddof=1)), SAMPLES - len(values)


def resampled(metric: Metric, stats: ExampleStats) -> list[float]:
    """Computes a metric on resamples of the examples.

    All models are resampled alike, so their values can be compared one by one. Resamples on which the metric is
    undefined, such as those without one of the classes, are left out, unless these are most: with many rare classes,
    the metric is that of the classes that occur.

    Raises:
        InputError: If the metric is undefined on nearly all resamples.
    """
    examples = len(next(iter(stats.values())))
    draws = np.random.default_rng(0).integers(0, examples, (SAMPLES, examples))
    if isinstance(metric, OfClasses):
        complete = draws[metric.is_defined(stats, draws)]
        draws = complete if len(complete) >= SAMPLES / 2 else draws
    values = _values(metric, stats, draws)
    if len(values) < 2:
        raise InputError(
            f"a metric must be defined on resamples of the examples, but it is on {len(values)} of {SAMPLES}; raise "
            "`task.search_examples` or choose another metric."
        )
    return values


def _values(metric: Metric, stats: ExampleStats, draws: np.ndarray) -> list[float]:
    """The values of a metric on the resamples (samples, examples) on which it is defined."""
    values = []
    for rows in draws:
        try:
            values.append(metric(Resample(stats, rows)))
        except InputError:  # a metric of the user's own that is not defined here
            continue
    return values
