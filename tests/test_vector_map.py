"""A map to the width of the parent's vectors: the least-squares one, and what SentenceTransformer computes with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_tasks import SENTENCES, Make

from nas.exports.card import write_card
from nas.exports.export import save_subnet
from nas.exports.vector_map import VectorMap, add_vector_map, pooled_vectors
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.sentence_modules import SentenceModules
from search_spaces import InputError, SubnetConfig

NARROW = SubnetConfig.uniform((0, 1, 2, 3), num_attention_heads=4, intermediate_size=96, hidden_size=40)


def normalizing(context: TaskContext) -> TaskContext:
    """The same with a model that is a SentenceTransformer and gives vectors of length 1."""
    folder = Path(context.recipe.model)
    SentenceModules().write(folder, 48, 64)
    modules = json.loads((folder / "modules.json").read_text())
    last = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
    (folder / "modules.json").write_text(json.dumps([*modules, last]))
    return TaskContext(context.recipe)


def test_the_map_has_the_least_squared_error() -> None:
    vectors, weight, bias = torch.randn(400, 6), torch.randn(9, 6), torch.randn(9)
    targets = vectors @ weight.T + bias + 0.1 * torch.randn(400, 9)
    fitted = VectorMap.fit(vectors, targets)
    design = np.concatenate([vectors.numpy(), np.ones((400, 1))], axis=1)
    expected = np.linalg.lstsq(design, targets.numpy(), rcond=None)[0]
    assert np.allclose(fitted.weight, expected[:6].T, atol=1e-3) and np.allclose(fitted.bias, expected[6], atol=1e-3)
    few = VectorMap.fit(torch.randn(3, 6), torch.randn(3, 9))  # fewer texts than components
    assert few.weight.isfinite().all()


def test_an_export_gives_vectors_of_the_parents_width_near_to_them(make: Make, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    context = normalizing(make("vectors"))
    supernet = Supernet(context.load_model())
    save_subnet(supernet, NARROW, context, tmp_path / "small")
    model = supernet.extract(NARROW)
    added = add_vector_map(tmp_path / "small", model, context)
    kinds = [module["type"].rpartition(".")[2] for module in json.loads((tmp_path / "small/modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Dense", "Normalize"]
    loaded = library.SentenceTransformer(str(tmp_path / "small"), device="cpu", trust_remote_code=True)
    vectors = torch.from_numpy(loaded.encode(SENTENCES))
    assert vectors.shape[1] == 48 == added["width"] and torch.allclose(vectors.norm(dim=1), torch.ones(len(vectors)))
    parent = library.SentenceTransformer(context.recipe.model, device="cpu")
    whole = torch.from_numpy(parent.encode(SENTENCES[::3]))
    found = F.cosine_similarity(torch.from_numpy(loaded.encode(SENTENCES[::3])), whole).mean().item()
    assert added["cosine_similarity"] == pytest.approx(found, abs=1e-4)
    narrow, targets = pooled_vectors(model, context.splits.test, context.splits.task)  # type: ignore[arg-type]
    padded = F.cosine_similarity(F.pad(narrow, (0, 8)), targets).mean().item()
    assert narrow.shape[1] == 40 and found > padded


def test_only_narrower_vectors_are_mapped(make: Make, tmp_path: Path) -> None:
    context = make("vectors")
    with pytest.raises(InputError, match=r"`--parent-width` is for narrower vectors, but these have all 48 comp"):
        add_vector_map(tmp_path, context.load_model(), context)
    context = make("single label")
    with pytest.raises(InputError, match=r"`--parent-width` is for vectors of texts, but the task is text-classif"):
        add_vector_map(tmp_path, context.load_model(), context)


def test_the_card_says_how_near_they_are(tmp_path: Path) -> None:
    info = {
        "name": "toy", "license": None, "base_model": None, "task": "sentence-similarity", "key": "k",
        "subnet": NARROW.to_dict(), "values": {"spearman": 0.8}, "errors": {}, "measured": True, "split": "test",
        "workload": {"sequence_length": 16}, "device": "cpu",
        "parent_width": {"width": 48, "texts": 90, "cosine_similarity": 0.98765},
    }  # fmt: skip
    write_card(tmp_path, info)
    card = (tmp_path / "README.md").read_text()
    assert "fitted on 90 texts, brings its vectors to the 48 components" in card and "is 0.9877" in card
