"""The whole road: recipe -> parent -> supernet -> profile -> search -> verify -> report -> export."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Group

from nas.config import Recipe
from nas.export import export_subnet
from nas.figures import format_figure
from nas.front import ParetoFront
from nas.progress import console, quiet_libraries, say
from nas.report import write_report
from nas.run import Run, read_json
from nas.search import STUDIES, Evaluator, make_sampler, open_study, points, run_search, write_trials
from nas.stages import load_supernet, make_parent, make_profile, make_supernet, search_space
from nas.tasks import Workbench
from nas.verify import verify
from predictors import LatencyPredictor, device_name
from search_spaces import InputError


def search(recipe: Recipe, folder: str | Path) -> Run:
    """Runs every stage of a recipe that its folder does not hold yet.

    Args:
        recipe: What to do.
        folder: The run. Calling again with the same recipe resumes; a finished run is only shown.

    Returns:
        The finished run, its knee exported.

    Raises:
        InputError: If the recipe does not fit the model, the data, this device or the folder; nothing is changed.
    """
    quiet_libraries()
    bench, run = opened(recipe, folder)
    with run.locked():
        make_parent(run, bench)
        make_supernet(run, bench)
        predictor = make_profile(run, bench)
        say(f"predictor  {predictor_line(predictor)}")
        if not run.front_file.exists():
            supernet, space = load_supernet(run, bench)
            run_search(run.study, recipe, space, Evaluator(recipe, supernet, bench.splits.search, predictor))
            write_trials(run.trials, run.study, recipe)
            verify(run, bench, predictor)
        if not run.report.exists():
            make_report(run, predictor)
        knee = run.front().knee()
        if not (run.exports / knee.key).exists():
            export_subnet(run, knee, run.exports / knee.key)
    return run


def profile(recipe: Recipe, folder: str | Path) -> LatencyPredictor:
    """Runs the stages up to this device's latency predictor."""
    quiet_libraries()
    bench, run = opened(recipe, folder)
    with run.locked():
        make_parent(run, bench)
        make_supernet(run, bench)
        return make_profile(run, bench)


def opened(recipe: Recipe, folder: str | Path) -> tuple[Workbench, Run]:
    """Checks a recipe and opens its run; a new one is made only if the model's weights can be read as well."""
    bench = checked(recipe)
    if not Path(folder, "recipe.yaml").exists():
        bench.load_model()
    return bench, Run.open(folder, recipe)


def checked(recipe: Recipe) -> Workbench:
    """Loads what a recipe names and checks it against each other, before anything is written.

    Raises:
        InputError: With the first thing that does not fit.
    """
    recipe.workload.check_available()
    make_sampler(recipe, 0)
    bench = Workbench(recipe)
    space = search_space(bench)
    if space.size < 10:
        raise InputError(f"`space` must hold at least 10 subnetworks, but got {space.size}; add choices.")
    limit = getattr(bench.config, "max_position_embeddings", None)
    lengths = {"task.max_length": recipe.task.max_length, "workload.sequence_length": recipe.workload.sequence_length}
    for key, length in lengths.items():
        if recipe.task.type == "text-classification" and limit and length > limit:
            raise InputError(f"`{key}` must be at most the model's {limit} positions, but got {length}.")
    _ = bench.splits
    _ = bench.has_head
    return bench


def estimate(recipe: Recipe) -> dict[str, Any]:
    """Size of the space and time of a run, from a few timed steps of the untrained parent; writes nothing.

    Returns:
        ``subnetworks``: how many the space holds; ``minutes``: stage -> estimated minutes on this machine.
    """
    import torch

    from nas.supernet import evaluating

    quiet_libraries()
    bench = checked(recipe)
    splits, model = bench.splits, bench.load_model()
    settings = recipe.parent
    rows = [splits.train[i] for i in range(min(settings.batch_size, len(splits.train)))]
    batch = dict(splits.collate(rows))

    def step() -> None:
        model(**batch).loss.backward()
        model.zero_grad()

    def seconds(call: Any, repeats: int = 3) -> float:
        call()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    train_s = seconds(step) / len(rows)
    with evaluating(model):
        score_s = seconds(lambda: model(**splits.search.batches[len(splits.search.batches) // 2]))
        score_s /= len(next(iter(splits.search.batches[len(splits.search.batches) // 2].values())))
    torch.set_num_threads(torch.get_num_threads())
    examples, evaluations = len(splits.train), recipe.search.evaluations
    subnets = 2 + recipe.supernet.sampled_subnets
    return {
        "subnetworks": search_space(bench).size,
        "minutes": {
            "parent": 0.0 if bench.has_head else settings.epochs * examples * train_s / 60,
            "supernet": recipe.supernet.epochs * examples * train_s * (0.3 + 0.55 * subnets) / 60,
            "profile": recipe.profile.samples * 1.5 / 60,
            "search": 2 * evaluations * len(splits.search) * score_s * 0.6 / 60,
            "verify": 30 * (len(splits.test) * score_s * 0.6 + 3) / 60,
        },
    }


def make_report(run: Run, predictor: LatencyPredictor) -> None:
    """Writes report.html."""
    recipe, results = run.recipe, run.results()
    command = f"nas export {run.folder} --pick {{key}} --out {{key}}"
    evaluated = [p for name in STUDIES for p in points(open_study(run.study, name, recipe), name)]
    write_report(
        run.report,
        title=f"{Path(recipe.model).name} · {run.name}",
        front=run.front(),
        verified=run.verified_points(),
        evaluated=evaluated,
        constraints=recipe.bounds,
        facts={
            "Workload": f"{recipe.workload} · {device_name(recipe.workload)}",
            "Latency predictor": predictor_line(predictor),
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
            "Predicted: latency by the predictor, quality on the search slice of the training data.",
            "The front is what no other verified subnetwork beats in held-out quality and measured latency; with "
            "standard errors this wide, neighbours on it may be equal.",
        ],
        export_command=command,
    )


def predictor_line(predictor: LatencyPredictor) -> str:
    """The held-out error of the predictor beside its baselines, in one line."""
    report = predictor.report
    chosen, others = report.held_out[report.model], ("depth-only", "macs")
    beside = ", ".join(f"{name} {report.held_out[name].mape_percent:.1f} %" for name in others)
    return (
        f"{report.model}: error {chosen.mape_percent:.1f} % and Kendall tau {chosen.kendall_tau:.2f} "
        f"on {report.n_test} held-out of {report.n_train + report.n_test} measured ({beside})"
    )


def hypervolume_line(results: dict[str, Any]) -> str:
    """Hypervolumes of the search and its baselines, with the reference point they share."""
    volumes = ", ".join(f"{name} {value:.4g}" for name, value in results["hypervolume"].items())
    reference = ", ".join(f"{name} {format_figure(name, value)}" for name, value in results["reference"].items())
    return f"{volumes} (reference {reference})"


def show(run: Run, front: ParetoFront) -> None:
    """Prints a front with what it must be read with."""
    results = run.results()
    parent = next(point for point in run.verified_points() if point.source == "parent")
    figures = " · ".join(
        f"{name} {format_figure(name, parent.values[name], parent.errors.get(name))}" for name in front.figures
    )
    console.print(Group(front.table()))
    say(f"parent       {figures}")
    say(f"workload     {run.recipe.workload} · {device_name(run.recipe.workload)}")
    say(f"hypervolume  {hypervolume_line(results)}")
    say(f"report       {run.report}")
    for folder in sorted(run.exports.glob("[!.]*")):
        say(f"export       {folder}")
