"""Model types without a table: they get that of a type laid out alike, and are proved before anything is written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers
import yaml
from toys import SIZES, TEXT
from transformers.models.granite.modeling_granite import GraniteMLP
from typer.testing import CliRunner

from nas.cli import app
from nas.commands.families import describe_type
from nas.modeling.known_layouts import adopt, nearest_layout, small_model
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.layout_proof import proposed_space, prove_layout, prove_what_holds
from nas.supernets.supernet import Supernet
from search_spaces import ADOPTED, FAMILIES, Family, InputError, SearchSpace, family_of
from search_spaces.families.checked import checked_types


def adopted(model_type: str) -> Family:
    family = adopt(model_type)
    assert family is not None and ADOPTED[model_type] is family
    return family


@pytest.mark.parametrize(
    ("model_type", "alike", "dimensions"),
    [
        ("camembert", "roberta", {"num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_size"}),
        ("granite", "llama", {"num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_size"}),
        ("blenderbot-small", "bart", {"num_decoder_layers", "hidden_size"}),
        ("qwen2_vl_text", "llama", {"num_attention_heads", "hidden_size"}),  # its config cannot set head_dim
        ("vit_msn", "vit", {"num_hidden_layers", "hidden_size"}),
    ],
)
def test_a_type_that_is_laid_out_alike_gets_the_table_and_is_proved(
    model_type: str, alike: str, dimensions: set[str]
) -> None:
    family = adopted(model_type)
    assert family.alike == alike and model_type not in FAMILIES
    model = small_model(family, family.tasks[0])
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    proof = prove_layout(model, family.tasks[0], proposed_space(model))
    assert dimensions <= {*proof.dimensions} and {"sdpa", "eager"} == {*proof.attentions}
    assert proof.cached == (model_type == "granite")
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_the_text_model_of_a_type_with_several_parts_is_found_without_what_its_projector_reads() -> None:
    family = adopted("llava")
    assert family.alike == "llama" and family.sub_config == "text_config" and "feature-extraction" in family.tasks
    assert [stack.layers for stack in family.stacks] == ["language_model.layers"]
    assert "projector" in family.fixed_reasons["hidden_size"] and "hidden_size" not in family.dimensions
    model = small_model(family, "feature-extraction")
    assert model.num_parameters() < 1_000_000
    proof = prove_layout(model, "feature-extraction", proposed_space(model))
    assert "num_attention_heads" in proof.dimensions


def test_a_model_of_waves_has_no_tasks_of_texts() -> None:
    assert adopted("unispeech").tasks == ("automatic-speech-recognition-ctc", "audio-classification")


def test_layers_of_a_part_are_a_table_of_their_own_on_their_own() -> None:
    """CLIP's table is of the part of a model; here the part is the model."""
    family = adopted("clip_vision_model")
    assert family.alike == "clip" and not family.sub_config and family.stacks[0].layers == "encoder.layers"
    model = small_model(family, "image-feature-extraction")
    assert "hidden_size" in prove_layout(model, "image-feature-extraction", proposed_space(model)).dimensions


def test_layers_that_do_not_run_on_the_inputs_are_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is done to them changes nothing, so that every law would hold."""
    family = adopted("granite")
    model = small_model(family, "text-generation")
    layers = model.base_model.layers
    monkeypatch.setattr(type(layers[0]), "forward", lambda self, hidden_states, **kwargs: hidden_states)
    with pytest.raises(InputError, match="do not run on such inputs"):
        prove_layout(model, "text-generation", _depths_and_neurons(proposed_space(model)))


def _depths_and_neurons(space: SearchSpace) -> SearchSpace:
    """A space in which these vary and nothing else."""
    kept = {"parent", "scope", "layer_order", "depths", "num_hidden_layers", "intermediate_size"}
    return SearchSpace(**{key: value for key, value in space.arguments().items() if key in kept})


def test_a_dimension_that_breaks_a_law_is_left_out() -> None:
    """BigBird reshapes by a number of heads that the table does not know."""
    family = adopted("big_bird")
    proof, broken = prove_what_holds(small_model(family, family.tasks[0]), family.tasks[0])
    assert [*broken] == ["num_attention_heads"] and "does not run" in broken["num_attention_heads"].what
    assert {"num_hidden_layers", "intermediate_size"} <= {*proof.dimensions}


@pytest.mark.parametrize("model_type", ["ctrl", "swinv2", "mamba", "nonsense"])
def test_a_type_that_is_laid_out_otherwise_gets_none(model_type: str) -> None:
    assert adopt(model_type) is None and model_type not in ADOPTED


@pytest.mark.parametrize("name", ["gpt-sw3", "bert"])
def test_a_name_of_a_known_type_is_that_type(name: str) -> None:
    family = adopt(name)
    assert family is not None and not family.alike and family is FAMILIES[family.model_type]


def test_a_table_that_is_wrong_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that scales its neurons by their number has the same modules, but cannot be sliced."""
    family = adopted("granite")

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        neurons = self.act_fn(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(neurons / neurons.shape[-1] * 96)  # type: ignore[no-any-return]

    monkeypatch.setattr(GraniteMLP, "forward", forward)
    model = small_model(family, "text-generation")
    with pytest.raises(InputError, match=r"those of `llama`, but with intermediate_size .*narrower differs"):
        prove_layout(model, "text-generation", proposed_space(model))


def test_a_model_that_does_not_run_on_other_sizes_fails_the_proof_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    family = adopted("granite")
    monkeypatch.setattr(GraniteMLP, "forward", lambda self, x: self.down_proj(self.up_proj(x).view(*x.shape[:-1], 96)))
    model = small_model(family, "text-generation")
    with pytest.raises(InputError, match=r"with intermediate_size .*it does not run.*leave `intermediate_size` out"):
        prove_layout(model, "text-generation", proposed_space(model))


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("bros", "laid out as those of `bert`, but it does not run on inputs of the task .*bbox"),
        ("speech_to_text", "of `whisper`, but it does not run on inputs of the task .*num_mel_bins"),
        ("granite_docling", "no tiny model of `granite_docling` could be made: .*out_hidden_size"),
        ("vivit", "of `audio-spectrogram-transformer`, but it does not run on inputs of the task"),
    ],
)
def test_a_type_that_needs_other_inputs_or_sizes_is_refused_in_one_line(model_type: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as refused:
        list(describe_type(model_type))
    assert "\n" not in str(refused.value) and model_type in checked_types().failed


@pytest.fixture
def camembert_recipe(text_recipe: Path) -> Path:
    """The recipe of the toy texts with a model of a type without a table."""
    config = transformers.CamembertConfig(**SIZES, **{**TEXT, "max_position_embeddings": 66}, pad_token_id=0)
    folder = text_recipe.parent / "camembert"
    transformers.CamembertModel(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(text_recipe.parent / "model").save_pretrained(folder)
    data = yaml.safe_load(text_recipe.read_text())
    text_recipe.write_text(yaml.safe_dump({**data, "model": "camembert"}))
    return text_recipe


def test_a_check_says_whose_table_a_model_has_and_what_was_proved(camembert_recipe: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(camembert_recipe)])
    assert "no table for `camembert`; its modules are laid out as those of `roberta`" in " ".join(
        result.output.split()
    )
    assert "random subnetworks of num_hidden_layers, num_attention_heads" in " ".join(result.output.split())


def test_a_proposed_space_leaves_out_what_breaks_a_law_and_says_so(text_recipe: Path) -> None:
    config = transformers.BigBirdConfig(**SIZES, **TEXT, pad_token_id=0, attention_type="original_full")
    transformers.BigBirdModel(config).save_pretrained(text_recipe.parent / "bird")
    transformers.AutoTokenizer.from_pretrained(text_recipe.parent / "model").save_pretrained(
        text_recipe.parent / "bird"
    )
    recipe = yaml.safe_load(text_recipe.read_text()) | {"model": "bird"}
    text_recipe.write_text(yaml.safe_dump(recipe | {"space": "auto"}))
    output = " ".join(CliRunner().invoke(app, ["check", str(text_recipe)]).output.split())
    assert "space num_attention_heads stays as in the parent: with layers" in output
    assert "random subnetworks of num_hidden_layers, intermediate_size" in output


@pytest.mark.slow
def test_a_search_goes_the_whole_road_with_it(camembert_recipe: Path, tmp_path: Path) -> None:
    search(Recipe.load(camembert_recipe, ["search.evaluations=4", "finish.models=0"]), tmp_path / "run")
    (folder,) = Run(tmp_path / "run").exports.iterdir()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert "Camembert" in type(model).__name__


@pytest.mark.slow
def test_an_export_loads_in_a_process_that_has_not_seen_its_type(tmp_path: Path) -> None:
    supernet = Supernet(small_model(adopted("camembert"), "text-classification"))
    choices = {"num_attention_heads": [1, 2, 4], "scope": "per-layer"}
    supernet.extract(supernet.layout.search_space(choices).sample(Random(3))).save_pretrained(tmp_path / "small")
    script = (
        "import nas, sys, transformers as t; m = t.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", f"{script}; print(type(m).__name__)", str(tmp_path / "small")],
        capture_output=True,
        text=True,
    )
    assert loaded.stdout.strip() == "NasCamembertForSequenceClassification", loaded.stderr


def test_families_lists_types_with_a_table_types_that_were_checked_and_those_that_are_not_supported() -> None:
    output = CliRunner().invoke(app, ["families"]).output
    (row,) = [line for line in output.splitlines() if line.startswith("granite ")]
    assert "llama" in row and "text-generation" in row
    assert "laid out as none of these" in output and "mamba" in output.rpartition("laid out as none")[2]
    checked = checked_types()
    assert not FAMILIES.keys() & {*checked.passed, *checked.failed, *checked.unknown}
    assert len(checked.passed) > 50 and all(one.alike in FAMILIES for one in checked.passed.values())


def test_families_says_what_is_known_of_a_type(text_recipe: Path) -> None:
    result = CliRunner().invoke(app, ["families", "granite"])
    assert "no table for `granite`; its modules are laid out as those of `llama`" in result.output
    assert "random subnetworks of" in result.output and "hidden_size" in result.output
    known = CliRunner().invoke(app, ["families", str(text_recipe.parent / "model")])
    assert "no table" not in known.output and "text-classification" in known.output


@pytest.mark.parametrize(
    ("model_type", "difference"),
    [("swinv2", "`bert`, .* does not know `attention.self`"), ("biogpt", "`opt`, .* has the same modules")],
)
def test_a_type_that_is_laid_out_as_none_is_refused_with_the_nearest_table(model_type: str, difference: str) -> None:
    with pytest.raises(InputError, match=f"nearest to those of {difference}"):
        list(describe_type(model_type))


def test_a_model_of_a_type_that_is_laid_out_as_none_is_refused_as_its_type_is(tmp_path: Path) -> None:
    transformers.AutoConfig.for_model("glm").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"nearest to those of `llama`, whose table does not know `mlp.gate_up_proj`"):
        list(describe_type(str(tmp_path)))
    with pytest.raises(InputError, match=r"`glm` is not supported.*`nas families glm` names the nearest"):
        family_of("glm")
    with pytest.raises(InputError, match=r"did you mean `bert`"):
        family_of("brt")


def test_the_nearest_table_says_which_module_or_attribute_it_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules of GPT-1's layers are those of GPT-2's, but its attention has `n_head`."""
    monkeypatch.delitem(FAMILIES, "openai-gpt", raising=False)
    assert nearest_layout("openai-gpt").endswith("`gpt2`, whose table expects `attn.num_heads`, which they lack")
    (stack,) = FAMILIES["gpt2"].stacks
    wider = replace(stack, modules={**stack.modules, "ln_3": ("hidden",)})
    monkeypatch.setitem(FAMILIES, "gpt2", replace(FAMILIES["gpt2"], stacks=(wider,)))
    assert nearest_layout("openai-gpt").endswith("`gpt2`, whose table expects `ln_3`, which they lack")


@pytest.mark.parametrize(
    ("model_type", "why"), [("siglip2_vision_model", "has a table as a whole"), ("d_fine", "detectors that have one")]
)
def test_a_type_that_is_often_asked_for_is_refused_with_the_reason(model_type: str, why: str) -> None:
    with pytest.raises(InputError, match=rf"`{model_type}` is not supported: .*{why}"):
        list(describe_type(model_type))
