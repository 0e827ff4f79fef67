"""Sensitivity: what each block costs in quality and in time, found by replacing it alone, before any search.

The replacements are those of Puzzle's block library (Bercovich et al. 2024, arXiv 2411.19146), on the parent's own
weights in order of importance.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nas.pipeline import run_stages
from nas.recipe.schema import Recipe
from nas.runs.files import write_text
from nas.runs.progress import progress, quiet_libraries
from nas.runs.run import Run
from nas.stages.check import open_run
from nas.studies.block_search import Block, blocks
from nas.supernets.calibration import calibrate
from nas.supernets.importance import gradient_scores, permute, unit_orders
from nas.supernets.latency import measure_subnets
from nas.supernets.load import calibration_set
from nas.supernets.space import search_space
from nas.supernets.supernet import Supernet
from nas.supernets.training import training_device
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import EvaluationSet, evaluation_mode
from nas.tasks.losses import LogitsAndLabels, divergence
from search_spaces import SearchSpace
from search_spaces.subnet import BLOCKS

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = 256
"""Examples of the search slice that a replacement is scored on."""


@dataclass(frozen=True)
class BlockReplacement:
    """One block of the largest subnetwork replaced, all else as it was.

    Attributes:
        layer: Parent layer; None for the embeddings.
        block: ``attention``, ``mlp``, ``layer`` where all of it is replaced, or ``embedding``.
        change: What replaces it.
        loss_change: Loss on the labels, less that of the whole.
        divergence: How far the outputs are from the whole's: KL for classes, see `nas.tasks.losses.divergence`.
        saved_ms: Measured latency of the whole, less that with the replacement. Layers of a stack are of one shape,
            so it is measured in the first of them.
        saved_percent: The same in percent of the whole's latency.
    """

    layer: int | None
    block: str
    change: str
    loss_change: float
    divergence: float
    saved_ms: float
    saved_percent: float


def sensitivity(recipe: Recipe, folder: str | Path) -> list[BlockReplacement]:
    """Scores and times every replacement of one block that the recipe's space holds, and every block skipped.

    Also writes ``sensitivity.csv`` into the run, whose parent is made if it is not there.

    Raises:
        InputError: If the recipe does not fit the model, the data, this device or the folder, or all layers of the
            model are one set of weights.
    """
    quiet_libraries()
    context, run = open_run(recipe, folder)
    with run.locked():
        run_stages(run, context, last="parent")
        rows = _replacements(run, context)
        write_text(run.sensitivity, csv_of(rows))
    return rows


def _replacements(run: Run, context: TaskContext) -> list[BlockReplacement]:
    supernet = Supernet(context.load_model(run.parent).to(training_device()).eval())
    examples = calibration_set(context)
    permute(supernet, unit_orders(supernet, gradient_scores(supernet, examples.batches)), hidden=[])
    supernet.calibration = calibrate(supernet, examples.batches)
    space = fully_skippable_space(supernet, search_space(context))
    found = [block for block in blocks(space) if block.subnet != space.largest and not block.drops_layer]
    saved = _saved_ms(run, context, supernet, space, found)
    scored = _scored(supernet, context.splits.search.take(EXAMPLES), space, found)
    rows = [
        BlockReplacement(layer_of(block), *describe_change(block), *scores, *saved[timing_group(space, block)])
        for block, scores in zip(found, scored, strict=True)
    ]
    return sorted(rows, key=lambda row: (-1 if row.layer is None else row.layer, row.block))


def csv_of(rows: Sequence[BlockReplacement]) -> str:
    """One line a replacement, under the names of its attributes."""
    text = StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(BlockReplacement)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return text.getvalue()


def fully_skippable_space(supernet: Supernet, space: SearchSpace) -> SearchSpace:
    """The same choices, layer by layer and at full depth, with every block that the family can skip skippable."""
    arguments = space.arguments()
    for block in supernet.family.skippable:
        width = BLOCKS[block][0]
        arguments[width] = sorted({0, *arguments[width]})
    depths = {name: [depth] for name, depth in zip(space.depth_names, space.depths, strict=True)}
    return SearchSpace(**{**arguments, **depths, "scope": "per-layer"})


def layer_of(block: Block) -> int | None:
    """The parent layer that a replacement concerns; None for the embeddings."""
    return int(block.layer) if block.layer.isdigit() else None


def describe_change(block: Block) -> tuple[str, str]:
    """What a replacement concerns (a block of a layer, the whole layer, the embeddings), and it in words."""
    field = block.name.partition(".")[0]
    parts = {**BLOCKS, "embedding": ("embedding_rank",)}
    name = next((name for name, of_block in parts.items() if field in of_block), "layer")
    return name, "skipped" if block.value == 0 else f"{field} {block.value}"


def timing_group(space: SearchSpace, block: Block) -> tuple[int, str, object]:
    """What replacements have in common that take the same time: the stack and the choice."""
    layer = layer_of(block) or 0
    stack = next(number for number, layers in enumerate(space.stacks) if layer in layers)
    return stack, block.name.partition(".")[0], block.value


def _saved_ms(
    run: Run, context: TaskContext, supernet: Supernet, space: SearchSpace, found: Sequence[Block]
) -> dict[tuple[int, str, object], tuple[float, float]]:
    """Kind of replacement -> milliseconds saved, and percent."""
    first = {timing_group(space, block): block.subnet for block in reversed(found)}
    timed = measure_subnets(run, context, supernet, [space.largest, *first.values()])
    whole = timed[space.largest.key].latency_ms
    saved = {kind: whole - timed[subnet.key].latency_ms for kind, subnet in first.items()}
    return {kind: (ms, 100 * ms / whole) for kind, ms in saved.items()}


def _scored(
    supernet: Supernet, examples: EvaluationSet, space: SearchSpace, found: Sequence[Block]
) -> list[tuple[float, float]]:
    """Change of the loss and divergence of each replacement, from one pass over the examples each."""
    supernet.activate(space.largest)
    whole = _outputs(supernet, examples)
    results = []
    with progress("sensitivity") as report:
        for number, block in enumerate(found):
            supernet.activate(block.subnet)
            results.append(_loss_and_divergence(_outputs(supernet, examples), whole, examples))
            report(number + 1, len(found), "")
    supernet.activate(supernet.parent)
    return results


Outputs = list[tuple[float, list[LogitsAndLabels]]]
"""Loss and logits of each batch."""


def _outputs(supernet: Supernet, examples: EvaluationSet) -> Outputs:
    model, found = supernet.model, []
    with evaluation_mode(model):
        for batch in examples.batches:
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            outputs = model(**inputs)
            found.append((outputs.loss.item(), examples.task.logits_and_labels(outputs, inputs)))
    return found


def _loss_and_divergence(ours: Outputs, whole: Outputs, examples: EvaluationSet) -> tuple[float, float]:
    """Mean over examples of the change in loss and of the divergence."""
    weights = torch.tensor([len(rows) for rows in examples.rows], dtype=torch.float64)
    losses = torch.tensor([mine - theirs for (mine, _), (theirs, _) in zip(ours, whole, strict=True)])
    task = examples.task
    apart = torch.stack(
        [divergence(mine, theirs, task.activation, 1.0) for (_, mine), (_, theirs) in zip(ours, whole, strict=True)]
    )
    shares = weights / weights.sum()
    return float(losses.double() @ shares), float(apart.double().cpu() @ shares)


def sensitivity_table(rows: Sequence[BlockReplacement]) -> Table:
    """The table people read before opening a search."""
    from rich.table import Table

    table = Table("layer", "block", "replaced by", "loss", "divergence", "saved ms", "saved %", box=None)
    for row in rows:
        figures = f"{row.loss_change:+.4f}", f"{row.divergence:.4f}", f"{row.saved_ms:.3g}", f"{row.saved_percent:.1f}"
        table.add_row("–" if row.layer is None else str(row.layer), row.block, row.change, *figures)
    for column in table.columns[3:]:
        column.justify = "right"
    return table
