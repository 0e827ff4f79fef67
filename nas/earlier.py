"""Earlier runs: what was measured in them, reused on the same device and workload, and a prior on any other."""

from __future__ import annotations

from nas.run import Run
from predictors import MeasurementStore, SubnetPredictor
from search_spaces import SearchSpace, SubnetConfig


def reused(run: Run, space: SearchSpace) -> tuple[list[SubnetConfig], list[SubnetConfig]]:
    """Subnetworks of the space that earlier runs measured where this one measures; their latencies become its own.

    They count only beside the same anchor, because every latency is a multiple of the anchor's.

    Returns:
        Those drawn at random, and those that an earlier run chose (see `nas.stages.make_profile`).
    """
    workload, store, found, chosen = run.recipe.workload, run.store, dict[str, SubnetConfig](), set[str]()
    for earlier in _earlier(run):
        if not _is_alike(earlier, run):
            continue
        theirs = MeasurementStore(earlier.measurements, run.device)
        if any(earlier.predictor.glob("*")):
            predictor = SubnetPredictor.load(earlier.predictor)
            drawn = len(predictor.subnets) - predictor.report.n_chosen
            chosen |= {subnet.key for subnet in predictor.subnets[drawn:]}
        anchor = theirs.anchor(workload)
        if anchor is None or theirs.rows(workload, "anchor")[0].subnet != space.parent:
            continue
        if store.anchor(workload) is None:
            store.add(space.parent, workload, "anchor", anchor)
        for row in theirs.rows(workload, "profile"):
            if row.subnet in space:
                found[row.subnet.key] = row.subnet
                if store.get(row.subnet.key, workload, "profile") is None:
                    store.add(row.subnet, workload, "profile", row.timing)
    return [s for s in found.values() if s.key not in chosen], [s for s in found.values() if s.key in chosen]


def priors(run: Run) -> list[SubnetPredictor]:
    """Predictors of earlier runs on other devices or workloads.

    Raises:
        InputError: If a folder is no run, or holds no whole predictor.
    """
    return [SubnetPredictor.load(earlier.predictor) for earlier in _earlier(run) if not _is_alike(earlier, run)]


def _earlier(run: Run) -> list[Run]:
    return [Run(folder) for folder in run.recipe.profile.earlier]


def _is_alike(earlier: Run, run: Run) -> bool:
    return (earlier.device, earlier.recipe.workload) == (run.device, run.recipe.workload)
