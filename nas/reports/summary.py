"""What a run ended with, in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Group

from nas.fronts.front import ParetoFront
from nas.recipe.objectives import format_value
from nas.runs.finetuned import load_finetuned
from nas.runs.progress import console, print_line
from nas.runs.run import Run
from predictors import Errors, SubnetPredictor

BASELINES = ("depth-only", "macs", "linear", "roofline")


def predictor_line(predictor: SubnetPredictor) -> str:
    """The held-out error of the predictor beside its baselines, in one line."""
    report = predictor.report
    e = report.chosen
    return (
        f"{report.model}: error {e.mape_percent:.1f} %, RMSE {e.rmse_ms:.2g} ms and Kendall tau {e.kendall_tau:.2f} "
        f"on {report.n_test} held-out of {report.n_train + report.n_test} measured, each extracted "
        f"({_baseline_errors(report.held_out, lambda e: f'{e.mape_percent:.1f} %')})"
    )


def near_bound_line(predictor: SubnetPredictor) -> str:
    """The same near the bound on the latency, or the order of near-equal subnetworks where there is no bound."""
    report = predictor.report
    if not report.near or not report.n_near:
        return f"{report.whereabouts}, so nothing is known of the error there"
    e, tau = report.near[report.model], f"Kendall tau {report.near[report.model].kendall_tau:.2f}"
    if report.around_ms is None:
        return f"{tau} of {report.whereabouts} ({_baseline_errors(report.near, lambda e: f'{e.kendall_tau:.2f}')})"
    return (
        f"error {e.mape_percent:.1f} %, RMSE {e.rmse_ms:.2g} ms and {tau} of {report.whereabouts} "
        f"({_baseline_errors(report.near, lambda e: f'{e.mape_percent:.1f} % {e.kendall_tau:.2f}')})"
    )


def _baseline_errors(found: Mapping[str, Errors], shown: Callable[[Errors], str]) -> str:
    """A figure of each baseline."""
    return ", ".join(f"{name} {shown(found[name])}" for name in BASELINES if name in found)


def hypervolume_line(results: dict[str, Any]) -> str:
    """Hypervolumes: of the search, of its sampler without the uniform scalings it begins with, of baselines."""
    volumes = {name: f"{value:.4g}" for name, value in results["hypervolume"].items()}
    reference = ", ".join(f"{name} {format_value(name, value)}" for name, value in results["reference"].items())
    return (
        f"search {volumes['search']} (its sampler alone {volumes['sampler']}), uniform {volumes['uniform']}, "
        f"random {volumes['random']} (reference {reference})"
    )


def workload_line(run: Run) -> str:
    """What every latency of a run means."""
    return f"{run.recipe.workload} · {run.device}"


def print_summary(run: Run, front: ParetoFront) -> None:
    """Prints a front with what it must be read with."""
    results = run.results()
    parent = next(point for point in run.verified_points() if point.source == "parent")
    figures = " · ".join(
        f"{name} {format_value(name, parent.values[name], parent.errors.get(name))}"
        for name in front.value_names
        if name in parent.values
    )
    console.print(Group(front.table()))
    print_line(f"parent       {figures}")
    print_line(f"workload     {workload_line(run)}")
    print_line(f"hypervolume  {hypervolume_line(results)}")
    print_line(f"report       {run.report}")
    for folder in sorted(run.exports.glob("[!.]*")):
        print_line(f"export       {folder}")
    for found in load_finetuned(run).values():
        print_line(f"fine-tuned   {found}")
