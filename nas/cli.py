"""The command line, one function per command; a command imports what it needs when it runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

from nas.commands.entry import run_command
from nas.pipeline import STAGES
from search_spaces.errors import InputError

if TYPE_CHECKING:
    from nas.recipe.schema import Recipe

app = typer.Typer(
    help="Search a Hugging Face transformer for smaller ones, measured on this device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

P = ParamSpec("P")

FORMAT_NAMES = (
    "onnx, int8, program, openvino, openvino-int8, executorch, executorch-int8, gguf, gguf-q8_0, gguf-q4_k_m"
)
"""Names in `FORMATS`, which takes long to import."""
SEARCH_HELP = "\n\n".join(
    (
        "Run all stages of a recipe; the same command again resumes.",
        "\b\nStages:\n" + "\n".join(f"{stage.name:<9} {stage.meaning}" for stage in STAGES),
    )
)


def path(text: str) -> Path:
    """Reads a path of the command line; an empty one would be the working directory."""
    if not str(text).strip() or "\0" in str(text):
        raise typer.BadParameter("a path must be given, but it is empty; `.` is the working directory.")
    return Path(text)


RecipeFile = Annotated[Path, typer.Argument(help="YAML recipe.", show_default=False, parser=path)]
RecipeOrModel = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="YAML recipe; with --train and --test, a model.", show_default=False),
]
Task = Annotated[
    str | None, typer.Option("--task", help="Task of the model; default: by its head and the columns of the data.")
]
Train = Annotated[
    str | None,
    typer.Option("--train", help="Training data: hub/id:split, a file, a folder of images or sounds, file.py:name."),
]
Test = Annotated[str | None, typer.Option("--test", help="Held-out data, in the same forms.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides, as section.key=value.", show_default=False)]
RunFolder = Annotated[
    Path | None, typer.Option("--run", help="Run folder; default runs/<name of the recipe>.", parser=path)
]

TrustModel = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code of the folder, and functions of the run's recipe.")
]
Database = Annotated[
    str | None, typer.Option("--storage", help="URL of the database with the studies; default: the recipe's.")
]


def shows_elapsed(command: Callable[P, None]) -> Callable[P, None]:
    """Shows for how long a command has been running, imports included, unless it shows the progress of a stage."""

    @wraps(command)
    def timed(*args: P.args, **kwargs: P.kwargs) -> None:
        from nas.runs.progress import waiting

        with waiting(command.__name__):
            command(*args, **kwargs)

    return timed


@app.command(help=SEARCH_HELP)
@shows_elapsed
def search(
    recipe: RecipeOrModel,
    overrides: Overrides = None,
    run: RunFolder = None,
    task: Task = None,
    train: Train = None,
    test: Test = None,
    seeds: Annotated[
        int | None, typer.Option(help="Searches with other seeds, whose spread is shown: search.seeds.", min=1)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the recipe, the size of the space and the estimated time; stop.")
    ] = False,
    trust: TrustModel = False,
    ray: Annotated[
        str | None,
        typer.Option(help="Evaluate on a Ray cluster: auto, local or host:port.", metavar="auto|ADDRESS"),
    ] = None,
) -> None:
    """Run the stages of a recipe that have no result yet, and print the front."""
    folder = run or default_run(Path(recipe))
    overrides = [
        *(overrides or []),
        *([] if seeds is None else [f"search.seeds={seeds}"]),
        *(["trust_remote_code=true"] if trust else []),
    ]
    if (task, train, test) == (None, None, None):
        from nas.recipe.schema import Recipe

        loaded = Recipe.load(recipe, overrides)
    else:
        from nas.commands.init import recipe_of_run

        loaded = recipe_of_run(recipe, folder, train, test, task, overrides)
    if dry_run:
        _print_estimate(loaded, folder, ray)
        return
    from nas.pipeline import search as run_pipeline
    from nas.reports.summary import print_summary
    from nas.runs.finetuned import front_with_finetuned

    finished = run_pipeline(loaded, folder, cluster=ray)
    print_summary(finished, front_with_finetuned(finished))


def _print_estimate(recipe: Recipe, folder: Path, cluster: str | None) -> None:
    from nas.commands.dry_run import estimate
    from nas.recipe.secrets import without_secrets
    from nas.stages.resources import check_resources

    check_resources(recipe, folder, cluster)
    result = estimate(recipe)
    typer.echo(without_secrets(result["recipe"].to_yaml()))
    typer.echo(f"# space: {result['subnetworks']:,} subnetworks")
    typer.echo(f"# estimated minutes: {sum(result['minutes'].values()):.0f} in total")
    meanings = {stage.name: stage.meaning for stage in STAGES}
    for name, minutes in result["minutes"].items():
        work = f" {result['work'][name]}." if name in result["work"] else ""
        typer.echo(f"#   {name:<8} {minutes:6.1f}   {meanings[name]}{work}")
    available = result["available_gb"]
    typer.echo(f"# estimated GB of memory, of {available:.1f}, and of disk:")
    for name, needs in result["needs"].items():
        hint = "   does not fit" if needs.memory_gb > available else ""
        typer.echo(f"#   {name:<8} {needs.memory_gb:6.2f} {needs.disk_gb:6.2f}{hint}")


@app.command()
@shows_elapsed
def check(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run: RunFolder = None,
    ray: Annotated[
        str | None, typer.Option(help="The Ray cluster that the search would use.", metavar="auto|ADDRESS")
    ] = None,
) -> None:
    """Print all that can be known before training, on one page; nothing is trained or written.

    It reads all data, loads the model and computes the metrics with it, and compares memory, disk and time with what
    there is. `nas search` checks the same first.
    """
    from nas.commands.check import check as check_page
    from nas.recipe.schema import Recipe
    from nas.runs.progress import print_line

    for line in check_page(Recipe.load(recipe, overrides or []), run or default_run(recipe), ray):
        print_line(line)
    print_line(f"next       nas search {recipe}")


@app.command()
@shows_elapsed
def profile(
    recipe: RecipeFile,
    overrides: Overrides = None,
    run: RunFolder = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Write what to measure on another device into this new folder.", parser=path),
    ] = None,
    import_folder: Annotated[
        Path | None, typer.Option("--import", help="Import the results of such a folder into the run.", parser=path)
    ] = None,
    workload: Annotated[str, typer.Option(help="With --export: which of several workloads.")] = "",
) -> None:
    """Fit the latency predictor of each workload and print its held-out error.

    To measure on another device: --export FOLDER here, `python measure.py` in the folder there, --import FOLDER here.
    All latencies of the run then come from that device. After `nas search`, the same steps measure the front there;
    until then its latencies are predicted.
    """
    from nas.commands.remote import export_plan, import_results
    from nas.pipeline import profile as run_profile
    from nas.recipe.schema import Recipe
    from nas.reports.summary import print_profile
    from nas.runs.progress import print_line
    from nas.runs.run import Run

    loaded, folder = Recipe.load(recipe, overrides or []), run or default_run(recipe)
    if export is not None and import_folder is not None:
        raise InputError(
            "`--export` and `--import` must be two commands, but got both; the device measures in between."
        )
    if export is not None:
        print_line(export_plan(loaded, folder, export, workload))
        return
    if workload:
        raise InputError(f"`--workload` is for --export, but got `{workload}` without it; leave it out.")
    if import_folder is not None:
        import_results(loaded, folder, import_folder)
    else:
        run_profile(loaded, folder)
    for target in Run(folder).targets:
        if target.has_predictor:
            print_profile(target)


@app.command()
@shows_elapsed
def sensitivity(recipe: RecipeFile, overrides: Overrides = None, run: RunFolder = None) -> None:
    """Replace one block at a time and print the change in loss and the latency saved."""
    from nas.commands.sensitivity import sensitivity as measure_sensitivity
    from nas.commands.sensitivity import sensitivity_table
    from nas.recipe.schema import Recipe
    from nas.runs.progress import console, print_line

    folder = run or default_run(recipe)
    console.print(sensitivity_table(measure_sensitivity(Recipe.load(recipe, overrides or []), folder)))
    print_line(f"{folder / 'sensitivity.csv'}")


@app.command()
def show(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False, parser=path)],
    where: Annotated[str, typer.Option(help='Conditions, such as "latency_ms <= 5, accuracy > 0.9".')] = "",
    pick: Annotated[str, typer.Option(help='Only one: knee, fastest, best, a key or "latency_ms <= 5".')] = "",
    sort: Annotated[str, typer.Option(help="Metric or cost to sort by, best first.")] = "",
    workload: Annotated[str, typer.Option(help="One of several workloads: only what is best under it.")] = "",
    output_format: Annotated[str, typer.Option("--format", help="table, csv, json or markdown.")] = "table",
) -> None:
    """Print the front of a run, or the points of it that match; before it is verified, as predicted."""
    from nas.fronts.baselines import baseline_rows
    from nas.fronts.output import filter_front, front_as_text
    from nas.reports.summary import print_summary
    from nas.runs.run import Run
    from nas.studies.pick import front_so_far

    opened = Run(run)
    front = filter_front(front_so_far(opened), where, pick, sort, workload)
    if output_format == "table":
        print_summary(opened, front)
    else:
        verified = opened.verified_points() if opened.front_file.is_file() else []
        typer.echo(front_as_text(front, output_format, baseline_rows(front, verified)), nl=False)


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False, parser=path)],
    once: Annotated[bool, typer.Option("--once", help="Print once and stop.")] = False,
    storage: Database = None,
) -> None:
    """Show how far a run is, from another terminal; nothing is written."""
    from nas.commands.watch import watch as watch_run
    from nas.runs.run import Run

    watch_run(Run(run), once, storage)


@app.command()
def dashboard(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False, parser=path)],
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 8080,
    storage: Database = None,
) -> None:
    """Open the studies of a run in optuna-dashboard; nothing is written."""
    from nas.commands.dashboard import serve
    from nas.runs.progress import quiet_libraries
    from nas.runs.run import Run

    quiet_libraries()
    serve(Run(run), port, storage)


@app.command()
@shows_elapsed
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", show_default=False, parser=path)],
    out: Annotated[Path, typer.Option("--out", help="HTML file with all fronts on one plot.", parser=path)] = Path(
        "compare.html"
    ),
) -> None:
    """Compare the fronts of runs: hypervolume from one reference point, and the cost at equal metrics."""
    from nas.commands.compare import compare_runs
    from nas.runs.progress import console
    from nas.runs.run import Run

    _check_file("--out", out)
    for table in compare_runs([Run(run) for run in runs], out):
        console.print(table)
    typer.echo(f"plot  {out}")


def _check_file(option: str, file: Path) -> None:
    """Raises InputError unless a file can be written there."""
    if (file.exists() and not file.is_file()) or not file.parent.is_dir():
        raise InputError(
            f"`{option}` must be a file in an existing folder, but got `{file}`; create the folder first, or choose "
            "another name."
        )


@app.command()
@shows_elapsed
def export(
    run: Annotated[Path, typer.Argument(help="Run folder.", show_default=False, parser=path)],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.", show_default=False, parser=path)],
    pick: Annotated[
        str, typer.Option(help='knee (the default), fastest, best, a key, or a condition: "latency_ms <= 5".')
    ] = "",
    to: Annotated[str, typer.Option(help=f"Other formats to write as well: {FORMAT_NAMES}.")] = "",
    parent_width: Annotated[
        bool,
        typer.Option("--parent-width", help="Map narrower vectors to the width of the parent's, for its index."),
    ] = False,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; default: that of the parent.")] = "",
    whole_front: Annotated[bool, typer.Option("--all", help="The whole front, each in a folder of its key.")] = False,
    trust: Trust = False,
) -> None:
    """Write a subnetwork of the front, or all, as Hugging Face model folders, checked by reloading them."""
    from nas.exports.export import export_subnet
    from nas.exports.formats import parse_formats
    from nas.runs.progress import print_line, quiet_libraries
    from nas.runs.run import Run
    from nas.studies.pick import front_so_far
    from nas.studies.pick import pick as pick_point

    quiet_libraries()
    opened = Run(run)
    if pick and whole_front:
        raise InputError(f"--all writes the whole front, but --pick names `{pick}`; leave one of them out.")
    formats = parse_formats(to)
    chosen = (
        {out / p.key: p for p in front_so_far(opened)} if whole_front else {out: pick_point(opened, pick or "knee")}
    )
    for folder, point in chosen.items():
        print_line(f"{point.subnet}")
        written = export_subnet(opened, point, folder, formats, parent_width=parent_width, dtype=dtype, trust=trust)
        print_line(f"{written} reloads with equal outputs")


@app.command()
@shows_elapsed
def convert(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face model.", show_default=False, parser=path)],
    to: Annotated[str, typer.Option("--to", help=f"{FORMAT_NAMES}; several by commas.")],
    trust: TrustModel = False,
) -> None:
    """Write an export, a parent or another Hugging Face model in other formats, into its folder."""
    from nas.exports.formats import convert as convert_folder
    from nas.exports.formats import parse_formats
    from nas.modeling.own_code import register_own_code
    from nas.runs.progress import print_line, quiet_libraries

    quiet_libraries()
    register_own_code(str(folder), trust)
    for name, file in convert_folder(folder, parse_formats(to)).items():
        print_line(f"{name}  {file}")


@app.command()
@shows_elapsed
def verify(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face model.", show_default=False, parser=path)],
    run: Annotated[
        Path, typer.Option("--run", help="The run it came from, or of its task.", show_default=False, parser=path)
    ],
    trust: Trust = False,
) -> None:
    """Reload a model, compare, time and score it in every format; exit code 2 if a value of its card fails.

    Code that is not this version's, in the folder or named by the recipe of the run, runs only with
    --trust-remote-code.
    """
    from nas.exports.check import check_folder, check_table, raise_if_failed
    from nas.runs.progress import console, quiet_libraries
    from nas.runs.run import Run

    quiet_libraries()
    checks, failures = check_folder(folder, Run(run), trust)
    console.print(check_table(checks))
    raise_if_failed(folder, failures)


@app.command()
@shows_elapsed
def finetune(
    folder: Annotated[Path, typer.Argument(help="An exported subnetwork.", show_default=False, parser=path)],
    recipe: RecipeFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write; default <folder>-finetuned.", parser=path)
    ] = None,
    run: RunFolder = None,
    lora: Annotated[
        int | None,
        typer.Option("--lora", help="Train low-rank adapters of this rank, and merge them; needs peft.", min=1),
    ] = None,
) -> None:
    """Fine-tune an export on the recipe's task, with the run's parent as its teacher."""
    from nas.commands.finetune import finetune as finetune_folder
    from nas.recipe.objectives import base_name, format_value
    from nas.recipe.schema import Recipe
    from nas.runs.progress import print_line, quiet_libraries

    quiet_libraries()
    target = out or folder.with_name(f"{folder.name}-finetuned")
    loaded = Recipe.load(recipe, overrides or [])
    before, after = finetune_folder(folder, loaded, run or default_run(recipe), target, lora=lora)
    costs = [name for name in after["values"] if base_name(name) in ("latency_ms", "size_mb")]
    for name in (*before, *costs):
        previous = f"{before[name].value:.4f} -> " if name in before else ""
        print_line(f"{name}  {previous}{format_value(name, after['values'][name], after['errors'].get(name))}")
    print_line(f"{target}")


@app.command()
@shows_elapsed
def bench(
    models: Annotated[list[str], typer.Argument(help="Model folders or hub ids.", show_default=False)],
    workload: Annotated[
        Path, typer.Option("--workload", help="Recipe with the workload.", show_default=False, parser=path)
    ],
    csv: Annotated[Path | None, typer.Option("--csv", help="CSV file to write as well.", parser=path)] = None,
    precision: Annotated[
        float | None,
        typer.Option(help="Half-width of the ratios' intervals that must be reached, such as 0.01; else exit code 2."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Upper bound on the time to measure latencies; default: by the precision.")
    ] = None,
) -> None:
    """Measure any Hugging Face models side by side on a recipe's workloads: time, throughput, memory, energy."""
    from nas.commands.bench import PRECISION, BenchRow, bench_noise_warning, bench_rows, bench_table, write_csv
    from nas.recipe.schema import Recipe
    from nas.runs.progress import console, print_line, quiet_libraries

    quiet_libraries()
    if precision is not None and not 0 < precision < 1:
        raise InputError(f"`--precision` must be between 0 and 1, such as 0.01 for 1 %, but got {precision:g}.")
    if minutes is not None and not minutes > 0:
        raise InputError(f"`--minutes` must be above 0, but got {minutes:g}.")
    if csv is not None:
        _check_file("--csv", csv)
    recipe, rows, warnings = Recipe.load(workload), list[BenchRow](), list[str]()
    for each in recipe.named_workloads.values():
        under = recipe.model_copy(update={"workload": each, "workloads": {}})
        rows += (own := bench_rows(models, under, precision or PRECISION, minutes))
        console.print(bench_table(own))
        warnings += filter(None, [bench_noise_warning(own, precision or PRECISION)])
    if csv is not None:
        write_csv(rows, csv)
    warning = "; ".join(warnings)
    if warning and precision is not None:
        raise InputError(
            f"`--precision {precision:g}` must be reached, but is not: {warning}. Stop other work, raise the value or "
            "give more `--minutes`."
        )
    if warning:
        print_line(f"noisy: {warning}")


@app.command()
def init(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a Hugging Face model.", show_default=False)],
    task: Task = None,
    train: Train = None,
    test: Test = None,
    latency_ms: Annotated[float | None, typer.Option(help="Most milliseconds that it may take.")] = None,
    size_mb: Annotated[float | None, typer.Option(help="Most megabytes of its file.")] = None,
    out: Annotated[Path, typer.Option("--out", help="New file to write.", parser=path)] = Path("recipe.yaml"),
    trust: TrustModel = False,
) -> None:
    """Write a recipe for a model and its data, with a comment on each key that was found out.

    The task follows from the model's head or the columns of the data, the space from the model's config, the length
    of inputs from the data, the workload from this machine. The recipe is checked as `nas search` checks it.
    """
    from nas.commands.init import init_recipe
    from nas.runs.progress import print_line, quiet_libraries

    quiet_libraries()
    bounds = {"latency_ms": latency_ms, "size_mb": size_mb}
    for line in init_recipe(model, train, test, task, bounds, out, trust=trust):
        print_line(line)


@app.command()
def schema() -> None:
    """Print the JSON schema of a recipe, which editors complete and check keys with."""
    import json

    from nas.recipe.json_schema import recipe_json_schema

    typer.echo(json.dumps(recipe_json_schema(), indent=2, ensure_ascii=False))


@app.command()
def families(
    model: Annotated[str, typer.Argument(help="A model or a model type; default: all types.")] = "",
    trust: TrustModel = False,
) -> None:
    """Print the model types, their tasks and what may vary in them, or what is known of one.

    First those with a table, then those that were proved with the table of another, then those that are not supported.
    """
    from nas.commands.families import checked_table, describe_type, families_table, other_types
    from nas.runs.progress import console, print_line, quiet_libraries

    if not model:
        console.width = max(console.width, 120)  # no name is cut in a narrow terminal
        for part in (families_table(), checked_table(), *other_types()):
            console.print(part, end="\n\n")
        return
    quiet_libraries()
    for line in describe_type(model, trust):
        print_line(line)


def default_run(recipe: Path) -> Path:
    """runs/<name>: the name of the recipe's file, or of its folder if the file is recipe.yaml; a model's last name."""
    name = recipe.stem if recipe.suffix in (".yaml", ".yml") else recipe.resolve().name
    name = recipe.resolve().parent.name if name == "recipe" else name
    return Path("runs") / name


def main() -> None:
    """Entry point of ``nas``."""
    run_command(app)


if __name__ == "__main__":
    main()
