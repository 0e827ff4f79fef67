"""Vectors of texts: SentenceTransformer files, nearest neighbours, and what a student learns from a teacher."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from nas.tasks.losses import divergence
from nas.tasks.neighbours import neighbour_agreement
from nas.tasks.sentence_modules import MODULES, SentenceModules
from search_spaces import InputError

HIDDEN = torch.tensor([[[1.0, 5.0], [3.0, 1.0], [9.0, 9.0]]])
MASK = torch.tensor([[1, 1, 0]])


@pytest.mark.parametrize(("pooling", "expected"), [("mean", [2.0, 3.0]), ("cls", [1.0, 5.0]), ("max", [3.0, 5.0])])
def test_pooling_leaves_out_padding(pooling: str, expected: list[float]) -> None:
    assert SentenceModules(pooling).pool(HIDDEN, MASK).tolist() == [expected]
    modules = SentenceModules(pooling, normalize=True)
    unit = modules.normalized(modules.pool(HIDDEN, MASK))
    assert torch.allclose(unit.norm(dim=-1), torch.ones(1))


def write(folder: Path, *kinds: str, pooling: dict[str, object] | None = None) -> str:
    modules = [
        {"idx": k, "name": str(k), "path": f"{k}_{kind}" if k else "", "type": f"sentence_transformers.models.{kind}"}
        for k, kind in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir()
    (folder / MODULES).write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_cls_token": True}))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 40}')
    settings = {"prompts": {"query": "find: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return str(folder)


def test_files_are_read_and_written_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    modules = SentenceModules.read(write(tmp_path / "model", "Transformer", "Pooling", "Normalize"))
    assert (modules.pooling, modules.normalize, modules.max_length, modules.prompt) == ("cls", True, 40, "find: ")
    modules.write(tmp_path / "copy", 48, 64)
    assert SentenceModules.read(str(tmp_path / "copy")) == modules


def test_a_bare_encoder_has_the_mean_over_tokens(tmp_path: Path) -> None:
    assert SentenceModules.read(str(tmp_path)) == SentenceModules("mean", normalize=False)
    SentenceModules().write(tmp_path, 48, 64)
    written = SentenceModules.read(str(tmp_path))
    assert (written.pooling, written.normalize, written.max_length) == ("mean", False, 64)


def test_vectors_whose_length_matters_are_refused(tmp_path: Path) -> None:
    model = write(tmp_path, "Transformer", "Pooling")
    (tmp_path / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "dot"}')
    with pytest.raises(InputError, match="must normalize its vectors or compare them by `cosine`"):
        SentenceModules.read(model)


def test_texts_get_the_prompt_and_lower_case() -> None:
    assert SentenceModules(prompt="Find: ").prepared(["One"]) == ["Find: One"]
    assert SentenceModules(prompt="Find: ", lower_case=True).prepared(["One"]) == ["find: one"]


@pytest.mark.parametrize(
    ("kinds", "pooling", "law"),
    [
        (("Transformer", "Pooling", "Dense"), {}, r"consist of Transformer, Pooling, Normalize, but .* has Dense"),
        (("Transformer", "Pooling"), {"pooling_mode": "lasttoken"}, "must be mean, cls, max, but .* has `lasttoken`"),
        (("Transformer", "Pooling"), {"include_prompt": False}, "one without the prompt"),
    ],
)
def test_what_is_not_supported_is_refused(
    kinds: tuple[str, ...], pooling: dict[str, object], law: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=law):
        SentenceModules.read(write(tmp_path, *kinds, pooling=pooling))


def test_neighbours_are_the_others_by_cosine_similarity() -> None:
    angles = np.array([0.0, 0.1, 0.3, 2.0])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array([[1.0], [9.0], [0.1], [1.0]])
    assert neighbour_agreement(vectors, vectors, 2).tolist() == [1.0] * 4
    swapped = vectors[[0, 3, 2, 1]]
    assert neighbour_agreement(vectors, swapped, 1).tolist() == [0.0, 0.0, 0.0, 0.0]
    assert neighbour_agreement(vectors, swapped, 10).tolist() == [1.0] * 4


def test_neighbours_of_many_vectors_are_found_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, others = np.random.default_rng(0).normal(size=(2, 50, 8))
    at_once = neighbour_agreement(vectors, others, 10)
    monkeypatch.setattr("nas.tasks.neighbours.ROWS", 7)
    assert np.array_equal(neighbour_agreement(vectors, others, 10), at_once) and 0 < at_once.mean() < 1


def test_vectors_are_distilled_by_direction_and_by_neighbours() -> None:
    teacher = torch.randn(6, 8)

    def loss(student: torch.Tensor) -> float:
        return divergence([(student, teacher)], [(teacher, teacher)], "embedding", 1.0).item()

    rotation = torch.linalg.qr(torch.randn(8, 8)).Q
    assert abs(loss(3.0 * teacher)) < 1e-5
    cosine_only = 1.0 - torch.nn.functional.cosine_similarity(teacher @ rotation, teacher).mean().item()
    assert loss(teacher @ rotation) == pytest.approx(cosine_only, abs=1e-4)  # a rotation keeps all similarities
    noise = teacher + torch.randn(6, 8)
    assert loss(noise) > 1.0 - torch.nn.functional.cosine_similarity(noise, teacher).mean().item() + 1e-3
