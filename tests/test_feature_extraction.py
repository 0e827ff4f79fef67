"""Feature extraction: no labels anywhere; the recipe's model is the teacher, the target and a SentenceTransformer."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_tasks import SENTENCES, Make, encoder

from nas.commands.init import propose_recipe
from nas.exports.export import save_subnet
from nas.recipe.schema import Recipe
from nas.stages.check import check_recipe, open_run
from nas.supernets.importance import gradient_scores, order_by_importance
from nas.supernets.load import calibration_set
from nas.supernets.space import search_space
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score, score_in_slices
from search_spaces import InputError, SearchSpace


@pytest.fixture
def context(make: Make) -> TaskContext:
    return make("vectors")


def supernet_of(context: TaskContext) -> tuple[Supernet, SearchSpace]:
    return Supernet(context.load_model()), search_space(context)


def without_parent_epochs(context: TaskContext, **sections: dict[str, Any]) -> Recipe:
    data = context.recipe.model_dump(mode="json", exclude_none=True)
    del data["parent"]["epochs"]
    data["task"]["search_examples"] = 20
    return Recipe.parse({**data, **{name: {**data[name], **changes} for name, changes in sections.items()}})


def test_each_line_is_a_text_and_the_labels_are_the_vectors_of_the_model(context: TaskContext) -> None:
    splits, model = context.splits, context.load_model().eval()
    assert splits.more is not None
    assert len(splits.train) + len(splits.search) + len(splits.more) == len(SENTENCES)
    batch = splits.search.batches[0]
    with torch.no_grad():
        hidden = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).last_hidden_state
    mask = batch["attention_mask"][..., None]
    assert torch.allclose(batch["labels"], (hidden * mask).sum(1) / mask.sum(1), atol=1e-5)
    assert "labels" not in splits.task.collate([splits.train[0], splits.train[1]])
    assert pickle.loads(pickle.dumps(splits.search)).batches[0].keys() == batch.keys()


def test_texts_are_embedded_by_the_model_when_they_are_first_scored(context: TaskContext) -> None:
    splits = context.splits
    assert not any("labels" in batch for examples in (splits.search, splits.test) for batch in examples.collated)
    score(context.load_model(), splits.search.take(1), ["cosine_similarity"])
    first, *others = splits.search.collated
    assert not first["labels"].is_inference() and not any("labels" in batch for batch in others)
    assert not any("labels" in batch for batch in splits.test.collated)


def test_metrics_fall_with_the_distance_from_the_model(context: TaskContext) -> None:
    names = ["cosine_similarity", "top10_agreement"]
    supernet, space = supernet_of(context)
    full = score(supernet.model, context.splits.test, names)
    assert [full[name].value for name in names] == pytest.approx([1.0, 1.0], abs=1e-6)
    supernet.activate(space.smallest)
    small = score(supernet.model, context.splits.test, names)
    assert all(0 < small[name].value < 0.999 and small[name].standard_error > 0 for name in names)


def test_an_evaluation_is_cut_in_slices_only_if_each_text_has_its_own_value(context: TaskContext) -> None:
    model, examples = context.load_model(), context.splits.search
    batches = examples.batches
    parts = examples.__class__(examples.task, (*batches, *batches), (*examples.rows, *examples.rows))
    for name, slices in (("cosine_similarity", 2), ("top10_agreement", 1)):
        assert len(list(score_in_slices(model, parts, [name], [0.5]))) == slices


def test_heads_and_neurons_are_scored_without_labels(context: TaskContext) -> None:
    supernet, _ = supernet_of(context)
    batches = calibration_set(context).labelled_batches(32)
    scores = gradient_scores(supernet, batches, context.splits.task)
    with torch.no_grad():
        supernet.model.encoder.layer[0].output.dense.weight[:, :48] = 0.0  # half of the neurons say nothing
    silent = gradient_scores(supernet, batches, context.splits.task)["ffn"][0]
    assert all(layer.min() > 0 for layer in scores["ffn"])
    assert silent[:48].max() == 0 < silent[48:].min()


def test_the_order_of_importance_leaves_the_vectors_as_they_were(context: TaskContext) -> None:
    supernet, _ = supernet_of(context)
    batches = calibration_set(context).labelled_batches(32)
    order = order_by_importance(supernet, batches, batches[:1], task=context.splits.task)
    assert order.units and order.hidden == []
    assert score(supernet.model, context.splits.test, ["cosine_similarity"])["cosine_similarity"].value > 0.9999


def test_what_needs_labels_is_refused(context: TaskContext) -> None:
    with pytest.raises(InputError, match=r"`supernet.teacher` must be `parent` for feature-extraction"):
        check_recipe(without_parent_epochs(context, supernet={"strategy": "sandwich", "teacher": "in-place"}))
    check_recipe(without_parent_epochs(context))


def test_a_narrower_stream_gives_narrower_vectors(context: TaskContext) -> None:
    checked = check_recipe(without_parent_epochs(context, space={"hidden_size": [24, 48]}))
    supernet, space = Supernet(checked.load_model()), search_space(checked)
    supernet.activate(space.smallest)
    first = checked.splits.test.batches[0]
    outputs = supernet.model.eval()(**{name: tensor for name, tensor in first.items() if name != "labels"})
    ((vectors, labels),) = checked.splits.task.logits_and_labels(outputs, first)
    assert vectors.shape[1] == space.smallest.embedding_dim == 24 and labels.shape[1] == 48
    found = score(supernet.model, checked.splits.test, ["cosine_similarity"])["cosine_similarity"].value
    expected = [cosine_similarity(v, t) for v, t in pairs(supernet, checked)]
    assert found == pytest.approx(float(np.mean(expected)), abs=1e-5)


def pairs(supernet: Supernet, context: TaskContext) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The vector of each text of the held-out split, with zeros to the width of the model's own, and that."""
    found = []
    for batch in context.splits.test.batches:
        with torch.no_grad():
            outputs = supernet.model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        vectors = context.splits.task.embeddings(outputs, batch)
        found += list(zip(torch.nn.functional.pad(vectors, (0, 24)), batch["labels"], strict=True))
    return found


def cosine_similarity(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def test_only_finetuning_trains_without_labels_for_some_epochs(context: TaskContext, tmp_path: Path) -> None:
    recipe = without_parent_epochs(context, parent={"epochs": 1})
    with pytest.raises(
        InputError, match=r"`parent.epochs` must be left out for feature-extraction, .* `nas finetune`"
    ):
        open_run(recipe, tmp_path / "run")
    check_recipe(recipe)


def test_a_model_without_weights_is_refused(context: TaskContext) -> None:
    Path(context.recipe.model, "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"feature-extraction needs a trained model, but .* has no weights"):
        check_recipe(without_parent_epochs(context))


def test_a_recipe_is_proposed_for_a_bare_encoder_and_plain_text(tmp_path: Path) -> None:
    encoder(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    data = propose_recipe(str(tmp_path / "model"), str(tmp_path / "texts.txt"), str(tmp_path / "texts.txt")).data
    assert data["task"]["type"] == "feature-extraction" and data["task"]["max_length"] == 8
    assert data["objectives"] == {"cosine_similarity": "maximize", "latency_ms": "minimize"}
    assert "hidden_size" not in data["space"]


def test_an_export_is_a_sentence_transformer_with_the_same_vectors(context: TaskContext, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    supernet, space = supernet_of(context)
    save_subnet(supernet, space.smallest, context, tmp_path / "small")
    supernet.activate(space.smallest)
    batch = context.splits.task.collate(rows(context))
    with torch.no_grad():
        expected = context.splits.task.embeddings(supernet.model.eval()(**batch), batch).numpy()
    loaded = library.SentenceTransformer(str(tmp_path / "small"), device="cpu", trust_remote_code=True)
    assert np.abs(loaded.encode(SENTENCES[:5]) - expected).max() < 1e-5


def rows(context: TaskContext) -> list[dict[str, Any]]:
    tokens = context.splits.task.tokenize(SENTENCES[:5])
    return [{name: values[row] for name, values in tokens.items()} for row in range(5)]
