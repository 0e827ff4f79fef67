"""Verify: the fronts of the search and of its baselines, exported, measured and scored on the held-out split."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas.config import Recipe
from nas.engine.study import STUDIES, open_studies, points
from nas.evaluator import Evaluator
from nas.exports.export import reload_here, save_subnet
from nas.figures import COSTS, excess, reached
from nas.fronts.front import ParetoFront, reference_point
from nas.fronts.point import Point
from nas.progress import progress
from nas.run import Run, write_json
from nas.stages import MEASURED_TOGETHER, load_supernet, time_models
from nas.supernets.supernet import Supernet
from nas.tasks.evaluation import score
from nas.tasks.workbench import Workbench
from predictors import AnalyticCosts, MeasurementStore, SubnetPredictor
from search_spaces import InputError, SubnetConfig


def verify(run: Run, bench: Workbench, predictor: SubnetPredictor) -> dict[str, Any]:
    """Measures and scores every subnetwork on the front of a study, and writes front.json.

    The front is what no other of them beats, whichever study it comes from.

    A subnetwork is saved as a model folder, reloaded, compared with the supernet, and it is the reloaded model that is
    measured and scored. Constraints are judged on these figures.

    Returns:
        What front.json holds.

    Raises:
        InputError: If no verified subnetwork meets the constraints; names the closest.
    """
    recipe = run.recipe
    supernet, _ = load_supernet(run, bench)
    studies = open_studies(run.study, recipe)
    candidates = {name: ParetoFront.of(points(study), recipe.objectives).points for name, study in studies.items()}
    if not candidates["search"]:
        _refuse_infeasible(run, points(studies["search"]))
    figures = _measured(run, bench, supernet, predictor, [p for found in candidates.values() for p in found])
    verified = [
        _point(figures[point.key], name, recipe.bounds)
        for name, study in studies.items()
        for point in points(study)
        if point.key in figures
    ]
    parent = _parent_point(run, bench, supernet)
    front = ParetoFront.of({point.key: point for point in reversed(verified)}.values(), recipe.objectives)
    if not front.points:
        _refuse_infeasible(run, verified)
    reference = reference_point([*verified, parent], recipe.objectives)
    results = {
        "front": front.to_dict(),
        "verified": [point.to_dict() for point in [*verified, parent]],
        "reference": reference,
        "hypervolume": _hypervolumes(verified, reference, recipe),
    }
    write_json(run.front_file, results)
    return results


def _hypervolumes(verified: Sequence[Point], reference: dict[str, float], recipe: Recipe) -> dict[str, float]:
    """What each study dominates with those of its subnetworks that were verified.

    The search evaluates the uniform scalings first, so it can only add to them; ``sampler`` is what it adds alone.
    """
    by_study = {name: [p for p in verified if p.source == name] for name in STUDIES}
    uniform = {point.key for point in by_study["uniform"]}
    by_study["sampler"] = [point for point in by_study["search"] if point.key not in uniform]
    return {name: ParetoFront.of(found, recipe.objectives).hypervolume(reference) for name, found in by_study.items()}


def _measured(
    run: Run, bench: Workbench, supernet: Supernet, predictor: SubnetPredictor, found: Sequence[Point]
) -> dict[str, dict[str, Any]]:
    """Key -> stored figures of each verified subnetwork; those in verified.jsonl are not done again."""
    done = _read_lines(run.verified)
    evaluator = Evaluator(run.recipe, supernet, bench.splits.test, predictor)
    subnets = {point.key: point.subnet for point in found if point.key not in done}
    order = list(subnets.values())
    with progress("verify") as report:
        for start in range(0, len(order), MEASURED_TOGETHER):
            group = order[start : start + MEASURED_TOGETHER]
            for line in _verify_group(run, bench, evaluator, group):
                done[line["key"]] = line
                _append_line(run.verified, line)
            report(start + len(group), len(order), "")
    return done


def _verify_group(
    run: Run, bench: Workbench, evaluator: Evaluator, group: Sequence[SubnetConfig]
) -> list[dict[str, Any]]:
    """Exports, reloads, measures (unless stored) and scores some subnetworks."""
    store, workload, models = MeasurementStore(run.measurements), run.recipe.workload, {}
    for subnet in group:
        with tempfile.TemporaryDirectory(dir=run.folder, prefix=".verify-") as folder:
            save_subnet(evaluator.supernet, subnet, bench, Path(folder))
            models[subnet.key] = reload_here(Path(folder), evaluator.supernet, subnet, bench)
    scores = {key: score(model, bench.splits.test, run.recipe.qualities) for key, model in models.items()}
    missing = {s.key: models[s.key] for s in group if store.get(s.key, workload, "export") is None}
    timed = time_models(bench, evaluator.supernet, missing, store) if missing else {}
    for subnet in group:
        if subnet.key in timed:
            store.add(subnet, workload, "export", timed[subnet.key])
    lines = []
    for subnet in group:
        timing = store.get(subnet.key, workload, "export")
        assert timing is not None
        values = {**evaluator.costs(subnet), "latency_ms": timing.latency_ms}
        errors = {"latency_ms": (timing.latency_ms_p90 - timing.latency_ms_p10) / 2}
        for name, found in scores[subnet.key].items():
            values[name], errors[name] = found.value, found.standard_error
        lines.append({"key": subnet.key, "subnet": subnet.to_dict(), "values": values, "errors": errors})
    return lines


def _parent_point(run: Run, bench: Workbench, supernet: Supernet) -> Point:
    """The fine-tuned parent itself: its own weights, measured and scored like everything else."""
    done = _read_lines(run.verified)
    if "parent" not in done:
        model = bench.load_model(run.parent).to(supernet.model.device).eval()
        scores = score(model, bench.splits.test, run.recipe.qualities)
        store = MeasurementStore(run.measurements)
        timed = store.get(supernet.parent.key, run.recipe.workload, "export")
        if timed is None:
            timed = time_models(bench, supernet, {"parent": model}, store)["parent"]
            store.add(supernet.parent, run.recipe.workload, "export", timed)
        counts, length = AnalyticCosts.of(supernet.model, supernet.layout), run.recipe.workload.sequence_length
        values = {name: counts.count(name, supernet.parent, length) for name in COSTS if name != "latency_ms"}
        values |= {"latency_ms": timed.latency_ms, **{n: s.value for n, s in scores.items()}}
        errors = {"latency_ms": (timed.latency_ms_p90 - timed.latency_ms_p10) / 2}
        errors |= {name: s.standard_error for name, s in scores.items()}
        done["parent"] = {"key": "parent", "subnet": supernet.parent.to_dict(), "values": values, "errors": errors}
        _append_line(run.verified, done["parent"])
    return _point(done["parent"], "parent", run.recipe.bounds)


def _point(line: dict[str, Any], source: str, bounds: dict[str, Any]) -> Point:
    feasible = all(bound.violation(line["values"][name]) <= 0 for name, bound in bounds.items())
    subnet = SubnetConfig.from_dict(line["subnet"])
    return Point(subnet, line["values"], line["errors"], source, measured=True, feasible=feasible)  # type: ignore[arg-type]


def _refuse_infeasible(run: Run, tried: Sequence[Point]) -> None:
    bounds = run.recipe.bounds
    closest = min(tried, key=lambda point: excess(point.values, bounds))
    where = "as measured on its export" if closest.measured else "as predicted"
    raise InputError(
        f"no subnetwork meets the constraints {where}; the closest of {len(tried)} reaches "
        f"{reached(closest.values, bounds)} ({closest.subnet}). Loosen the constraint or add smaller choices to "
        "`space`, in a new run."
    )


def _read_lines(path: Path) -> dict[str, dict[str, Any]]:
    """Key -> line of a JSON lines file; a last line that a kill cut short is left out and cut off."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        path.write_bytes(whole)
    try:
        return {line["key"]: line for line in map(json.loads, whole.splitlines())}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"`{path}` is damaged ({error}); delete it and type the same command again.") from None


def _append_line(path: Path, line: dict[str, Any]) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
