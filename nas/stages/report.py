"""The report stage: writes report.html."""

from __future__ import annotations

from pathlib import Path

from nas.reports.history import history
from nas.reports.html import write_report
from nas.reports.summary import hypervolume_line, int8_line, near_bound_line, predictor_line, seeds_line
from nas.runs.files import read_json
from nas.runs.finetuned import front_with_finetuned, load_finetuned, with_finetuned
from nas.runs.run import Run
from nas.runs.target import Target
from nas.studies.study import evaluated_points, open_studies
from nas.tasks.context import TaskContext


def run_report(run: Run, context: TaskContext | None = None, cluster: str | None = None) -> None:
    """Writes report.html.

    Args:
        run: The run, with its front.
        context: Not used; the report reads the run.
        cluster: Not used; this stage runs in this process.
    """
    recipe, results, finetuned = run.recipe, run.results(), load_finetuned(run)
    searched = Path(recipe.task.validation or recipe.task.train)
    parent = next(point for point in run.verified_points() if point.source == "parent")
    studies = {name: evaluated_points(study) for name, study in open_studies(run.study, recipe).items()}
    counts = ", ".join(f"{name} {len(points)}" for name, points in studies.items())
    packages = read_json(run.folder / "environment.json", parse=lambda data: dict(data["packages"]))
    write_report(
        run.report,
        title=f"{Path(recipe.model).name} · {run.name}",
        front=front_with_finetuned(run),
        verified=with_finetuned(run.verified_points(), finetuned),
        evaluated=[point for points in studies.values() for point in points],
        constraints=recipe.with_parent(parent.values).bounds,
        facts={
            "Hypervolume": hypervolume_line(results),
            **({"Seeds": line} if (line := seeds_line(results)) else {}),
            "Searched on": f"{recipe.task.search_examples} examples of {searched.name}",
            "Reported on": Path(recipe.task.test).name,
            "Evaluations": f"{counts} · {recipe.search.sampler} · seed {recipe.seed}",
            "Packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
        },
        notes=[
            "Measured: latency of the exported model, in rounds with the parent as the reference model; metrics on "
            "the held-out split.",
            "± of a latency: 90 % of repetitions in a new process. ± of a metric: one standard error.",
            "Predicted: latency by the predictor; metrics on the search slice of the training data.",
            "The front holds the verified subnetworks, baselines included, that are not dominated in "
            f"{' and '.join(recipe.objectives)}. Neighbours closer than their standard errors may be equal.",
            "The search evaluates the uniform scalings first: its hypervolume includes them, its sampler's does not.",
            *(f"Fine-tuned: {export}." for export in finetuned.values()),
        ],
        first=int8_line(run.front(), run.verified_points()),
        workloads={target.name: _facts(target) for target in run.targets},
        earlier=run.earlier_front(),
        export_command=f"nas export {run.folder} --pick {{key}} --out {{key}}",
        history=history(run, run.verified_points()),
    )


def _facts(target: Target) -> dict[str, str]:
    """What the report says of one workload."""
    predictor = target.load_predictor()
    return {
        "Workload": str(target),
        "Latency predictor": predictor_line(predictor),
        "Near the bound": near_bound_line(predictor),
    }
