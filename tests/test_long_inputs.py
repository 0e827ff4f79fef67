"""Texts longer than a model's learned positions: the positions are repeated, nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from toys import TOYS, WORDS, bert, logits

from nas.modeling.longer_positions import extend_config, extend_positions
from nas.recipe.schema import Recipe
from nas.stages.check import check_recipe
from nas.tasks.context import TaskContext
from search_spaces import FAMILIES, InputError, Layout

LEARNED = [name for name, family in FAMILIES.items() if family.learned_positions]


def text(tokens: int) -> dict[str, torch.Tensor]:
    """A random text of so many words."""
    ids = torch.randint(5, len(WORDS), (1, tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def rows(model: Any, end: str) -> torch.Tensor:
    """Position embeddings that tokens use."""
    name = next(n for n in model.state_dict() if n.endswith(f"{end}.weight"))
    weight = model.state_dict()[name]
    limit = Layout(model.config).inputs.max_sequence_length
    assert limit is not None
    return weight[len(weight) - limit :]


def test_the_usual_families_learn_their_positions() -> None:
    assert {"bert", "roberta", "distilbert", "electra", "albert", "gpt2", "opt", "bart"} <= set(LEARNED)
    assert not {"llama", "t5", "marian", "whisper", "modernbert", "vit", "deberta-v2"} & set(LEARNED)


@pytest.mark.parametrize("family", LEARNED)
def test_positions_are_repeated_and_outputs_of_shorter_texts_stay(family: str) -> None:
    model = TOYS[family].model()
    limit = Layout(model.config).inputs.max_sequence_length
    assert limit is not None
    config = extend_config(model.config, 150)
    extended = extend_positions(model, config)
    assert Layout(extended.config).inputs.max_sequence_length == 150 and model.config.max_position_embeddings == 64
    before, after = (rows(m, FAMILIES[family].learned_positions) for m in (model, extended))
    assert torch.equal(after, before.repeat(3, 1)[:150])
    batch = TOYS[family].inputs()
    assert torch.equal(logits(extended, batch), logits(model, batch))
    assert torch.isfinite(logits(extended, text(150))).all()


def test_models_with_enough_or_no_learned_positions_stay() -> None:
    model = bert()
    assert extend_config(model.config, 64) is model.config and extend_positions(model, model.config) is model
    rotary = TOYS["llama"].model().config
    assert extend_config(rotary, 150) is rotary


def test_a_recipe_may_have_longer_texts_than_its_model(text_recipe: Path, text_folder: Path) -> None:
    transformers.set_seed(0)
    bert().save_pretrained(text_folder / "model")
    recipe = Recipe.load(text_recipe, ["task.max_length=100", "workload.sequence_length=100"])
    context = check_recipe(recipe)
    assert context.extends_positions and context.processor.model_max_length == 100
    model = context.load_model()
    assert model.config.max_position_embeddings == 100 and not model.training
    stored = transformers.AutoModel.from_pretrained(text_folder / "model").state_dict()
    weights = model.base_model.state_dict()["embeddings.position_embeddings.weight"]
    assert torch.equal(weights[64:], stored["embeddings.position_embeddings.weight"][:36])
    assert not TaskContext(Recipe.load(text_recipe)).extends_positions


@pytest.mark.parametrize("key", ["task.max_length", "workload.sequence_length"])
def test_positions_that_are_not_learned_are_not_extended(key: str, text_recipe: Path, text_folder: Path) -> None:
    TOYS["modernbert"].model().config.save_pretrained(text_folder / "model")
    with pytest.raises(InputError, match=f"`{key}` must be at most the 64 positions of the model, but got 65"):
        check_recipe(Recipe.load(text_recipe, [f"{key}=65"]))
