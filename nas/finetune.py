"""Fine-tune an exported subnetwork on its task, with its parent as the teacher."""

from __future__ import annotations

import shutil
from pathlib import Path

import transformers

from nas.config import Recipe
from nas.evaluation import Score, score
from nas.pipeline import checked
from nas.progress import progress
from nas.run import Run, read_json, replace_folder, write_json
from nas.training import plain_trainer, train
from search_spaces import InputError


def finetune(folder: Path, recipe: Recipe, run: Path, out: Path) -> tuple[dict[str, Score], dict[str, Score]]:
    """Trains an export for the recipe's ``parent`` epochs and writes it to another folder.

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
    if not (folder / "subnet.json").is_file():
        raise InputError(f"`{folder}` must be an export with a subnet.json; `nas export` writes one.")
    if out.exists() and not (out / "subnet.json").exists():
        raise InputError(f"`{out}` exists and is not an export; give another folder with --out.")
    bench = checked(recipe)
    model = getattr(transformers, bench.auto_class).from_pretrained(folder, trust_remote_code=True)
    before = score(model, bench.splits.test, recipe.qualities)
    work = out.with_name(f".{out.name}.partial")
    trainer = plain_trainer(
        model,
        recipe.parent,
        work / "checkpoints",
        bench.splits.train,
        bench.splits.collate,
        recipe.seed,
        teacher=bench.load_model(Run(run).parent),
    )
    with progress("finetune") as report:
        train(trainer, report)
    after = score(model, bench.splits.test, recipe.qualities)
    model.save_pretrained(work)
    bench.processor.save_pretrained(work)
    story = read_json(folder / "subnet.json")
    story["fine_tuned"] = {name: [s.value, s.standard_error] for name, s in after.items()}
    write_json(work / "subnet.json", story)
    shutil.rmtree(work / "checkpoints", ignore_errors=True)
    replace_folder(work, out)
    return before, after
