"""Strategies of supernet training: which subnetworks are trained in a step, and how they are sampled."""

from __future__ import annotations

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
"""Returns a cost of each subnetwork (n,)."""

CANDIDATES = 32
"""Subnetworks drawn for one stratified sample; the one closest to the target cost is kept."""


@dataclass(frozen=True)
class TrainingPass:
    """One forward and backward pass of a step: a subnetwork, and whether its loss includes the labels."""

    role: Role
    subnet: SubnetConfig
    uses_labels: bool


class Strategy(Protocol):
    """Chooses the subnetworks that are trained in one step."""

    def passes(self, progress: float, rng: Random) -> list[TrainingPass]:
        """Returns the passes of a step, the largest subnetwork first; ``progress`` is the share of training done."""
        ...


@dataclass(frozen=True)
class Sandwich:
    """The largest, the smallest and some sampled subnetworks (Yu & Huang 2019, arXiv 1903.05134)."""

    space: SearchSpace
    sample: SubnetSampler
    n_sampled: int

    def passes(self, progress: float, rng: Random) -> list[TrainingPass]:
        """Returns the passes of a step; only the largest subnetwork learns from the labels too."""
        extremes = [
            TrainingPass("largest", self.space.largest, True),
            TrainingPass("smallest", self.space.smallest, False),
        ]
        return extremes + [TrainingPass("sampled", self.sample(rng), False) for _ in range(self.n_sampled)]


@dataclass(frozen=True)
class SinglePath:
    """One sampled subnetwork per step (Guo et al. 2019, arXiv 1904.00420; AutoFormer, arXiv 2107.00651)."""

    space: SearchSpace
    sample: SubnetSampler
    n_sampled: int

    def passes(self, progress: float, rng: Random) -> list[TrainingPass]:
        """Returns one pass; the subnetwork learns from the labels and from the teacher."""
        return [TrainingPass("sampled", self.sample(rng), True)]


@dataclass(frozen=True)
class Granularity:
    """One of the uniform scalings per step (MatFormer, Devvrit et al. 2023, arXiv 2310.07707)."""

    space: SearchSpace
    sample: SubnetSampler
    n_sampled: int

    def passes(self, progress: float, rng: Random) -> list[TrainingPass]:
        """Returns one pass; the subnetwork learns from the labels and from the teacher."""
        return [TrainingPass("sampled", rng.choice(self.space.uniform_scalings()), True)]


@dataclass(frozen=True)
class Chosen:
    """One of a few given subnetworks per step."""

    subnets: Sequence[SubnetConfig]

    def passes(self, progress: float, rng: Random) -> list[TrainingPass]:
        """Returns one pass; the subnetwork learns from the labels and from the teacher."""
        return [TrainingPass("sampled", rng.choice(self.subnets), True)]


def stratified_sampler(space: SearchSpace, cost: CostFunction) -> SubnetSampler:
    """Returns a sampler whose subnetworks are uniform in cost, between the smallest and the largest."""
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
}
"""Name in a recipe -> strategy. Its arguments: the space, the sampler, the number of sampled subnetworks per step."""

SUBNET_SAMPLERS: dict[str, Callable[[SearchSpace], SubnetSampler]] = {
    "mixed": lambda space: space.sample_mixed,
    "uniform": lambda space: space.sample,
}
"""Name in a recipe -> sampler of subnetworks; the name of a cost stands for a stratified sampler."""
