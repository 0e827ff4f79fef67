"""The results of a run in the terminal, and the one-line summaries that the report shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group

from nas.fronts.baselines import baseline_rows
from nas.fronts.front import ParetoFront, minimized_values
from nas.fronts.point import Point
from nas.recipe.objectives import format_value
from nas.recipe.schema import Recipe
from nas.runs.finetuned import load_finetuned
from nas.runs.progress import console, print_line
from nas.runs.run import Run
from nas.runs.target import Target
from predictors import Errors, SubnetPredictor

BASELINES = ("depth-only", "macs", "linear", "roofline")


def predictor_line(predictor: SubnetPredictor) -> str:
    """The held-out error of the latency predictor and of its baselines."""
    report = predictor.report
    e = report.held_out_errors
    return (
        f"{report.model}: error {e.mape_percent:.1f} %, RMSE {e.rmse_ms:.2g} ms and Kendall tau {e.kendall_tau:.2f} "
        f"on {report.n_test} held-out of {report.n_train + report.n_test} measured, each extracted "
        f"({_baseline_errors(report.held_out, lambda e: f'{e.mape_percent:.1f} %')})"
    )


def near_bound_line(predictor: SubnetPredictor) -> str:
    """The predictor's error near the latency bound; without a bound, its rank correlation among similar latencies."""
    report = predictor.report
    if not report.near_bound or not report.n_near_bound:
        return f"{report.bound_description}: the error there is unknown"
    near = report.near_bound
    e, tau = near[report.model], f"Kendall tau {near[report.model].kendall_tau:.2f}"
    if report.bound_ms is None:
        return f"{tau} of {report.bound_description} ({_baseline_errors(near, lambda e: f'{e.kendall_tau:.2f}')})"
    return (
        f"error {e.mape_percent:.1f} %, RMSE {e.rmse_ms:.2g} ms and {tau} of {report.bound_description} "
        f"({_baseline_errors(near, lambda e: f'{e.mape_percent:.1f} % {e.kendall_tau:.2f}')})"
    )


def _baseline_errors(errors: Mapping[str, Errors], text: Callable[[Errors], str]) -> str:
    return ", ".join(f"{name} {text(errors[name])}" for name in BASELINES if name in errors)


def hypervolume_line(results: dict[str, Any]) -> str:
    """The hypervolumes of the search, of the search without its initial uniform scalings, and of the baselines."""
    intervals, left = results.get("hypervolume_interval", {}), results.get("left", 0)
    volumes = {name: _with_interval(value, intervals.get(name)) for name, value in results["hypervolume"].items()}
    reference = ", ".join(f"{name} {format_value(name, value)}" for name, value in results["reference"].items())
    gain = intervals.get("gain")
    note = (
        ""
        if gain is None
        else f"; search without uniform scalings minus random {gain[0]:.3g} to {gain[1]:.3g}; "
        "[90 % of resamples of the held-out examples]"
    )
    note += f"; {left} subnetworks of these fronts are not verified yet, the same command goes on" if left else ""
    return (
        f"search {volumes['search']} ({volumes['sampler']} without the uniform scalings it starts from), "
        f"uniform {volumes['uniform']}, random {volumes['random']}{note}; reference point: {reference}"
    )


def _with_interval(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.4g}" if interval is None else f"{value:.4g} [{interval[0]:.4g}, {interval[1]:.4g}]"


def seeds_line(results: dict[str, Any]) -> str:
    """The hypervolumes of the searches with other seeds and their spread; empty for one search."""
    volumes = results.get("seeds", [])
    if len(volumes) < 2:
        return ""
    each = ", ".join(f"{volume:.4g}" for volume in volumes)
    return (
        f"hypervolume {np.mean(volumes):.4g} ± {np.std(volumes, ddof=1):.2g} (standard deviation) of {len(volumes)} "
        f"searches, as predicted: {each}"
    )


def int8_line(front: ParetoFront, verified: Sequence[Point]) -> str:
    """What the front must be told first: that it does not beat the parent with int8 layers; empty if it does.

    A model beats another if it is at least as good in every objective, and better in one.
    """
    int8 = next((point for point in verified if point.source == "parent-int8"), None)
    names = list(front.objectives)
    if int8 is None or any(name not in int8.values for name in names):
        return ""
    costs = minimized_values([*front, int8], front.objectives)
    better = (costs[:-1] <= costs[-1]).all(1) & (costs[:-1] < costs[-1]).any(1)
    if better.any():
        return ""
    shown = ", ".join(f"{name} {format_value(name, int8.values[name], int8.errors.get(name))}" for name in names)
    return f"No model of the front beats the parent with int8 layers: {shown}."


def bounds_line(recipe: Recipe, parent: Mapping[str, float]) -> str:
    """The bounds in the parent's terms as numbers, given its values."""
    return ", ".join(
        f"{name} {bound.resolve(parent[name])} (`{bound}`; parent {format_value(name, parent[name])})"
        for name, bound in recipe.relative_bounds.items()
    )


def print_profile(target: Target) -> None:
    """Prints the errors of the latency predictor of a workload."""
    predictor = target.load_predictor()
    report = predictor.report
    console.print(report.table())
    for n_fitted, errors in predictor.latency.learning_curve().items():
        console.print(f"{n_fitted:4} fitted: MAPE {errors.mape_percent:.1f} %, Kendall tau {errors.kendall_tau:.3f}")
    print_line(f"workload{target.label}   {target}")
    print_line(f"measured   {report.n_train + report.n_test} subnetworks, each extracted")
    print_line(f"interval   90 % of measurements lie within ±{report.residual_bound:.1%} of the prediction")


def print_summary(run: Run, front: ParetoFront) -> None:
    """Prints a front, what it is compared with, the workload, the hypervolumes and the files of a run.

    A front that is not verified yet is printed as predicted.
    """
    if not run.front_file.is_file():
        console.print(Group(front.table()))
        print_line("predicted    searched and not verified yet: `nas search` with the recipe of the run verifies it")
        return
    results, verified = run.results(), run.verified_points()
    if line := int8_line(front, verified):
        print_line(line)
    console.print(Group(front.table()))
    rows = baseline_rows(front, verified)
    width = max([12, *(len(point.origin) for point in rows)])
    for point in rows:
        names = [name for name in front.value_names if name in point.values]
        shown = (f"{name} {format_value(name, point.values[name], point.errors.get(name))}" for name in names)
        print_line(f"{point.origin:<{width}} {' · '.join(shown)}")
    for target in run.targets:
        print_line(f"workload{target.label}     {target}")
    print_line(f"hypervolume  {hypervolume_line(results)}")
    if line := seeds_line(results):
        print_line(f"seeds        {line}")
    print_line(f"report       {run.report}")
    for folder in sorted(run.exports.glob("[!.]*")):
        print_line(f"export       {folder}")
    for export in load_finetuned(run).values():
        print_line(f"fine-tuned   {export}")
