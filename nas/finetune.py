"""Fine-tune an exported subnetwork on its task, with its parent as the teacher."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import transformers

from nas.config import Recipe
from nas.exports.card import write_card
from nas.exports.formats import read_story
from nas.figures import COSTS
from nas.fronts.finetuned import Finetuned, note_finetuned
from nas.pipeline import checked, make_report
from nas.progress import progress, say
from nas.run import Run, read_json, remove, replace_folder, write_json
from nas.supernets.training import plain_trainer, train, training_device
from nas.tasks.evaluation import Score, score
from predictors import SubnetPredictor
from search_spaces import InputError


def finetune(folder: Path, recipe: Recipe, run: Path, out: Path) -> tuple[dict[str, Score], dict[str, Score]]:
    """Trains an export for the recipe's ``parent`` epochs and writes it to another folder.

    What it reaches is kept in the run, whose report and tables then show it beside what it inherited.

    Args:
        folder: What `nas export` wrote.
        recipe: Gives the data and the training settings.
        run: The run it came from; its parent is the teacher.
        out: Folder to write; replaced if it is an earlier export.

    Returns:
        Qualities on the held-out split before and after.

    Raises:
        InputError: If the folder is not an export, or ``out`` holds something else.
    """
    if out.exists() and not (out / "subnet.json").exists():
        raise InputError(f"`{out}` exists and is not an export; give another folder with --out.")
    story = read_story(folder)
    bench, parent = checked(recipe), Run(run).parent
    model = getattr(transformers, bench.auto_class).from_pretrained(folder, trust_remote_code=False)
    before = score(model.to(training_device()), bench.splits.test, recipe.qualities)
    work = out.with_name(f".{out.name}.partial")
    checkpoints = work / "checkpoints"
    _begin(work, {"export": _weights_hash(folder), "teacher": _weights_hash(parent), "recipe": recipe.to_yaml()})
    trainer = plain_trainer(
        model,
        recipe.parent,
        checkpoints,
        bench.training_set(recipe.parent),
        bench.splits.task,
        recipe.seed,
        teacher=bench.load_model(parent),
    )
    with progress("finetune") as report:
        train(trainer, report)
    after = score(model, bench.splits.test, recipe.qualities)
    model.save_pretrained(work)
    bench.processor.save_pretrained(work)
    told = retold(story, after, recipe)
    write_json(work / "subnet.json", told)
    write_card(work, told)
    replace_folder(work, out)
    remove(out / "checkpoints")
    _tell(Run(run), recipe, Finetuned(story["key"], str(out), values_of(after), errors_of(after)))
    return before, after


def _tell(run: Run, recipe: Recipe, found: Finetuned) -> None:
    """Notes in the run what its export reaches, if that was scored on the run's own held-out split."""
    if recipe.task.test != run.recipe.task.test:
        say(f"not shown in {run.folder}: it reports on {run.recipe.task.test}, this on {recipe.task.test}")
        return
    note_finetuned(run, found)
    if run.report.is_file():
        make_report(run, SubnetPredictor.load(run.predictor, run.recipe.workload))


def retold(story: dict[str, Any], after: dict[str, Score], recipe: Recipe) -> dict[str, Any]:
    """A subnet.json with the qualities after fine-tuning; those it came with are kept as ``inherited``."""
    new = {"values": values_of(after), "errors": errors_of(after)}
    inherited = {part: {n: v for n, v in story[part].items() if n not in COSTS} for part in new}
    costs = {part: {n: v for n, v in story[part].items() if n in COSTS} for part in new}
    figures = {part: {**costs[part], **new[part]} for part in new}
    bounds = {name: bound for name, bound in recipe.bounds.items() if name in figures["values"]}
    feasible = all(bound.violation(figures["values"][name]) <= 0 for name, bound in bounds.items())
    rest = {name: value for name, value in story.items() if name != "formats"}
    return {**rest, **figures, "feasible": feasible, "inherited": inherited}


def values_of(scores: dict[str, Score]) -> dict[str, float]:
    """Quality -> value."""
    return {name: found.value for name, found in scores.items()}


def errors_of(scores: dict[str, Score]) -> dict[str, float]:
    """Quality -> standard error."""
    return {name: found.standard_error for name, found in scores.items()}


def _begin(work: Path, identity: dict[str, str]) -> None:
    """Makes the work folder; what a killed fine-tuning left there is kept if it was of the same model and recipe."""
    file = work / "checkpoints" / "identity.json"
    if not file.is_file() or read_json(file) != identity:
        shutil.rmtree(work, ignore_errors=True)
        file.parent.mkdir(parents=True)
        write_json(file, identity)


def _weights_hash(folder: Path) -> str:
    """SHA-256 of a model folder's weights."""
    total = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with open(file, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
