"""Near ties: what more examples for them do to the front that is offered, where scores are noisy.

    python -m experiments.bench.near_ties [--seeds 10]

Sixty subnetworks of a tiny BERT whose accuracy grows with their widths; their scores have a standard error of 0.03,
and those on further examples too. Means over seeds, before and after: the true hypervolume of the front by expected
values, the accuracy that its points promise beyond what is true, and by how much they are off.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from random import Random

import numpy as np

from experiments.bench.stand_in import stand_in_evaluator, stand_in_recipe, subnet_widths
from nas.fronts.front import ParetoFront
from nas.fronts.point import Point
from nas.recipe.schema import Recipe
from nas.studies.expected_front import expected_front
from nas.studies.near_ties import near_ties, with_more_examples
from nas.studies.startup_trials import first_distinct
from search_spaces import SearchSpace, SubnetConfig

ERROR, CORNER = 0.03, {"accuracy": 0.4, "latency_ms": 5.0}


def true_accuracy(subnet: SubnetConfig) -> float:
    """The accuracy without noise."""
    return 0.5 + sum(map(sum, subnet_widths(subnet))) / 4000


def scored(space: SearchSpace, seed: int) -> list[Point]:
    """Subnetworks with noisy scores; the latency is the number of layers."""
    rng, noise = Random(0), np.random.default_rng(seed)
    subnets = first_distinct(iter(space.sample(rng) for _ in range(400)), 60)
    points = []
    for subnet in subnets:
        values = {"accuracy": true_accuracy(subnet) + noise.normal(0, ERROR)}
        values["latency_ms"] = float(subnet.num_hidden_layers)
        points.append(Point(subnet, values, {"accuracy": ERROR, "latency_ms": 0.0}))
    return points


def offered(space: SearchSpace, recipe: Recipe, seed: int) -> tuple[ParetoFront, ParetoFront]:
    """The front by expected values without and with more examples for near ties."""
    points, noise = scored(space, seed), np.random.default_rng(100 + seed)
    ties = near_ties(points, recipe, space)
    more = {tie.key: {"accuracy": (true_accuracy(tie.subnet) + noise.normal(0, ERROR), ERROR)} for tie in ties}
    before, after = (expected_front(each, recipe, space) for each in (points, with_more_examples(points, more)))
    return before, after


def true_volume(front: ParetoFront) -> float:
    """The hypervolume of a front with the true accuracies."""
    points = [replace(p, values={**p.values, "accuracy": true_accuracy(p.subnet)}) for p in front]
    return ParetoFront.of(points, front.objectives).hypervolume(CORNER)


def excess(front: ParetoFront) -> np.ndarray:
    """By how much each point of a front promises more than is true."""
    return np.array([point.values["accuracy"] - true_accuracy(point.subnet) for point in front])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    recipe = stand_in_recipe(40)
    space = stand_in_evaluator(recipe, layers=4)[0]
    fronts = [offered(space, recipe, seed) for seed in range(seeds)]
    print("| | true hypervolume | promised too much | off by |\n|---|---|---|---|")
    for name, of_seeds in zip(("before", "after"), zip(*fronts, strict=True), strict=True):
        volumes = [true_volume(front) for front in of_seeds]
        off = [excess(front) for front in of_seeds]
        means = np.mean([[each.mean(), np.abs(each).mean()] for each in off], axis=0)
        print(f"| {name} | {np.mean(volumes):.4f} | {means[0]:.4f} | {means[1]:.4f} |")


if __name__ == "__main__":
    main()
