"""An export of ours is the parent of the next search: a stock model with zeros in place of what was cut."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers
from samples import DAILY_FAMILIES, sampled
from toys import TOYS, bert, logits

from nas.modeling.unfolded import is_export, unfold, unfolded_config
from nas.recipe.schema import Recipe
from nas.stages.check import check_recipe
from nas.stages.parent_check import check_parent
from nas.supernets.calibration import calibrate
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from search_spaces import FAMILIES, TASKS, InputError, Layout, SubnetConfig

ENCODERS = ("bert", "distilbert", "electra", "modernbert", "deberta-v2", "mpnet", "vit", "dinov2", "clip")
DECODERS = ("gpt2", "gpt_neox", "opt", "llama", "qwen2", "gemma2", "phi3", "smollm3")
MODEL_TYPES = (*ENCODERS, *DECODERS, "t5", "bart", "whisper")


def export(supernet: Supernet, subnet: SubnetConfig, folder: Path) -> Any:
    """Writes what of an export matters here."""
    model = supernet.extract(subnet)
    model.save_pretrained(folder)
    (folder / "subnet.json").write_text(json.dumps({"subnet": subnet.to_dict()}))
    return model.eval()


def reloaded(folder: Path, task: str) -> Any:
    """The export as the parent of a search."""
    auto = getattr(transformers, TASKS[task].auto_class)
    config, model = transformers.AutoConfig.from_pretrained(folder), auto.from_pretrained(folder)
    assert is_export(config)
    return unfold(model, unfolded_config(config, str(folder)), str(folder)).eval()


@pytest.mark.parametrize("model_type", sampled(MODEL_TYPES, lambda name: name in DAILY_FAMILIES))
def test_outputs_stay_when_what_was_cut_is_filled_with_zeros(model_type: str, tmp_path: Path) -> None:
    toy, task = TOYS[model_type], FAMILIES[model_type].tasks[0]
    supernet = Supernet(toy.model())
    full = supernet.layout.parent_values[0]
    choices = {"num_hidden_layers": [2, 3], "intermediate_size": [24, 60]}
    for name in ("num_attention_heads", "num_key_value_heads"):
        if full["num_attention_heads"] != full["num_key_value_heads"] or name == "num_attention_heads":
            choices[name] = [full[name] // 4, full[name] // 2, full[name]]
    space = supernet.layout.search_space(choices)
    rng, inputs, found = Random(0), toy.inputs(), 0
    for number in range(6):
        subnet = space.sample(rng)
        model = export(supernet, subnet, folder := tmp_path / str(number))
        if not is_export(model.config):
            continue
        found += 1
        parent = reloaded(folder, task)
        assert not is_export(parent.config) and "Nas" not in type(parent).__name__
        torch.testing.assert_close(logits(parent, inputs), logits(model, inputs), atol=1e-4, rtol=1e-4)
        assert max(subnet.intermediate_size) <= Layout(parent.config).parent.intermediate_size[0] <= 96
    assert found


@pytest.mark.parametrize("model_type", ["bert", "llama", "vit"])
def test_a_narrower_hidden_size_stays(model_type: str, tmp_path: Path) -> None:
    toy = TOYS[model_type]
    supernet, inputs = Supernet(toy.model()), toy.inputs()
    model = export(supernet, SubnetConfig([0, 2], [1, 2], [24, 60], 24), tmp_path / "small")
    parent = reloaded(tmp_path / "small", FAMILIES[model_type].tasks[0])
    assert Layout(parent.config).parent.hidden_size == 24
    torch.testing.assert_close(logits(parent, inputs), logits(model, inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_factors_become_one_matrix_again(model_type: str, tmp_path: Path) -> None:
    toy = TOYS[model_type]
    supernet, inputs = Supernet(toy.model()), toy.inputs()
    supernet.calibration = calibrate(supernet, [inputs])
    subnet = SubnetConfig([0, 2], [2, 4], [24, 60], 48, mlp_rank=(50, 100), attention_rank=(100, 50))
    model = export(supernet, subnet, tmp_path / "small")
    parent = reloaded(tmp_path / "small", FAMILIES[model_type].tasks[0])
    torch.testing.assert_close(logits(parent, inputs), logits(model, inputs), atol=1e-4, rtol=1e-4)


def test_an_export_is_searched_again(text_recipe: Path, tmp_path: Path) -> None:
    context = TaskContext(Recipe.load(text_recipe))
    supernet = Supernet(bert(num_labels=2))
    subnet = SubnetConfig([0, 2, 3], [1, 2, 4], [24, 96, 60], 48)
    model = export(supernet, subnet, tmp_path / "small")
    context.save_processor(tmp_path / "small")
    again = check_recipe(Recipe.load(text_recipe, [f"model={tmp_path}/small", "space.num_hidden_layers=[1, 2, 3]"]))
    parent = again.load_model()
    assert any("filled up with zeros" in line for line in check_parent(again, tmp_path / "run"))
    assert again.has_head and type(parent) is type(supernet.model) and len(again.layout.parent.layers) == 3
    batch = {name: tensor for name, tensor in again.splits.test.batches[0].items() if name != "labels"}
    torch.testing.assert_close(parent.eval()(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-4)
    assert is_export(context.load_model(tmp_path / "small").config), "a model of the run stays what it is"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"bits": ("int8", "float32")}, "integers or sparse attention"),
        ({"attention": ("local:4", "full")}, "integers or sparse attention"),
        ({"num_attention_heads": (2, 0)}, "skips blocks"),
    ],
)
def test_an_export_that_is_no_stock_model_is_refused(
    values: dict[str, Any], says: str, text_recipe: Path, tmp_path: Path
) -> None:
    context, supernet = TaskContext(Recipe.load(text_recipe)), Supernet(bert(num_labels=2))
    subnet = SubnetConfig(
        [0, 1], **{"num_attention_heads": (2, 4), "intermediate_size": (24, 96), "hidden_size": 48, **values}
    )
    export(supernet, subnet, tmp_path / "small")
    context.save_processor(tmp_path / "small")
    with pytest.raises(InputError, match=says):
        TaskContext(Recipe.load(text_recipe, [f"model={tmp_path}/small"])).load_model()


def test_an_export_without_its_subnet_file_is_refused(text_recipe: Path, tmp_path: Path) -> None:
    export(Supernet(bert(num_labels=2)), SubnetConfig([0, 1], [1, 2], [24, 96], 48), tmp_path / "small")
    (tmp_path / "small" / "subnet.json").unlink()
    with pytest.raises(InputError, match=r"subnet\.json.*copy the whole folder"):
        _ = TaskContext(Recipe.load(text_recipe, [f"model={tmp_path}/small"])).config
