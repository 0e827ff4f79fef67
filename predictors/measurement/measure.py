"""Latency measurement: models are timed in interleaved rounds next to a reference model, which removes drift."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import count

from predictors.measurement.budget import Budget
from predictors.measurement.rounds import Call, Rounds, measuring
from predictors.measurement.timing import REFERENCE, Timing
from predictors.measurement.workload import Workload
from search_spaces.errors import InputError

MAX_ROUNDS = 60
"""Default maximum where no time limits the rounds."""


def measure(
    candidates: Mapping[str, Call],
    reference: Call,
    workload: Workload,
    *,
    reference_ms: float | None = None,
    rounds: int = 11,
    precision: float | None = None,
    max_rounds: int | None = None,
    budget: Budget | None = None,
    seed: int = 0,
    previous: Mapping[str, Timing] | None = None,
    on_round: Callable[[Rounds], None] | None = None,
) -> dict[str, Timing]:
    """Measures the latency of models relative to a reference model, in rounds of random order.

    The reference runs before and after every candidate, and the candidate's latency is divided by the mean of these
    two. A sample is one untimed call, then at least 3 timed ones (more for short calls), of which the fastest counts;
    of calls over 0.1 s it is one call. A sample is dropped if one of its two references is over 10 % slower than a
    quiet reference (the 10th percentile of all references), or slower by more than the wanted precision if that is
    coarser, as long as 6 samples remain. With a wanted precision, further rounds measure only the models that have not
    reached it in quiet samples.

    Chosen on 2 shared CPU cores with BERTs of MiniLM shapes. Over 11 rounds, four identical models differed (largest
    minus smallest) by 2.0 %, standard deviation 0.9 %; with medians instead of minima by 2.5 %, with one reference per
    round by 2.6 %, without a reference by 3.3 %. On a virtual machine whose neighbours slowed it by up to two thirds,
    for seconds or minutes, subnetworks of MiniLM and of a small ViT, measured to 2 and 3 %, had mean errors of 0.87
    and 1.06 %; all samples within 25 % of the median reference gave 1.28 and 1.26 % from more rounds.

    Args:
        candidates: Name -> a call that runs the model once, on inputs of the workload.
        reference: The same for the model that all others are compared with, usually the parent.
        workload: Where the calls run; its number of threads is set for the duration.
        reference_ms: Latency of the reference model in milliseconds that ratios are multiplied by, as stored with
            previous measurements; by default the median of its quiet samples in this call.
        rounds: Minimum number of samples of each candidate, if the budget allows them.
        precision: Wanted half-width of the confidence interval of each ratio, relative; None stops after ``rounds``.
        max_rounds: Maximum number of rounds if the precision is not reached; default: 60, or no limit with a budget.
        budget: Time limit, kept whatever the precision; only the first round always ends.
        seed: Order of the candidates in each round.
        previous: Timings of the same models from a previous loading; the precision is then that of both combined (see
            `combine_timings`).
        on_round: Told of the samples after every round.

    Returns:
        Name -> timing; that of the reference model under ``"anchor"``.

    Raises:
        InputError: If the device is missing or gets lost, memory runs out, a candidate is named ``anchor``, or
            ``rounds`` is below 1.
    """
    _check(candidates, rounds)
    if max_rounds is None:
        max_rounds = MAX_ROUNDS if budget is None else None
    with measuring(workload):
        sampler = Rounds(candidates, reference, workload, seed)
        unfinished = sampler.names

        def is_over() -> bool:
            return budget is not None and budget.is_over and len(sampler.sampled) == len(sampler.names)

        for done in count(1):
            sampler.run(unfinished, is_over)
            if on_round is not None:
                on_round(sampler)
            if done >= rounds:
                unfinished = [] if precision is None else sampler.short_of(precision, previous)
            if not unfinished or is_over() or done >= max(rounds, max_rounds or math.inf):
                break
    return sampler.timings(reference_ms, precision or 0.0)


def _check(candidates: Mapping[str, Call], rounds: int) -> None:
    """Raises InputError if a candidate has the name of the reference model, or there is no round."""
    if REFERENCE in candidates:
        raise InputError(
            f"`{REFERENCE}` is the name of the reference model, but a candidate of {sorted(candidates)} has it; "
            "rename the candidate."
        )
    if rounds < 1:
        raise InputError(f"`rounds` must be at least 1, but got {rounds}.")
