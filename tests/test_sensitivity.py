"""Sensitivity: one block replaced at a time, scored and timed relative to the largest subnetwork."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from toys import TOYS
from transformers import AutoModelForSequenceClassification

from nas.commands.sensitivity import EXAMPLES, BlockReplacement, sensitivity, sensitivity_table
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.tasks.context import TaskContext
from search_spaces import InputError

OVERRIDES = ["space.attention_rank=[full, 0.5]", "space.mlp_rank=[full, 0.25]", "parent.epochs=1"]
OVERRIDES += ["space.embedding_rank=[full, 0.5]", "constraints={size_mb: <= 100}"]


@pytest.fixture
def rows(text_recipe: Path, tmp_path: Path) -> list[BlockReplacement]:
    return sensitivity(Recipe.load(text_recipe, OVERRIDES), tmp_path / "run")


@pytest.mark.slow
def test_every_block_is_replaced_and_skipped(rows: list[BlockReplacement], tmp_path: Path) -> None:
    attention = {"skipped", "num_attention_heads 1", "num_attention_heads 2", "attention_rank 50"}
    mlp = {"skipped", "intermediate_size 24", "mlp_rank 25"}
    expected = {(i, "attention", change) for i in range(4) for change in attention}
    expected |= {(i, "mlp", change) for i in range(4) for change in mlp} | {(None, "embedding", "embedding_rank 50")}
    assert {(row.layer, row.block, row.change) for row in rows} == expected and len(rows) == len(expected)
    assert sensitivity_table(rows).row_count == len(rows) and rows[0].layer is None and rows[0].divergence > 0
    with open(tmp_path / "run" / "sensitivity.csv") as file:
        read = list(csv.DictReader(file))
    assert [float(line["divergence"]) for line in read] == [row.divergence for row in rows]
    for change in attention:
        assert len({row.saved_ms for row in rows if (row.block, row.change) == ("attention", change)}) == 1


def test_a_skipped_block_scores_as_in_the_stock_parent_without_it(
    rows: list[BlockReplacement], tmp_path: Path
) -> None:
    """The reference zeroes what the block adds to the residual stream of the stock parent."""
    run = Run(tmp_path / "run")
    parent = AutoModelForSequenceClassification.from_pretrained(run.parent).eval()
    without_block = AutoModelForSequenceClassification.from_pretrained(run.parent).eval()
    layer = without_block.bert.encoder.layer[2]
    layer.intermediate.forward = lambda hidden: hidden
    layer.output.forward = lambda hidden, residual: residual
    examples = TaskContext(run.recipe).splits.search.take(EXAMPLES)
    losses, apart = [], []
    with torch.inference_mode():
        for batch in examples.batches:
            ours, theirs = without_block(**batch), parent(**batch)
            losses += [(ours.loss - theirs.loss).item()] * len(batch["labels"])
            logs = [outputs.logits.log_softmax(-1) for outputs in (ours, theirs)]
            apart += F.kl_div(*logs, reduction="none", log_target=True).sum(-1).tolist()
    skipped = next(row for row in rows if (row.layer, row.block, row.change) == (2, "mlp", "skipped"))
    assert skipped.loss_change == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert skipped.divergence == pytest.approx(sum(apart) / len(apart), abs=1e-5) and skipped.divergence > 0


def test_layers_of_one_set_of_weights_are_refused(text_folder: Path, text_recipe: Path, tmp_path: Path) -> None:
    toy = replace(TOYS["albert"], config={**TOYS["albert"].config, "num_labels": 2})
    toy.model().config.save_pretrained(text_folder / "model")
    recipe = Recipe.load(text_recipe, ["space.scope=uniform", "parent.epochs=1"])
    with pytest.raises(InputError, match="share their weights"):
        sensitivity(recipe, tmp_path / "run")
