"""Rank of the embeddings: the optimal low-rank table for the tokens that occur, no product over the vocabulary, useful
choices, heads that share the table."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from test_rank import assert_features_explain
from torch.utils.flop_counter import FlopCounterMode
from toys import TOYS, VARIANTS, context_of, logits
from transformers import AutoModel, AutoModelForMaskedLM

from nas.exports.export import enable_remote_code
from nas.modeling.modeling_nas import LowRankEmbedding
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.studies.block_search import blocks
from nas.supernets.calibration import calibrate
from nas.supernets.load import calibration_set, load_supernet
from nas.supernets.low_rank import TOKEN_SMOOTHING, CalibrationStatistics, embedding_moment, top_eigenvectors
from nas.supernets.space import recipe_choices
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from search_spaces import FAMILIES, InputError, SearchSpace, SubnetConfig

PARENT = SubnetConfig.uniform((0, 1, 2), num_attention_heads=4, intermediate_size=16, hidden_size=24)
LATENCY = {"accuracy": "maximize", "latency_ms": "minimize"}
NAME = "bert.embeddings.word_embeddings.weight"


def calibrated_bert() -> tuple[Supernet, dict[str, torch.Tensor]]:
    supernet, batch = Supernet(TOYS["bert"].model()), TOYS["bert"].labelled()
    supernet.calibration = calibrate(supernet, [batch])
    return supernet, batch


def best(table: torch.Tensor, counts: torch.Tensor, rank: int) -> torch.Tensor:
    """The optimum, in another way: truncated singular values of rows that are weighted by how often they occur."""
    roots = counts.double().sqrt()[:, None]
    u, s, vt = torch.linalg.svd(roots * table.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank] / roots


def counts_of(batch: dict[str, torch.Tensor], vocabulary: int) -> torch.Tensor:
    tokens = batch["input_ids"][batch["attention_mask"].bool()]
    return torch.bincount(tokens, minlength=vocabulary).double() + TOKEN_SMOOTHING


def test_the_error_on_the_tokens_that_occur_is_the_least_possible_and_below_that_of_plain_svd() -> None:
    table = torch.randn(200, 24) @ torch.randn(24, 24)
    tokens = torch.multinomial(1 / torch.arange(1, 201), 3000, replacement=True)
    counts = torch.bincount(tokens, minlength=200).double() + TOKEN_SMOOTHING
    basis = top_eigenvectors(embedding_moment(table, tokens), 24)
    assert torch.allclose(basis.T @ basis, torch.eye(24, dtype=torch.float64), atol=1e-10)
    full = table.double()
    u, s, vt = torch.linalg.svd(full, full_matrices=False)

    def error(approximation: torch.Tensor) -> float:
        return float((counts[:, None] * (full - approximation) ** 2).sum())

    for rank in range(1, 24):
        ours = error(full @ basis[:, :rank] @ basis[:, :rank].T)
        assert ours == pytest.approx(error(best(table, counts, rank)), rel=1e-6)
        assert ours < error((u[:, :rank] * s[:rank]) @ vt[:rank])


@pytest.mark.parametrize("family", ["bert", "gpt2", "gemma3_text"])
def test_a_rank_computes_with_the_best_table_of_that_rank(family: str) -> None:
    """The reference is the stock parent with another table, computed without our basis."""
    toy = TOYS[family]
    parent, batch = toy.model("text-classification"), toy.inputs()
    supernet = Supernet(copy.deepcopy(parent))
    supernet.calibration = calibrate(supernet, [batch])
    supernet.activate(supernet.parent.with_values(embedding_rank=60))
    table = parent.get_input_embeddings().weight
    table.data = best(table, counts_of(batch, len(table)), 8).float()
    assert supernet.embedding is not None and supernet.embedding.basis.shape == (48, 8)  # type: ignore[union-attr]
    assert torch.allclose(logits(supernet.model, batch), logits(parent, batch), atol=2e-4)


def test_the_active_channels_have_the_best_basis_of_their_own() -> None:
    supernet, batch = calibrated_bert()
    supernet.activate(supernet.parent.with_values(hidden_size=24, embedding_rank=90))
    table = supernet.embedding.weight.detach()  # type: ignore[union-attr]
    assert table.shape[1] == 24
    rank = supernet.embedding.basis.shape[1]  # type: ignore[union-attr, index]
    rows = supernet.embedding(torch.arange(len(table)))  # type: ignore[misc]
    assert torch.allclose(rows, best(table, counts_of(batch, len(table)), rank).float(), atol=1e-4)


def test_rows_are_looked_up_before_they_are_projected() -> None:
    supernet, _ = calibrated_bert()
    tokens = {"input_ids": torch.ones(2, 5, dtype=torch.long)}
    counts = []
    for percent in (100, 60):
        supernet.activate(supernet.parent.with_values(embedding_rank=percent))
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            supernet.model(**tokens)
        counts.append(flops.get_total_flops())
    assert counts[1] - counts[0] == 2 * 10 * 2 * 48 * 8


def test_gradients_reach_the_rows_through_a_fixed_basis() -> None:
    supernet, batch = calibrated_bert()
    supernet.activate(supernet.parent.with_values(embedding_rank=60))
    supernet.model(**batch).loss.backward()
    gradient, basis = supernet.model.get_parameter(NAME).grad, supernet.embedding.basis  # type: ignore[union-attr]
    assert gradient is not None and isinstance(basis, torch.Tensor) and not basis.requires_grad
    unseen = torch.ones(len(gradient)).index_fill(0, batch["input_ids"].unique(), 0).bool()
    assert gradient.norm() > 0 and not gradient[unseen].any()
    assert torch.allclose(gradient @ basis @ basis.T, gradient, atol=1e-6)


def test_bases_are_nested_and_stay_until_there_are_other_activations() -> None:
    supernet, batch = calibrated_bert()
    bases = {}
    for percent in (30, 60, 100, 60):
        supernet.activate(supernet.parent.with_values(embedding_rank=percent))
        bases[percent] = supernet.embedding.basis  # type: ignore[union-attr]
        with torch.no_grad():
            supernet.model.get_parameter(NAME).add_(0.3 * torch.randn(len(supernet.embedding.weight), 48))  # type: ignore[union-attr]
    assert bases[100] is None and torch.equal(bases[60][:, :4], bases[30])
    supernet.calibration = calibrate(supernet, [batch])
    supernet.activate(supernet.parent.with_values(embedding_rank=60))
    assert not torch.allclose(supernet.embedding.basis, bases[60], atol=1e-2)  # type: ignore[union-attr, arg-type]


def test_padding_does_not_count_and_activations_come_back_from_disk(tmp_path: Path) -> None:
    supernet, batch = calibrated_bert()
    table = supernet.model.get_parameter(NAME).detach().double()
    counts = counts_of(batch, len(table))
    assert supernet.calibration is not None and supernet.calibration.embedding is not None
    expected = table.T @ (counts[:, None] * table) / counts.sum()
    assert torch.allclose(supernet.calibration.embedding, expected, atol=1e-10)
    supernet.calibration.save(tmp_path)
    loaded = CalibrationStatistics.load(tmp_path)
    assert loaded is not None and loaded.embedding is not None
    assert torch.equal(loaded.embedding, supernet.calibration.embedding.float().double())
    assert loaded.moments.keys() == supernet.calibration.moments.keys()
    replace(supernet.calibration, embedding=None).save(tmp_path)
    assert CalibrationStatistics.load(tmp_path).embedding is None  # type: ignore[union-attr]
    supernet.calibration = replace(supernet.calibration, embedding=None)
    with pytest.raises(InputError, match="calibrated"):
        supernet.activate(supernet.parent.with_values(embedding_rank=60))


def test_an_export_loads_bare_and_with_another_head(tmp_path: Path) -> None:
    """The other head gets a table of its own: it cannot share one of another width."""
    supernet, batch = calibrated_bert()
    model = supernet.extract(supernet.parent.with_values(embedding_rank=60))
    table = model.bert.embeddings.word_embeddings
    assert isinstance(table, LowRankEmbedding) and "Embedding(20, 8" in str(table) and not table.up.bias
    enable_remote_code(model, "AutoModelForSequenceClassification")
    model.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForMaskedLM):
        reloaded = auto.from_pretrained(tmp_path, trust_remote_code=True).eval().base_model
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            hidden = [m(**inputs).last_hidden_state for m in (reloaded, model.base_model)]
        assert torch.allclose(*hidden, atol=1e-6)


# -- heads that share the table ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", [*TOYS.values(), *VARIANTS.values()], ids=[*TOYS, *VARIANTS])
def test_a_head_that_shares_the_table_keeps_it_in_full_rank(toy: Any) -> None:
    family = FAMILIES[toy.model_type]
    for task in family.tasks if family.embedding else ():
        supernet = Supernet(toy.model(task))
        assert (supernet.embedding is None) == supernet.layout.ties_embedding(task)
        if supernet.embedding is None:
            with pytest.raises(InputError, match="shares the embedding table"):
                supernet.activate(supernet.parent.with_values(embedding_rank=50))


@pytest.mark.parametrize(("family", "why"), [("albert", "projected"), ("electra", "projected"), ("t5", "one table")])
def test_families_whose_table_cannot_be_factorized_say_why(family: str, why: str) -> None:
    supernet = Supernet(TOYS[family].model())
    with pytest.raises(InputError, match=why):
        supernet.layout.search_space({"embedding_rank": [50, 100], "scope": "uniform"})
    with pytest.raises(InputError, match="cannot be factorized"):
        supernet.activate(supernet.parent.with_values(embedding_rank=50))


def test_choices_that_cannot_help_are_dropped_with_a_reason(text_recipe: Path) -> None:
    def useful(*overrides: str, task: str = "") -> tuple[Any, list[str]]:
        recipe = Recipe.load(text_recipe, ["space.embedding_rank=[full, 0.75, 0.2, 1]", *overrides])
        recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update={"type": task or recipe.task.type})})
        layout = Supernet(TOYS["bert"].model()).layout
        choices, reasons = recipe_choices(context_of(recipe, layout))
        return choices["embedding_rank"], reasons

    size = "objectives={accuracy: maximize, size_mb: minimize}"
    ranks, reasons = useful(size)
    assert ranks == [100, 75, 20] and len(reasons) == 1 and reasons[0].startswith("embedding_rank 1 dropped: at this")
    assert useful("constraints={num_parameters: <= 1e6}")[0] == [100, 75, 20]
    ranks, reasons = useful()
    assert ranks == [100] and reasons[1].startswith(
        "embedding_rank 0.75, 0.2 dropped: it only reduces num_parameters and"
    )
    ranks, reasons = useful(size, task="fill-mask")
    assert ranks == [100] and reasons[1].startswith("embedding_rank 0.75, 0.2 dropped: the output head shares")


# -- the space --------------------------------------------------------------------------------------------------------


def test_a_subnetwork_of_older_runs_keeps_its_key() -> None:
    assert "embedding_rank" not in PARENT.to_dict() and "embedding" not in str(PARENT)
    low = PARENT.with_values(embedding_rank=50)
    assert low.key != PARENT.key and "embedding rank % 50" in str(low) and low.is_uniform
    assert SubnetConfig.from_dict(low.to_dict()) == low and SubnetConfig.from_dict(PARENT.to_dict()) == PARENT
    with pytest.raises(InputError, match="embedding_rank"):
        PARENT.with_values(embedding_rank=0)


@pytest.mark.parametrize("scope", ["uniform", "per-layer"])
def test_it_is_one_choice_of_the_subnetwork(scope: Any) -> None:
    without = SearchSpace(PARENT, num_hidden_layers=[1, 2, 3], intermediate_size=[8, 16], scope=scope)
    space = SearchSpace(**{**without.arguments(), "embedding_rank": [25, 50, 100]})
    assert space.size == 3 * without.size and space.needs_calibration and not without.needs_calibration
    assert space.parameters["embedding_rank"] == (25, 50, 100)
    ranks = {space.sample(Random(k)).embedding_rank for k in range(40)}
    assert ranks == {25, 50, 100} and space.smallest.embedding_rank == 25 and space.largest == without.largest
    assert all(subnet.embedding_rank == 100 for subnet in space.uniform_scalings())
    smallest = space.smallest
    assert smallest in space and space.parameters.to_subnet(space.parameters.from_subnet(smallest)) == smallest
    assert space.smallest not in without


def test_block_search_replaces_the_embeddings_as_a_block() -> None:
    space = SearchSpace(PARENT, intermediate_size=[8, 16], embedding_rank=[50, 100])
    embedding_blocks = [block for block in blocks(space) if block.layer == "embedding_rank"]
    assert [block.subnet for block in embedding_blocks] == [PARENT.with_values(embedding_rank=50), PARENT]
    assert not any(block.drops_layer for block in embedding_blocks)


def test_latency_features_tell_what_a_low_rank_table_costs() -> None:
    choices: dict[str, Any] = {
        "intermediate_size": [4, 8, 16],
        "embedding_rank": [25, 50, 100],
        "hidden_size": [12, 24],
    }
    space = SearchSpace(PARENT, num_hidden_layers=[1, 2, 3], **choices)
    subnets = [space.sample(Random(k)) for k in range(300)]
    extra = {25: 0.3, 50: 0.5, 100: 0.0}
    law = np.array([1 + len(s.layers) + extra[s.embedding_rank] * (1 + s.hidden_size / 24) for s in subnets])
    assert_features_explain(space, subnets, law)


@pytest.mark.full
def test_a_search_with_embedding_ranks_end_to_end(text_recipe: Path, tmp_path: Path) -> None:
    overrides = ["space.embedding_rank=[full, 0.6, 0.3]", "space.num_hidden_layers=[2, 4]", "search.evaluations=16"]
    overrides += ["objectives={accuracy: maximize, num_parameters: minimize}", "parent.epochs=1", "supernet.epochs=1"]
    run = search(Recipe.load(text_recipe, overrides), tmp_path / "run")
    points = [point for point in run.verified_points() if point.subnet.embedding_rank < 100]
    assert points and all(point.measured for point in points)
    context, stored = TaskContext(run.recipe), CalibrationStatistics.load(run.supernet)
    supernet, _ = load_supernet(run, context)
    trained = calibrate(supernet, calibration_set(context).batches).embedding
    before = calibrate(Supernet(context.load_model(run.parent)), calibration_set(context).batches).embedding
    assert stored is not None and stored.embedding is not None and trained is not None
    assert torch.allclose(stored.embedding, trained, atol=1e-6)
    assert before is not None and (stored.embedding.trace() - before.trace()).abs() > 1e-4, "it was made anew"
