"""The report stage: writes report.html."""

from __future__ import annotations

from pathlib import Path

from nas.reports.history import history
from nas.reports.html import write_report
from nas.reports.summary import hypervolume_line, near_bound_line, predictor_line, workload_line
from nas.runs.files import read_json
from nas.runs.finetuned import front_with_finetuned, load_finetuned, with_finetuned
from nas.runs.run import Run
from nas.studies.study import open_studies, points
from predictors import SubnetPredictor


def run_report(run: Run, predictor: SubnetPredictor) -> None:
    """Writes report.html."""
    recipe, results, tuned = run.recipe, run.results(), load_finetuned(run)
    command = f"nas export {run.folder} --pick {{key}} --out {{key}}"
    evaluated = [p for study in open_studies(run.study, recipe).values() for p in points(study)]
    write_report(
        run.report,
        title=f"{Path(recipe.model).name} · {run.name}",
        front=front_with_finetuned(run),
        verified=with_finetuned(run.verified_points(), tuned),
        evaluated=evaluated,
        constraints=recipe.bounds,
        facts={
            "Workload": workload_line(run),
            "Latency predictor": predictor_line(predictor),
            "Where it matters": near_bound_line(predictor),
            "Hypervolume": hypervolume_line(results),
            "Searched on": f"{recipe.task.search_examples} examples of {Path(recipe.task.train).name}",
            "Reported on": Path(recipe.task.test).name,
            "Evaluations": f"{recipe.search.evaluations} · {recipe.search.sampler} · seed {recipe.seed}",
            "Packages": ", ".join(
                f"{n} {v}" for n, v in read_json(run.folder / "environment.json")["packages"].items()
            ),
        },
        notes=[
            "Measured: latency of the exported model beside the parent as anchor, quality on the held-out split.",
            "± of a latency holds nine in ten repetitions in a new process, of a quality it is one standard error.",
            "Predicted: latency by the predictor, quality on the search slice of the training data.",
            "The front is what no other verified subnetwork, baselines included, beats in "
            f"{' and '.join(recipe.objectives)}; with standard errors this wide, neighbours may be equal.",
            "The search evaluates the uniform scalings first: its hypervolume includes them, its sampler's does not.",
            *(f"Fine-tuned: {found}." for found in tuned.values()),
        ],
        export_command=command,
        history=history(run, predictor, run.verified_points()),
    )
