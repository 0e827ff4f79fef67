"""The verify stage: exports, measures and scores the fronts of the search and its baselines."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.exports.export import reload_in_process, save_subnet, weights_of
from nas.fronts.confidence import hypervolume_intervals
from nas.fronts.front import ParetoFront, reference_point
from nas.fronts.point import Point
from nas.modeling.cast import cast_weights
from nas.recipe.objectives import INHERITED_SUFFIX, Bound, against_bounds, base_name, total_violation
from nas.recipe.schema import Recipe
from nas.reports.summary import bounds_line
from nas.runs.files import write_json
from nas.runs.finished import read_finished
from nas.runs.parent_values import read_parent_values
from nas.runs.progress import print_line, progress, time_progress
from nas.runs.run import Run
from nas.runs.target import Target
from nas.stages.footprints import measure_footprints
from nas.stages.parent_runtimes import parent_in_fastest_runtimes
from nas.studies.near_ties import offered_front
from nas.studies.study import STUDIES, evaluated_points, open_repeats, open_studies
from nas.supernets.counted_costs import count_costs
from nas.supernets.latency import subnet_visit
from nas.supernets.load import load_supernet
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from predictors import AnalyticCosts, MeasurementStage, SubnetPredictor, Timing
from predictors.latency.throughput import samples_per_second
from predictors.measurement.budget import Budget
from predictors.measurement.groups import shuffled
from predictors.measurement.json_lines import JsonLines
from predictors.measurement.prepare import prepare
from predictors.measurement.timing import REFERENCE, ReportedLatency, reported_latency
from search_spaces import InputError, SubnetConfig

if TYPE_CHECKING:
    import optuna
    from transformers import PreTrainedModel

PASSES: tuple[MeasurementStage, ...] = ("export", "repeat")
"""Exported models are measured twice; the difference estimates how far a repetition may deviate."""

PARENT = "parent"


def run_verify(run: Run, context: TaskContext, cluster: str | None = None) -> None:
    """Scores and measures every subnetwork on the expected front of a study, and writes front.json.

    Each subnetwork is exported, reloaded and compared with the supernet or its finished model. The reloaded model is
    scored on the held-out split and measured twice, the second time reloaded again, as far as `verify.minutes`
    allows. These values decide whether it satisfies the constraints; a latency whose interval contains its bound is
    marked as undecided. The front holds the non-dominated models of all studies, baselines and int8 twins together.

    Args:
        run: The run, with its studies.
        context: The context of its recipe.
        cluster: Not used; latencies are measured on this device.

    Raises:
        InputError: If no verified subnetwork satisfies the constraints; the message has the closest.
    """
    recipe = run.recipe
    supernet, space = load_supernet(run, context)
    studies = open_studies(run.study, recipe)
    candidates = {name: offered_front(run, study, recipe, space).points for name, study in studies.items()}
    if not candidates["search"]:
        predicted_bounds = recipe.with_parent(read_parent_values(run)).bounds
        _raise_infeasible(evaluated_points(studies["search"]), predicted_bounds)
    finished = read_finished(run)
    subnets = {point.key: point.subnet for front in candidates.values() for point in front}
    subnets |= {model.subnet.key: model.subnet for model in finished}
    results = _verify_all(run, context, supernet, subnets)
    sources = [(point.key, name) for name, study in studies.items() for point in evaluated_points(study)]
    sources += [(model.subnet.key, model.source) for model in finished if model.source not in studies]
    bounds = recipe.with_parent(results[PARENT]["values"]).bounds
    if recipe.relative_bounds:
        print_line(f"bounds     {bounds_line(recipe, results[PARENT]['values'])}")
    verified = [
        replace(_to_point(results[key], source, bounds), finished=(run.finished / key).exists())
        for key, source in sources
        if key in results
    ]
    parent = _to_point(results[PARENT], PARENT, bounds)
    for target in run.targets:
        if not target.is_remote:
            print_line(f"verify{target.label}     {_summary(target, verified)}")
    front = ParetoFront.of({point.key: point for point in reversed(verified)}.values(), recipe.objectives)
    if not front.points:
        _raise_infeasible(verified, bounds)
    reference, by_study = reference_point([*verified, parent], recipe.objectives), _by_study(verified)
    resampled = {key: result.get("resampled", {}) for key, result in results.items()}
    compared = [*verified, parent, *parent_in_fastest_runtimes(run, context, parent)]
    data = {
        "front": front.to_dict(),
        "verified": [point.to_dict() for point in compared],
        "reference": reference,
        "hypervolume": {
            name: ParetoFront.of(points, recipe.objectives).hypervolume(reference) for name, points in by_study.items()
        },
        "hypervolume_interval": hypervolume_intervals(by_study, resampled, reference, recipe.objectives),
        "seeds": _volumes_by_seed(run, studies["search"], recipe),
    }
    write_json(run.front_file, data)


def _volumes_by_seed(run: Run, search: optuna.Study, recipe: Recipe) -> list[float]:
    """The hypervolume of the search and of each repeated one as predicted, from one reference point."""
    searches = [evaluated_points(study) for study in (search, *open_repeats(run.study, recipe).values())]
    reference = reference_point([point for points in searches for point in points], recipe.objectives)
    return [ParetoFront.of(points, recipe.objectives).hypervolume(reference) for points in searches]


def _by_study(verified: Sequence[Point]) -> dict[str, list[Point]]:
    """The verified subnetworks of each study.

    The search evaluates the uniform scalings first, so it includes them; ``sampler`` is the search without them.
    """
    by_study = {name: [p for p in verified if p.source == name] for name in STUDIES}
    uniform = {point.key for point in by_study["uniform"]}
    by_study["sampler"] = [point for point in by_study["search"] if point.key not in uniform]
    return by_study


def _verify_all(
    run: Run, context: TaskContext, supernet: Supernet, subnets: Mapping[str, SubnetConfig]
) -> dict[str, dict[str, Any]]:
    """Key -> metrics and costs of each subnetwork and of the parent; stored ones are not computed again.

    Latencies that another device measures are predicted until they are imported (see `nas.commands.remote`).
    """
    scored = {**subnets, PARENT: supernet.parent}
    with progress("verify") as report:
        results = _score_all(run, context, supernet, scored, lambda done: report(done, len(scored), "scored"))
    for target in run.targets:
        if not target.is_remote:
            _measure_all(target, context, supernet, {subnet.key: subnet for subnet in scored.values()})
            measure_footprints(target, context, supernet, list(scored.values()))
        _add_latencies(target, results)
        _add_footprints(target, results)
    return results


def _add_latencies(target: Target, results: Mapping[str, dict[str, Any]]) -> None:
    """Adds the latency of a workload to the results by key; ``predicted``: whether one of its latencies is."""
    name, predictor = target.cost_name("latency_ms"), target.load_predictor()
    for key, result in results.items():
        subnet = SubnetConfig.from_dict(result["subnet"])
        measured_ms = target.store.reported_latency(subnet.key, target.workload)
        latency = measured_ms or (_reference_latency(target) if key == PARENT else _predicted(predictor, subnet))
        result["values"][name], result["errors"][name] = latency.latency_ms, latency.error_ms
        result["predicted"] = result.get("predicted", False) or measured_ms is None
        if target.names("samples_per_second"):
            rate = target.cost_name("samples_per_second")
            result["values"][rate] = float(samples_per_second(target.workload, np.array(latency.latency_ms)))
            result["errors"][rate] = result["values"][rate] * latency.error_ms / latency.latency_ms


def _add_footprints(target: Target, results: Mapping[str, dict[str, Any]]) -> None:
    """Adds memory and energy to the results by key, as far as the recipe names them."""
    measured = target.footprints() if target.footprint_names else {}
    for result in results.values() if measured else ():
        own = measured[SubnetConfig.from_dict(result["subnet"]).key]
        result["values"] |= {target.cost_name(cost): own[cost] for cost in target.footprint_names}


def _predicted(predictor: SubnetPredictor, subnet: SubnetConfig) -> ReportedLatency:
    return ReportedLatency(float(predictor.predict([subnet])[0]), float(predictor.spread_ms([subnet])[0]))


def _reference_latency(target: Target) -> ReportedLatency:
    """The parent's latency as the reference model."""
    timing = target.store.reference(target.workload)
    assert timing is not None
    return reported_latency(timing, None, [])


def _score_all(
    run: Run,
    context: TaskContext,
    supernet: Supernet,
    subnets: Mapping[str, SubnetConfig],
    report: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    """Key -> metrics on the held-out split and exact costs, kept in verified.jsonl.

    A model that was chosen from the search and finished also has the metrics of the weights that it inherited.
    """
    file = verified_file(run)
    inheriting = {model.subnet.key for model in read_finished(run) if model.source == "search"}
    done = dict(file.read())
    counts = AnalyticCosts.from_model(supernet.model, supernet.layout, run.recipe.task.type, supernet.dtype)
    for number, (key, subnet) in enumerate(subnets.items(), 1):
        is_finished = (run.finished / key).exists()
        is_current = key in done and done[key].get("finished", False) == is_finished  # else with other weights
        if not is_current or not done[key]["values"].keys() >= set(run.recipe.metric_names):
            model = (
                _parent(run, supernet, context) if key == PARENT else export_and_reload(run, context, supernet, subnet)
            )
            test = context.of(subnet).splits.test
            scores = score(model, test, run.recipe.metric_names)
            counted = count_costs(counts, run.recipe, [subnet])
            values = {name: float(value[0]) for name, value in counted.items()}
            values |= {name: metric.value for name, metric in scores.items()}
            errors = {name: metric.standard_error for name, metric in scores.items()}
            if key in inheriting:
                inherited = score(supernet.extract(subnet), test, run.recipe.metric_names)
                values |= {name + INHERITED_SUFFIX: metric.value for name, metric in inherited.items()}
                errors |= {name + INHERITED_SUFFIX: metric.standard_error for name, metric in inherited.items()}
            line = {"key": key, "subnet": subnet.to_dict(), "values": values, "errors": errors}
            line["resampled"] = {name: [float(f"{v:.6g}") for v in m.resampled] for name, m in scores.items()}
            done[key] = {**line, "finished": is_finished}
            file.append([done[key]])
        report(number)
    return {key: done[key] for key in subnets}


def _measure_all(
    target: Target, context: TaskContext, supernet: Supernet, subnets: Mapping[str, SubnetConfig]
) -> None:
    """Measures exported models in two passes, each in half of the time; all are measured once whatever the time."""
    run, workload = target.run, target.workload
    budget = Budget.of_minutes(run.recipe.verify.minutes)
    for number, stage in enumerate(PASSES, 1):
        missing = {key: s for key, s in subnets.items() if target.store.get(key, workload, stage) is None}
        if not missing:
            continue
        part = budget.share(1 / (len(PASSES) + 1 - number))
        with time_progress(f"verify{target.label}", part) as report:
            visit = subnet_visit(
                target,
                context,
                supernet,
                missing,
                stage,
                part,
                load=lambda subnet: prepare(
                    export_and_reload(run, context, supernet, subnet),
                    context.workload_inputs(subnet, workload),
                    workload,
                ),
                report=report,
                enough=lambda timings: not _not_told_apart(timings, run.recipe.profile.precision),
                note=f"pass {number} of {len(PASSES)}".__str__,
                seed=number,
            )
            visit.least = len(missing) if number == 1 else 0
            visit.measure(shuffled(list(missing), number))


def _not_told_apart(timings: Mapping[str, Timing], precision: float) -> list[tuple[str, str]]:
    """Neighbours in latency whose intervals overlap, unless both are as precise as wanted."""
    ordered = sorted((key for key in timings if key != REFERENCE), key=lambda key: timings[key].ratio)
    return [
        (one, other)
        for one, other in pairwise(ordered)
        if timings[one].ratio_high >= timings[other].ratio_low
        and max(timings[one].precision, timings[other].precision) > precision
    ]


def _summary(target: Target, points: Sequence[Point]) -> str:
    """How sure the measured latencies are, and what could not be told apart, with the way out."""
    recipe, store, latency = target.run.recipe, target.store, target.cost_name("latency_ms")
    keys = {point.key for point in points}
    timings = {m.subnet.key: m.timing for m in store.rows(target.workload, "export") if m.subnet.key in keys}
    repeated = sum(store.get(key, target.workload, "repeat") is not None for key in keys)
    widest = max((point.errors[latency] / point.values[latency] for point in points), default=0.0)
    parts = [f"{len(keys)} measured, {repeated} of them twice; latencies within ±{widest:.1%}"]
    if overlapping := len(_not_told_apart(timings, recipe.profile.precision)):
        parts.append(f"{overlapping} of {len(timings) - 1} neighbours in latency cannot be told apart in this noise")
    if undecided := len({point.key for point in points if latency in point.undecided}):
        parts.append(f"{undecided} cannot be told apart from a bound")
    if (overlapping or repeated < len(keys)) and recipe.verify.minutes is not None:
        parts.append(f"more time: `verify.minutes={2 * recipe.verify.minutes:g}`")
    return "; ".join(parts)


def export_and_reload(run: Run, context: TaskContext, supernet: Supernet, subnet: SubnetConfig) -> PreTrainedModel:
    """Exports a subnetwork, reloads it and checks that its outputs equal the supernet's or the finished model's."""
    with tempfile.TemporaryDirectory(dir=run.folder, prefix=".verify-") as folder:
        weights = weights_of(run, supernet, subnet, context)
        save_subnet(weights, subnet, context, Path(folder))
        return reload_in_process(Path(folder), weights, subnet, context)


def _parent(run: Run, supernet: Supernet, context: TaskContext) -> PreTrainedModel:
    """The parent with its own weights, in their original order."""
    model = cast_weights(context.load_model(run.parent), context.dtype)
    return model.to(supernet.model.device).eval()


def _to_point(result: dict[str, Any], source: str, bounds: Mapping[str, Bound]) -> Point:
    feasible = all(bound.violation(result["values"][name]) <= 0 for name, bound in bounds.items())
    latencies = {name: bound for name, bound in bounds.items() if base_name(name) == "latency_ms"}
    verdicts = {n: bound.verdict(result["values"][n], result["errors"][n]) for n, bound in latencies.items()}
    subnet = SubnetConfig.from_dict(result["subnet"])
    state = {"measured": True, "feasible": feasible, "predicted": result["predicted"]}
    state["undecided"] = tuple(name for name, verdict in verdicts.items() if verdict == "undecided")
    return Point(subnet, result["values"], result["errors"], source, **state)  # type: ignore[arg-type]


def _raise_infeasible(evaluated: Sequence[Point], bounds: Mapping[str, Bound]) -> None:
    closest = min(evaluated, key=lambda point: total_violation(point.values, bounds))
    where = "as measured on its export" if closest.measured else "as predicted"
    undecided = sum(bool(point.undecided) for point in evaluated)
    where += f" ({undecided} cannot be told apart from the bound in this noise)" if undecided else ""
    raise InputError(
        f"no subnetwork meets the constraints {where}; the closest of {len(evaluated)} "
        f"reaches {against_bounds(closest.values, bounds)} ({closest.subnet}). Loosen the constraint, or "
        "add smaller choices to `space` in a new run."
    )


def verified_file(run: Run) -> JsonLines[tuple[str, dict[str, Any]]]:
    """The verified subnetworks of a run, one JSON line each, as pairs of key and line."""
    fix = "delete that line and type the same command again"
    return JsonLines(run.verified, lambda line: (line["key"], line), row="a verified subnetwork", fix=fix)
