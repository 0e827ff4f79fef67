"""Strategies: which subnetworks learn in one step of supernet training, and how those that are sampled are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, Protocol

import numpy as np

from search_spaces import SearchSpace, SubnetConfig

Role = Literal["largest", "smallest", "sampled"]
Sample = Callable[[Random], SubnetConfig]
"""Draws one subnetwork."""
Cost = Callable[[Sequence[SubnetConfig]], np.ndarray]
"""A cost of each subnetwork (n,)."""

CANDIDATES = 32
"""Subnetworks drawn for one of a stratified sample; the one nearest to the wanted cost is kept."""
STAGES = 4
"""Steps in which progressive shrinking opens the choices, the first with a quarter of them."""


@dataclass(frozen=True)
class Lesson:
    """One forward and backward pass of a step: a subnetwork, and whether it learns from the labels too."""

    role: Role
    subnet: SubnetConfig
    labels: bool


class Strategy(Protocol):
    """Which subnetworks learn together in one step."""

    def lessons(self, progress: float, rng: Random) -> list[Lesson]:
        """The lessons of a step, at a share of the training in [0, 1); that of the largest subnetwork first."""
        ...


@dataclass(frozen=True)
class Sandwich:
    """The largest, the smallest and some sampled subnetworks (Yu & Huang 2019, arXiv 1903.05134)."""

    space: SearchSpace
    sample: Sample
    sampled: int

    def lessons(self, progress: float, rng: Random) -> list[Lesson]:
        """The largest learns from the labels too."""
        ends = [Lesson("largest", self.space.largest, True), Lesson("smallest", self.space.smallest, False)]
        return ends + [Lesson("sampled", self.sample(rng), False) for _ in range(self.sampled)]


@dataclass(frozen=True)
class SinglePath:
    """One sampled subnetwork a step (Guo et al. 2019, arXiv 1904.00420; AutoFormer, arXiv 2107.00651)."""

    space: SearchSpace
    sample: Sample
    sampled: int

    def lessons(self, progress: float, rng: Random) -> list[Lesson]:
        """It learns from the labels and from the teacher."""
        return [Lesson("sampled", self.sample(rng), True)]


@dataclass(frozen=True)
class Granularity:
    """One of the uniform scalings a step (MatFormer, Devvrit et al. 2023, arXiv 2310.07707)."""

    space: SearchSpace
    sample: Sample
    sampled: int

    def lessons(self, progress: float, rng: Random) -> list[Lesson]:
        """It learns from the labels and from the teacher."""
        return [Lesson("sampled", rng.choice(self.space.uniform_scalings()), True)]


@dataclass(frozen=True)
class ProgressiveShrinking:
    """The largest and sampled subnetworks, of ever more of the choices (Cai et al. 2020, arXiv 1908.09791).

    Every dimension starts with the largest quarter of its choices, and has all in the last quarter of the training.
    """

    space: SearchSpace
    sample: Sample
    sampled: int

    def lessons(self, progress: float, rng: Random) -> list[Lesson]:
        """The largest learns from the labels too."""
        open_now = self.space.with_largest(math.floor(1 + STAGES * progress) / STAGES)
        draws = self.sample if open_now.size == self.space.size else open_now.sample_mixed
        sampled = [Lesson("sampled", draws(rng), False) for _ in range(self.sampled + 1)]
        return [Lesson("largest", self.space.largest, True), *sampled]


def stratified(space: SearchSpace, cost: Cost) -> Sample:
    """Draws subnetworks whose cost, not whose choices, is spread between the smallest and the largest."""
    low, high = cost([space.smallest, space.largest])
    scalings = space.uniform_scalings()  # near the ends there is little else, and it is rarely drawn

    def sample(rng: Random) -> SubnetConfig:
        drawn = [*scalings, *(space.sample_mixed(rng) for _ in range(CANDIDATES))]
        wanted = low + (high - low) * rng.random()
        return drawn[int(np.argmin(np.abs(cost(drawn) - wanted)))]

    return sample


STRATEGIES: dict[str, Callable[[SearchSpace, Sample, int], Strategy]] = {
    "sandwich": Sandwich,
    "single-path": SinglePath,
    "granularity": Granularity,
    "progressive": ProgressiveShrinking,
}
"""Name in a recipe -> strategy, of a space, what draws subnetworks, and how many of those learn in a step."""

SAMPLES: dict[str, Callable[[SearchSpace], Sample]] = {
    "mixed": lambda space: space.sample_mixed,
    "uniform": lambda space: space.sample,
}
"""Name in a recipe -> what draws subnetworks; the names of costs draw a stratified sample."""
