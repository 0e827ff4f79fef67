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
SubnetSampler = Callable[[Random], SubnetConfig]
"""Draws one subnetwork."""
CostFunction = Callable[[Sequence[SubnetConfig]], np.ndarray]
"""A cost of each subnetwork (n,)."""

CANDIDATES = 32
"""Subnetworks drawn for one of a stratified sample; the one nearest to the wanted cost is kept."""
SHRINKING_STAGES = 4
"""Steps in which progressive shrinking opens the choices, the first with a quarter of them."""


@dataclass(frozen=True)
class TrainingPass:
    """One forward and backward pass of a step: a subnetwork, and whether it learns from the labels too."""

    role: Role
    subnet: SubnetConfig
    uses_labels: bool


class Strategy(Protocol):
    """Which subnetworks learn together in one step."""

    def passes(self, progress: float, rng: Random) -> list[TrainingPass]:
        """The lessons of a step, at a share of the training in [0, 1); that of the largest subnetwork first."""
        ...


@dataclass(frozen=True)
class Sandwich:
    """The largest, the smallest and some sampled subnetworks (Yu & Huang 2019, arXiv 1903.05134)."""

    space: SearchSpace
    sample: SubnetSampler
    n_sampled: int

    def passes(self, progress: float, rng: Random) -> list[TrainingPass]:
        """The largest learns from the labels too."""
        extremes = [
            TrainingPass("largest", self.space.largest, True),
            TrainingPass("smallest", self.space.smallest, False),
        ]
        return extremes + [TrainingPass("sampled", self.sample(rng), False) for _ in range(self.n_sampled)]


@dataclass(frozen=True)
class SinglePath:
    """One sampled subnetwork a step (Guo et al. 2019, arXiv 1904.00420; AutoFormer, arXiv 2107.00651)."""

    space: SearchSpace
    sample: SubnetSampler
    n_sampled: int

    def passes(self, progress: float, rng: Random) -> list[TrainingPass]:
        """It learns from the labels and from the teacher."""
        return [TrainingPass("sampled", self.sample(rng), True)]


@dataclass(frozen=True)
class Granularity:
    """One of the uniform scalings a step (MatFormer, Devvrit et al. 2023, arXiv 2310.07707)."""

    space: SearchSpace
    sample: SubnetSampler
    n_sampled: int

    def passes(self, progress: float, rng: Random) -> list[TrainingPass]:
        """It learns from the labels and from the teacher."""
        return [TrainingPass("sampled", rng.choice(self.space.uniform_scalings()), True)]


@dataclass(frozen=True)
class ProgressiveShrinking:
    """The largest and sampled subnetworks, of ever more of the choices (Cai et al. 2020, arXiv 1908.09791).

    Every dimension starts with the largest quarter of its choices, and has all in the last quarter of the training.
    """

    space: SearchSpace
    sample: SubnetSampler
    n_sampled: int

    def passes(self, progress: float, rng: Random) -> list[TrainingPass]:
        """The largest learns from the labels too."""
        open_space = self.space.with_largest(math.floor(1 + SHRINKING_STAGES * progress) / SHRINKING_STAGES)
        sample = self.sample if open_space.size == self.space.size else open_space.sample_mixed
        sampled = [TrainingPass("sampled", sample(rng), False) for _ in range(self.n_sampled + 1)]
        return [TrainingPass("largest", self.space.largest, True), *sampled]


def stratified_sampler(space: SearchSpace, cost: CostFunction) -> SubnetSampler:
    """Draws subnetworks whose cost, not whose choices, is spread between the smallest and the largest."""
    low, high = cost([space.smallest, space.largest])
    scalings = space.uniform_scalings()  # near the ends there is little else, and it is rarely drawn

    def sample(rng: Random) -> SubnetConfig:
        candidates = [*scalings, *(space.sample_mixed(rng) for _ in range(CANDIDATES))]
        target = low + (high - low) * rng.random()
        return candidates[int(np.argmin(np.abs(cost(candidates) - target)))]

    return sample


STRATEGIES: dict[str, Callable[[SearchSpace, SubnetSampler, int], Strategy]] = {
    "sandwich": Sandwich,
    "single-path": SinglePath,
    "granularity": Granularity,
    "progressive": ProgressiveShrinking,
}
"""Name in a recipe -> strategy, of a space, what draws subnetworks, and how many of those learn in a step."""

SUBNET_SAMPLERS: dict[str, Callable[[SearchSpace], SubnetSampler]] = {
    "mixed": lambda space: space.sample_mixed,
    "uniform": lambda space: space.sample,
}
"""Name in a recipe -> what draws subnetworks; the names of costs draw a stratified sample."""
