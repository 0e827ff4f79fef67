"""The verify stage: exports, measures and scores the fronts of the search and its baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.fronts.confidence import hypervolume_intervals
from nas.fronts.front import ParetoFront, reference_point
from nas.fronts.point import Point
from nas.recipe.objectives import RATES, Bound, against_bounds, base_name, total_violation
from nas.recipe.schema import Recipe
from nas.reports.summary import bounds_line
from nas.runs.files import delete, write_json
from nas.runs.finished import read_finished
from nas.runs.parent_values import read_parent_values
from nas.runs.progress import print_line, progress, time_progress
from nas.runs.run import Run
from nas.runs.target import Target
from nas.stages.by_hand import layer_drop
from nas.stages.footprints import measure_footprints
from nas.stages.held_out import LEAST, PARENT, export_and_reload, score_held_out
from nas.stages.parent_runtimes import other_runtimes, parent_in_fastest_runtimes
from nas.studies.near_ties import offered_front
from nas.studies.study import STUDIES, evaluated_points, open_repeats, open_studies
from nas.supernets.latency import subnet_visit
from nas.supernets.load import load_supernet
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors import MeasurementStage, SubnetPredictor, Timing
from predictors.latency.throughput import per_second
from predictors.measurement.budget import Budget
from predictors.measurement.groups import shuffled
from predictors.measurement.prepare import prepare
from predictors.measurement.timing import REFERENCE, ReportedLatency, reported_latency
from search_spaces import InputError, SearchSpace, SubnetConfig

if TYPE_CHECKING:
    import optuna

PASSES: tuple[MeasurementStage, ...] = ("export", "repeat")
"""Exported models are measured twice; the difference estimates how far a repetition may deviate."""

SCORING_SHARE, RUNTIMES_SHARE = 0.5, 0.1
"""Most of the time that exporting and scoring may take, and the part for the parent in other runtimes; the rest is for
measuring what was scored."""


def run_verify(run: Run, context: TaskContext, cluster: str | None = None) -> None:
    """Scores and measures every subnetwork on the expected front of a study, and writes front.json.

    Each subnetwork is exported, reloaded and compared with the supernet or its finished model. The reloaded model is
    scored on the held-out split and measured twice, the second time reloaded again. These values decide whether it
    satisfies the constraints; a latency whose interval contains its bound is marked as undecided. The front holds the
    non-dominated models of all studies, baselines and int8 twins together.

    All this takes at most `verify.minutes`, but for what it has begun: the finished models come first, then the front
    of the search. What time does not suffice for stays as predicted, and the next call goes on with it.

    Args:
        run: The run, with its studies.
        context: The context of its recipe.
        cluster: Not used; latencies are measured on this device.

    Raises:
        InputError: If no verified subnetwork satisfies the constraints; the message has the closest.
    """
    recipe, budget = run.recipe, Budget.of_minutes(context.recipe.verify.minutes)
    supernet, space = load_supernet(run, context)
    studies = open_studies(run.study, recipe)
    candidates = {name: offered_front(run, study, recipe, space) for name, study in studies.items()}
    if not candidates["search"].points:
        predicted_bounds = recipe.with_parent(read_parent_values(run)).bounds
        _raise_infeasible(evaluated_points(studies["search"]), predicted_bounds)
    subnets = {model.subnet.key: model.subnet for model in read_finished(run)}
    subnets |= {point.key: point.subnet for point in candidates["search"]}
    dropped = _layer_drop(run, context, supernet, space, candidates["search"].knee().subnet)
    subnets |= {subnet.key: subnet for subnet in dropped}
    proposed = {point.key: point.subnet for front in candidates.values() for point in front}
    subnets |= proposed
    results = _verify_all(run, context, supernet, subnets, budget)
    left = 1 + len(subnets) - len(results)
    bounds = recipe.with_parent(results[PARENT]["values"]).bounds
    if recipe.relative_bounds:
        print_line(f"bounds     {bounds_line(recipe, results[PARENT]['values'])}")
    verified, parent = (
        _verified_points(run, studies, dropped, results, bounds),
        _to_point(results[PARENT], PARENT, bounds),
    )
    for target in run.targets:
        if not target.is_remote:
            print_line(f"verify{target.label}     {_summary(target, context.recipe, verified, left)}")
    offered = [point for point in verified if point.finished or point.key in proposed]  # else layer dropping by hand
    front = ParetoFront.of({point.key: point for point in reversed(offered)}.values(), recipe.objectives)
    if not front.points:
        _raise_infeasible(verified, bounds, left)
    resampled = {key: result.get("resampled", {}) for key, result in results.items()}
    compared = [*verified, parent, *parent_in_fastest_runtimes(run, context, parent, budget)]
    data = {
        "front": front.to_dict(),
        "verified": [point.to_dict() for point in compared],
        **_hypervolumes(offered, parent, resampled, recipe),
        "seeds": _volumes_by_seed(run, studies["search"], recipe),
        "left": left,
    }
    delete(run.report)
    write_json(run.front_file, data)


def _layer_drop(
    run: Run, context: TaskContext, supernet: Supernet, space: SearchSpace, knee: SubnetConfig
) -> list[SubnetConfig]:
    """The parent without some layers, in the supernet's weights, as fast as the knee; none where depth is fixed.

    One that the finish has trained takes its place.
    """
    varies = any(len(space.choices[name]) > 1 for name in space.depth_names)
    is_trained = any(model.source == "layer-drop" for model in read_finished(run))
    if is_trained or not varies or context.layout.family.shared_layers:
        return []
    dropped = layer_drop(run, context, supernet, knee)
    return [] if dropped is None else [dropped]


def _verified_points(
    run: Run,
    studies: Mapping[str, optuna.Study],
    dropped: Sequence[SubnetConfig],
    results: Mapping[str, dict[str, Any]],
    bounds: Mapping[str, Bound],
) -> list[Point]:
    """What is verified, once for each study that evaluated it, layer dropping, and what only the finish has."""
    sources = [(point.key, name) for name, study in studies.items() for point in evaluated_points(study)]
    sources += [(subnet.key, "layer-drop") for subnet in dropped]
    sources += [(model.subnet.key, model.source) for model in read_finished(run) if model.source not in studies]
    return [
        replace(_to_point(results[key], source, bounds), finished=(run.finished / key).exists())
        for key, source in sources
        if key in results
    ]


def _hypervolumes(
    verified: Sequence[Point], parent: Point, resampled: Mapping[str, Mapping[str, Sequence[float]]], recipe: Recipe
) -> dict[str, Any]:
    """The part of front.json on hypervolumes: their reference point, those of each study, and their intervals."""
    reference, by_study = reference_point([*verified, parent], recipe.objectives), _by_study(verified)
    return {
        "reference": reference,
        "hypervolume": {
            name: ParetoFront.of(points, recipe.objectives).hypervolume(reference) for name, points in by_study.items()
        },
        "hypervolume_interval": hypervolume_intervals(by_study, resampled, reference, recipe.objectives),
    }


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
    run: Run, context: TaskContext, supernet: Supernet, subnets: Mapping[str, SubnetConfig], budget: Budget
) -> dict[str, dict[str, Any]]:
    """Key -> metrics and costs of the parent and of each subnetwork that time suffices for; stored ones take none.

    Latencies that another device measures are predicted until they are imported (see `nas.commands.remote`).
    """
    models = {PARENT: supernet.parent, **subnets}
    with progress("verify") as report:
        part = budget.share(SCORING_SHARE)
        results = score_held_out(
            run, context, supernet, models, part, lambda done: report(done, len(models), "scored")
        )
    scored = [models[key] for key in results]
    reserved_s = RUNTIMES_SHARE * (budget.seconds or 0.0) if other_runtimes(run.recipe) else 0.0
    here = [target for target in run.targets if not target.is_remote]
    for number, target in enumerate(here):
        _measure(target, context, supernet, scored, budget.share(1 / (len(here) - number), reserved_s))
    results = {key: result for key, result in results.items() if all(_is_measured(t, models[key]) for t in here)}
    for target in run.targets:
        _add_latencies(target, results)
        _add_footprints(target, results)
    return results


def _measure(
    target: Target, context: TaskContext, supernet: Supernet, subnets: Sequence[SubnetConfig], budget: Budget
) -> None:
    """Measures latencies and footprints under a workload of this device."""
    part = budget.share(0.5) if target.footprint_names else budget
    _measure_latencies(target, context, supernet, {subnet.key: subnet for subnet in subnets}, part)
    measured = [subnet for subnet in subnets if target.store.get(subnet.key, target.workload, "export")]
    measure_footprints(target, context, supernet, measured, budget)


def _is_measured(target: Target, subnet: SubnetConfig) -> bool:
    """Whether all that is measured under a workload is known of an exported model."""
    has_footprints = {*target.footprint_names} <= target.footprints().get(subnet.key, {}).keys()
    return target.store.get(subnet.key, target.workload, "export") is not None and has_footprints


def _add_latencies(target: Target, results: Mapping[str, dict[str, Any]]) -> None:
    """Adds the latency of a workload to the results by key; ``predicted``: whether one of its latencies is."""
    name, predictor = target.cost_name("latency_ms"), target.load_predictor()
    for key, result in results.items():
        subnet = SubnetConfig.from_dict(result["subnet"])
        measured_ms = target.store.reported_latency(subnet.key, target.workload)
        latency = measured_ms or (_reference_latency(target) if key == PARENT else _predicted(predictor, subnet))
        result["values"][name], result["errors"][name] = latency.latency_ms, latency.error_ms
        result["predicted"] = result.get("predicted", False) or measured_ms is None
        for name_of_rate in (each for each in RATES if target.names(each)):
            rate = target.cost_name(name_of_rate)
            result["values"][rate] = float(per_second(name_of_rate, target.workload, np.array(latency.latency_ms)))
            result["errors"][rate] = result["values"][rate] * latency.error_ms / latency.latency_ms


def _add_footprints(target: Target, results: Mapping[str, dict[str, Any]]) -> None:
    """Adds the costs among `FOOTPRINTS` to the results by key, as far as the recipe names them."""
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


def _measure_latencies(
    target: Target, context: TaskContext, supernet: Supernet, subnets: Mapping[str, SubnetConfig], budget: Budget
) -> None:
    """Measures exported models in two passes, each in half of the time; without a limit all, once at least."""
    run, workload = target.run, target.workload
    rank = {model.subnet.key: 1 for model in read_finished(run)} | {supernet.parent.key: 0}
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
            least = len(missing) if context.recipe.verify.minutes is None else LEAST
            visit.least = least if number == 1 else 0
            visit.measure(sorted(shuffled(list(missing), number), key=lambda key: rank.get(key, 2)))


def _not_told_apart(timings: Mapping[str, Timing], precision: float) -> list[tuple[str, str]]:
    """Neighbours in latency whose intervals overlap, unless both are as precise as wanted."""
    ordered = sorted((key for key in timings if key != REFERENCE), key=lambda key: timings[key].ratio)
    return [
        (one, other)
        for one, other in pairwise(ordered)
        if timings[one].ratio_high >= timings[other].ratio_low
        and max(timings[one].precision, timings[other].precision) > precision
    ]


def _summary(target: Target, recipe: Recipe, points: Sequence[Point], left: int) -> str:
    """How sure the measured latencies are, what could not be told apart and what is left, with the way out."""
    store, latency = target.store, target.cost_name("latency_ms")
    keys = {point.key for point in points}
    timings = {m.subnet.key: m.timing for m in store.rows(target.workload, "export") if m.subnet.key in keys}
    repeated = sum(store.get(key, target.workload, "repeat") is not None for key in keys)
    widest = max((point.errors[latency] / point.values[latency] for point in points), default=0.0)
    parts = [f"{len(keys)} measured, {repeated} of them twice; latencies within ±{widest:.1%}"]
    if overlapping := len(_not_told_apart(timings, recipe.profile.precision)):
        parts.append(f"{overlapping} of {len(timings) - 1} neighbours in latency cannot be told apart in this noise")
    if undecided := len({point.key for point in points if latency in point.undecided}):
        parts.append(f"{undecided} cannot be told apart from a bound")
    if left:
        parts.append(f"{left} are left and stay as predicted; the same command goes on")
    if (left or overlapping or repeated < len(keys)) and recipe.verify.minutes is not None:
        parts.append(f"more time: `verify.minutes={2 * recipe.verify.minutes:g}`")
    return "; ".join(parts)


def _to_point(result: dict[str, Any], source: str, bounds: Mapping[str, Bound]) -> Point:
    feasible = all(bound.violation(result["values"][name]) <= 0 for name, bound in bounds.items())
    latencies = {name: bound for name, bound in bounds.items() if base_name(name) == "latency_ms"}
    verdicts = {n: bound.verdict(result["values"][n], result["errors"][n]) for n, bound in latencies.items()}
    subnet = SubnetConfig.from_dict(result["subnet"])
    state = {"measured": True, "feasible": feasible, "predicted": result["predicted"]}
    state["undecided"] = tuple(name for name, verdict in verdicts.items() if verdict == "undecided")
    return Point(subnet, result["values"], result["errors"], source, **state)  # type: ignore[arg-type]


def _raise_infeasible(evaluated: Sequence[Point], bounds: Mapping[str, Bound], left: int = 0) -> None:
    closest = min(evaluated, key=lambda point: total_violation(point.values, bounds))
    where = "as measured on its export" if closest.measured else "as predicted"
    undecided = sum(bool(point.undecided) for point in evaluated)
    where += f" ({undecided} cannot be told apart from the bound in this noise)" if undecided else ""
    way_out = "Loosen the constraint, or add smaller choices to `space` in a new run."
    if left:
        way_out = f"`verify.minutes` left {left} others; type the same command again to go on with them."
    raise InputError(
        f"no subnetwork meets the constraints {where}; the closest of {len(evaluated)} "
        f"reaches {against_bounds(closest.values, bounds)} ({closest.subnet}). {way_out}"
    )
