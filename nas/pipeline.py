"""The whole road: recipe -> parent -> supernet -> profile -> search -> verify -> report -> export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from nas import processes
from nas.config import Recipe
from nas.engine.search_loop import run_search
from nas.engine.study import open_studies, points, write_trials
from nas.evaluator import Evaluator
from nas.exports.export import export_subnet
from nas.fronts.finetuned import beside, finetuned, front_beside
from nas.fronts.history import history
from nas.fronts.report import write_report
from nas.fronts.summary import hypervolume_line, near_line, predictor_line, workload_line
from nas.progress import quiet_libraries, say
from nas.run import Run, read_json
from nas.samplers.by_name import check_sampler
from nas.stages import load_supernet, make_profile, paying, search_space
from nas.supernets.reporting import check_reporting
from nas.tasks.workbench import Workbench
from nas.trainings import make_parent, make_supernet
from nas.verify import verify
from predictors import AnalyticCosts, SubnetPredictor, device_name
from predictors.analytic import COUNTED
from predictors.memory import memory_mb
from predictors.runtimes import check_runtime
from predictors.workload import one_line_errors
from search_spaces import InputError


def search(recipe: Recipe, folder: str | Path, *, cluster: str | None = None) -> Run:
    """Runs every stage of a recipe that its folder does not hold yet.

    Args:
        recipe: What to do.
        folder: The run. Calling again with the same recipe resumes; a finished run is only shown.
        cluster: Address of a Ray cluster whose workers share the evaluations of the search, or ``auto``, and train
            where the recipe asks for several; everything else, the measuring of latencies above all, stays here.

    Returns:
        The finished run, its knee exported.

    Raises:
        InputError: If the recipe does not fit the model, the data, this device or the folder; nothing is changed.
    """
    quiet_libraries()
    with _trained(recipe, folder, cluster) as (bench, run):
        predictor = make_profile(run, bench)
        say(f"predictor  {predictor_line(predictor)}")
        say(f"near       {near_line(predictor)}")
        if not run.front_file.exists():
            supernet, space = load_supernet(run, bench)
            evaluator = Evaluator(recipe, supernet, bench.splits.search, predictor)
            try:
                run_search(run, recipe, space, evaluator, cluster)
            except InputError:
                with suppress(InputError):
                    write_trials(run.trials, run.study, recipe)
                raise
            write_trials(run.trials, run.study, recipe)
            verify(run, bench, predictor)
        finish(run, predictor)
    return run


def finish(run: Run, predictor: SubnetPredictor) -> None:
    """The report and the knee's export, where they are not there yet."""
    if not run.report.exists():
        make_report(run, predictor)
    knee = run.front().knee()
    if not (run.exports / knee.key).exists():
        export_subnet(run, knee, run.exports / knee.key)


def profile(recipe: Recipe, folder: str | Path) -> SubnetPredictor:
    """Runs the stages up to this device's latency predictor."""
    quiet_libraries()
    with _trained(recipe, folder) as (bench, run):
        return make_profile(run, bench)


@contextmanager
def _trained(recipe: Recipe, folder: str | Path, cluster: str | None = None) -> Iterator[tuple[Workbench, Run]]:
    """The open run of a recipe with its parent and supernet; of several processes, the main one goes on with it."""
    if not processes.is_main():
        processes.wait()  # until the run is there and held
    bench, run = opened(recipe, folder)
    with run.locked() if processes.is_main() else nullcontext():
        if processes.is_main():
            processes.wait()
        make_parent(run, bench, cluster)
        make_supernet(run, bench, cluster)
        processes.end_others()
        yield bench, run


def opened(recipe: Recipe, folder: str | Path, *, elsewhere: bool = False) -> tuple[Workbench, Run]:
    """Checks a recipe and opens its run; a new one is made only if the model's weights can be read as well.

    Args:
        recipe: Of the run.
        folder: The run.
        elsewhere: Whether a new run's latencies are measured on another device; an old one knows.
    """
    found = Run(folder) if Path(folder, "recipe.yaml").exists() else None
    elsewhere = found.elsewhere if found else elsewhere
    bench = checked(recipe, elsewhere=elsewhere)
    if found is None:
        _check_exact_constraints(bench, AnalyticCosts.of(bench.load_model(), bench.layout))
    run = Run.open(folder, recipe, elsewhere=elsewhere)
    here = run.device if elsewhere else device_name(recipe.workload)
    if here != run.device:
        raise InputError(f"`{folder}` was begun on {run.device}, but this is {here}; give another folder with --run.")
    return bench, run


def _check_exact_constraints(bench: Workbench, counts: AnalyticCosts) -> None:
    """Refuses a bound on an exact cost that neither end of the space meets, before anything is trained."""
    space = search_space(bench)
    found = counts.count(COUNTED, [space.smallest, space.largest], bench.recipe.workload)
    for name, bound in bench.recipe.bounds.items():
        if name in COUNTED:
            ends = found[name].tolist()
            if all(bound.violation(value) > 0 for value in ends):
                raise InputError(
                    f"`constraints.{name}` is `{bound}`, but the space reaches from {ends[0]:.4g} to {ends[1]:.4g}; "
                    "loosen it or widen `space`."
                )


def checked(recipe: Recipe, *, elsewhere: bool = False) -> Workbench:
    """Loads what a recipe names and checks it against each other, before anything is written.

    The workload is not looked for on this machine if its device is ``elsewhere``.

    Raises:
        InputError: With the first thing that does not fit.
    """
    if not elsewhere:
        recipe.workload.check_available()
        check_runtime(recipe.workload)
    check_sampler(recipe)
    bench = Workbench(recipe)
    if bench.lengthens:
        say(f"positions  copied until there are {bench.layout.inputs.max_sequence_length}, as the recipe's texts need")
    for reason in paying(bench)[1]:
        say(f"space      {reason}")
    space = search_space(bench)
    if space.size < 10:
        raise InputError(f"`space` must hold at least 10 subnetworks, but got {space.size}; add choices.")
    if "kv_cache_mb" in recipe.figures and not bench.layout.family.generates:
        raise InputError(
            f"`kv_cache_mb` is of models that generate, but `{recipe.model}` keeps no keys and values; leave it out."
        )
    for folder in recipe.profile.earlier:
        Run(folder)
    limit = bench.layout.inputs.max_sequence_length
    lengths = {"task.max_length": recipe.task.max_length, "workload.sequence_length": recipe.workload.sequence_length}
    for key, length in lengths.items():
        if limit is not None and (length is None or length > limit):
            raise InputError(f"`{key}` must be at most the model's {limit} positions, but got {length}.")
    if not elsewhere:
        _check_memory(bench)
    for settings in (recipe.parent, recipe.supernet):
        check_reporting(settings)
        bench.training_set(settings)
    _ = bench.has_head
    return bench


def _check_memory(bench: Workbench) -> None:
    """Raises InputError where the hidden states of one layer alone take more memory than there is."""
    workload, layout = bench.recipe.workload, bench.layout
    tokens = workload.batch_size * layout.inputs.longest_sequence(workload.sequence_length)
    with one_line_errors(workload):
        if tokens * layout.parent.hidden_size * workload.activation_bytes / 1e6 > memory_mb(workload):
            raise MemoryError


def make_report(run: Run, predictor: SubnetPredictor) -> None:
    """Writes report.html."""
    recipe, results, tuned = run.recipe, run.results(), finetuned(run)
    command = f"nas export {run.folder} --pick {{key}} --out {{key}}"
    evaluated = [p for study in open_studies(run.study, recipe).values() for p in points(study)]
    write_report(
        run.report,
        title=f"{Path(recipe.model).name} · {run.name}",
        front=front_beside(run),
        verified=beside(run.verified_points(), tuned),
        evaluated=evaluated,
        constraints=recipe.bounds,
        facts={
            "Workload": workload_line(run),
            "Latency predictor": predictor_line(predictor),
            "Where it matters": near_line(predictor),
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
