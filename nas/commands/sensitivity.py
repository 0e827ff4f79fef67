"""`nas sensitivity`: replaces one block of the parent at a time and measures the change in loss and in latency.

The replacements are those of Puzzle's block library (Bercovich et al. 2024, arXiv 2411.19146), on the parent's weights
in order of importance.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.pipeline import run_stages
from nas.recipe.schema import Recipe
from nas.runs.files import write_text
from nas.runs.progress import progress, quiet_libraries
from nas.runs.run import Run
from nas.stages.check import open_run
from nas.studies.block_search import Block, blocks
from nas.supernets.calibration import calibrate
from nas.supernets.changes import changes
from nas.supernets.device import training_device
from nas.supernets.importance import gradient_scores, permute, unit_orders
from nas.supernets.latency import measure_subnets
from nas.supernets.load import calibration_set
from nas.supernets.space import search_space
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import EvaluationSet
from search_spaces import SearchSpace
from search_spaces.dimensions import BLOCKS, OF_INPUTS, PER_SUBNET

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = 256
"""Examples of the search slice on which a replacement is scored."""


@dataclass(frozen=True)
class BlockReplacement:
    """One block of the largest subnetwork, replaced.

    Attributes:
        layer: Parent layer; None for the embeddings.
        block: ``attention``, ``mlp``, ``layer`` for both, or ``embedding``.
        change: The replacement.
        loss_change: Loss on the labels, minus that of the largest subnetwork.
        divergence: Divergence from the outputs of the largest subnetwork: KL for classes, see
            `nas.tasks.losses.divergence`.
        saved_ms: Latency of the largest subnetwork minus that with the replacement. It is measured in the first layer
            of a stack, as all layers of a stack have one shape.
        saved_percent: ``saved_ms`` in percent of the latency of the largest subnetwork.
    """

    layer: int | None
    block: str
    change: str
    loss_change: float
    divergence: float
    saved_ms: float
    saved_percent: float


def sensitivity(recipe: Recipe, folder: str | Path) -> list[BlockReplacement]:
    """Scores and measures every replacement of one block in the recipe's space, and every skipped block.

    Also writes ``sensitivity.csv`` into the run; its parent is built if it does not exist.

    Raises:
        InputError: If the recipe does not fit the model, the data, this device or the folder, or all layers of the
            model share their weights.
    """
    quiet_libraries()
    context, run = open_run(recipe, folder)
    with run.locked():
        run_stages(run, context, last="parent")
        rows = _replacements(run, context)
        write_text(run.sensitivity, csv_of(rows))
    return rows


def _replacements(run: Run, context: TaskContext) -> list[BlockReplacement]:
    supernet = Supernet(context.load_model(run.parent).eval()).to(training_device())
    examples = calibration_set(context)
    permute(supernet, unit_orders(supernet, gradient_scores(supernet, examples.batches, examples.task)), hidden=[])
    supernet.calibration = calibrate(supernet, examples.batches)
    space = fully_skippable_space(supernet, search_space(context))
    candidates = [block for block in blocks(space) if block.subnet != space.largest and not block.drops_layer]
    saved = _saved_ms(run, context, supernet, space, candidates)
    scored = _scored(supernet, context.splits.search.take(EXAMPLES), space, candidates)
    rows = [
        BlockReplacement(layer_of(block), *describe_change(block), *scores, *saved[timing_group(space, block)])
        for block, scores in zip(candidates, scored, strict=True)
    ]
    return sorted(rows, key=lambda row: (-1 if row.layer is None else row.layer, row.block))


def csv_of(rows: Sequence[BlockReplacement]) -> str:
    """CSV with one line per replacement; the columns are its attributes."""
    text = StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(BlockReplacement)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, rows))
    return text.getvalue()


def fully_skippable_space(supernet: Supernet, space: SearchSpace) -> SearchSpace:
    """The same choices per layer at full depth, plus skipping every block that the family can skip."""
    arguments: dict[str, Any] = {**space.arguments(), **dict.fromkeys(OF_INPUTS)}  # other inputs make other batches
    for block in supernet.family.skippable:
        width = BLOCKS[block][0]
        arguments[width] = sorted({0, *arguments[width]})
    depths = {name: [depth] for name, depth in zip(space.depth_names, space.depths, strict=True)}
    return SearchSpace(**{**arguments, **depths, "scope": "per-layer"})


def layer_of(block: Block) -> int | None:
    """The parent layer of a replacement; None for the embeddings."""
    return int(block.layer) if block.layer.isdigit() else None


def describe_change(block: Block) -> tuple[str, str]:
    """The replaced block (of a layer, the layer itself, or the embeddings), and the replacement as text."""
    field = block.name.partition(".")[0]
    fields_of_block = {**BLOCKS, "embedding": tuple(name for name in PER_SUBNET if name.startswith("embedding"))}
    name = next((name for name, names in fields_of_block.items() if field in names), "layer")
    return name, "skipped" if block.value == 0 else f"{field} {block.value}"


def timing_group(space: SearchSpace, block: Block) -> tuple[int, str, object]:
    """A key that replacements of equal latency share: stack, dimension, value."""
    layer = layer_of(block) or 0
    stack = next(number for number, layers in enumerate(space.stacks) if layer in layers)
    return stack, block.name.partition(".")[0], block.value


def _saved_ms(
    run: Run, context: TaskContext, supernet: Supernet, space: SearchSpace, candidates: Sequence[Block]
) -> dict[tuple[int, str, object], tuple[float, float]]:
    """Timing group -> milliseconds saved, and percent."""
    first = {timing_group(space, block): block.subnet for block in reversed(candidates)}
    timed = measure_subnets(run.target, context, supernet, [space.largest, *first.values()])
    largest_ms = timed[space.largest.key].latency_ms
    saved = {group: largest_ms - timed[subnet.key].latency_ms for group, subnet in first.items()}
    return {group: (ms, 100 * ms / largest_ms) for group, ms in saved.items()}


def _scored(
    supernet: Supernet, examples: EvaluationSet, space: SearchSpace, candidates: Sequence[Block]
) -> list[tuple[float, float]]:
    """Change of the loss, and divergence, of each replacement."""
    with progress("sensitivity") as report:
        found = changes(
            supernet,
            space.largest,
            [block.subnet for block in candidates],
            examples,
            lambda done: report(done, len(candidates), ""),
        )
    supernet.activate(supernet.parent)
    return found


def sensitivity_table(rows: Sequence[BlockReplacement]) -> Table:
    """The replacements as a table for the terminal."""
    from rich.table import Table

    table = Table("layer", "block", "replaced by", "loss", "divergence", "saved ms", "saved %", box=None)
    for row in rows:
        values = f"{row.loss_change:+.4f}", f"{row.divergence:.4f}", f"{row.saved_ms:.3g}", f"{row.saved_percent:.1f}"
        table.add_row("–" if row.layer is None else str(row.layer), row.block, row.change, *values)
    for column in table.columns[3:]:
        column.justify = "right"
    return table
