"""Encoder-decoders: outputs, generation and exports of their subnetworks."""

from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from toys import TOYS, Toy

from nas.exports.export import enable_remote_code
from nas.supernets.importance import order_by_importance
from nas.supernets.supernet import Supernet
from predictors.latency.features import feature_names, features
from search_spaces import FAMILIES, TASKS, InputError, Layout, SubnetConfig

T5_1_1 = replace(TOYS["t5"], config={**TOYS["t5"].config, "tie_word_embeddings": False})
PLAIN_T5 = replace(TOYS["t5"], config={**TOYS["t5"].config, "feed_forward_proj": "relu"})
BART = replace(TOYS["bart"], config={**TOYS["bart"].config, "scale_embedding": False})
MODELS = {"bart": BART, "marian": TOYS["marian"], "t5": TOYS["t5"], "plain t5": PLAIN_T5, "whisper": TOYS["whisper"]}

NARROW = SubnetConfig((0, 1, 2, 3, 4, 5, 6, 7), (4, 2, 3, 1, 1, 2, 4, 3), (96, 40, 16, 8, 8, 16, 40, 96), 48)
DROPPED = SubnetConfig((2, 3, 5, 6), (2, 4, 1, 3), (40, 96, 96, 16), 48)
DEEPER_DECODER = SubnetConfig((1, 4, 5, 6, 7), (2, 2, 3, 4, 1), (96, 40, 16, 96, 24), 48)
SKIPPED = SubnetConfig((1, 2, 3, 5, 6, 7), (0, 2, 4, 0, 3, 4), (96, 40, 0, 16, 96, 0), 48)
NO_ATTENTION = SubnetConfig((1, 2, 4, 6), (0, 0, 0, 0), (96, 40, 16, 96), 48)
UNIFORM = SubnetConfig((1, 2, 3, 5, 6), (4,) * 5, (40,) * 5, 48)
SUBNETS = {
    "narrow": NARROW,
    "layer 0 dropped": DROPPED,
    "deeper decoder": DEEPER_DECODER,
    "skipped": SKIPPED,
    "no attention": NO_ATTENTION,
    "uniform": UNIFORM,
}
CACHES: dict[str, dict[str, Any]] = {
    "none": {"use_cache": False},
    "dynamic": {},
    "static": {"cache_implementation": "static", "disable_compile": True},
}


def sharp_model(toy: Toy) -> Any:
    """A toy whose every weight matters: norms are not ones, biases not zeros, layers not almost nothing."""
    model = toy.model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.3))
    return model


def source(toy: Toy) -> dict[str, torch.Tensor]:
    """What generation starts from."""
    return {name: value for name, value in toy.inputs().items() if not name.startswith("decoder")}


def generated(model: Any, inputs: dict[str, torch.Tensor], **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Seven new tokens, none twice, and the scores (token, batch, vocabulary) they were chosen by."""
    options = {"max_new_tokens": 7, "min_new_tokens": 7, "no_repeat_ngram_size": 1, "do_sample": False, **options}
    outputs = model.generate(**inputs, **options, return_dict_in_generate=True, output_scores=True)
    return outputs.sequences, torch.stack(outputs.scores).nan_to_num(neginf=0)


def exported(model: Any, toy: Toy, folder: Path) -> str:
    """Saves a model as `nas export` does and names its auto class."""
    auto_class = TASKS[FAMILIES[toy.model_type].tasks[0]].auto_class
    if _is_nas(model):
        enable_remote_code(model, auto_class)
    model.save_pretrained(folder)
    return auto_class


def _is_nas(model: Any) -> bool:
    return type(model).__name__.startswith("Nas")


# -- a reference that knows nothing of the tables ---------------------------------------------------------------------


def reference(model: Any, subnet: SubnetConfig) -> Any:
    """The stock model with layers deleted and what a subnetwork leaves out set to zero, by hand."""
    model = copy.deepcopy(model)
    base = model if hasattr(model, "encoder") else model.model
    for start, stack in ((0, base.encoder), (4, base.decoder)):
        name = "block" if hasattr(stack, "block") else "layers"
        layers = list(getattr(stack, name))
        kept = [layer - start for layer in subnet.layers if start <= layer < start + 4]
        if name == "block" and kept[0]:
            to, of = layers[kept[0]].layer[0].SelfAttention, layers[0].layer[0].SelfAttention
            to.has_relative_attention_bias, to.relative_attention_bias = True, of.relative_attention_bias
        for index in kept:
            width = subnet.layer_values(subnet.layers.index(index + start))
            (_zero_t5 if name == "block" else _zero_bart)(layers[index], width)
            for module in layers[index].modules():
                if hasattr(module, "layer_idx") and start:
                    module.layer_idx = kept.index(index)
        setattr(stack, name, nn.ModuleList(layers[index] for index in kept))
    return model


@torch.no_grad()
def _zero_t5(block: Any, width: dict[str, int]) -> None:
    channels = 12 * width["num_attention_heads"]
    for part in block.layer[:-1]:
        attention = part.SelfAttention if hasattr(part, "SelfAttention") else part.EncDecAttention
        attention.o.weight[:, channels:] = 0
    block.layer[-1].DenseReluDense.wo.weight[:, width["intermediate_size"] :] = 0


@torch.no_grad()
def _zero_bart(layer: Any, width: dict[str, int]) -> None:
    channels, is_post_norm = 12 * width["num_attention_heads"], "Whisper" not in type(layer).__name__
    attentions = [name for name in ("self_attn", "encoder_attn") if hasattr(layer, name)]
    blocks = [(getattr(layer, name).out_proj, channels, f"{name}_layer_norm") for name in attentions]
    for linear, columns, norm in (*blocks, (layer.fc2, width["intermediate_size"], "final_layer_norm")):
        linear.weight[:, columns:] = 0
        if not columns:
            linear.bias[:] = 0
            if is_post_norm:
                setattr(layer, norm, nn.Identity())


@pytest.mark.parametrize("subnet", SUBNETS)
@pytest.mark.parametrize("name", MODELS)
def test_a_subnetwork_equals_its_parent_with_zeroed_weights(name: str, subnet: str) -> None:
    toy = MODELS[name]
    model, inputs = sharp_model(toy), toy.inputs()
    by_hand = reference(model, SUBNETS[subnet])
    supernet = Supernet(model)
    supernet.activate(SUBNETS[subnet])
    with torch.inference_mode():
        expected, full = by_hand(**inputs, use_cache=False).logits, supernet.extract(supernet.parent)(**inputs).logits
        assert torch.allclose(model(**inputs).logits, expected, atol=1e-4)
        assert torch.allclose(supernet.extract(SUBNETS[subnet])(**inputs).logits, expected, atol=1e-4)
    assert (full - expected).abs().max() > 1e-2


# -- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subnet", SUBNETS)
@pytest.mark.parametrize("name", MODELS)
def test_every_cache_generates_the_same(name: str, subnet: str) -> None:
    toy = MODELS[name]
    supernet, inputs = Supernet(sharp_model(toy)), source(toy)
    supernet.activate(SUBNETS[subnet])
    tokens, scores = generated(supernet.model, inputs, **CACHES["none"])
    for model in (supernet.model, supernet.extract(SUBNETS[subnet])):
        for options in CACHES.values():
            cached = generated(model, inputs, **options)
            assert torch.equal(cached[0], tokens)
            assert torch.allclose(cached[1], scores, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, toy in MODELS.items() if "attention_mask" in toy.inputs()])
def test_padding_of_the_source_does_not_change_what_is_generated(name: str) -> None:
    toy = MODELS[name]
    supernet, inputs = Supernet(sharp_model(toy)), source(toy)
    length = int(inputs["attention_mask"][1].sum())
    unpadded = {key: value[1:2, :length] for key, value in inputs.items()}
    for subnet in SUBNETS.values():
        supernet.activate(subnet)
        for options in CACHES.values():
            padded, short = (
                generated(supernet.model, inputs, **options),
                generated(supernet.model, unpadded, **options),
            )
            assert torch.equal(padded[0][1], short[0][0])
            assert torch.allclose(padded[1][:, 1], short[1][:, 0], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_a_reloaded_export_generates_the_same_in_half_precision(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    toy = MODELS[name]
    supernet, inputs = Supernet(sharp_model(toy)), source(toy)
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    for number, subnet in enumerate((SKIPPED, DEEPER_DECODER, UNIFORM)):
        model = supernet.extract(subnet).to(dtype)
        auto_class = exported(model, toy, tmp_path / str(number))
        auto = getattr(transformers, auto_class)
        reloaded = auto.from_pretrained(tmp_path / str(number), trust_remote_code=True, dtype=dtype).to(dtype).eval()
        assert _is_nas(reloaded) == (subnet is not UNIFORM)
        for options in CACHES.values():
            (tokens, scores), outputs = generated(model, inputs, **options), generated(reloaded, inputs, **options)
            assert scores.isfinite().all() and scores.abs().max() > 0
            assert torch.equal(outputs[0], tokens) and torch.equal(outputs[1], scores)


# -- exports ----------------------------------------------------------------------------------------------------------


def test_the_first_remaining_attention_has_the_position_bias_of_the_parent() -> None:
    supernet = Supernet(sharp_model(TOYS["t5"]))
    parent = supernet.model.state_dict()
    for subnet, blocks, heads in ((DROPPED, (0, 0), (4, 3)), (SKIPPED, (1, 1), (4, 4)), (NARROW, (0, 0), (4, 4))):
        state = supernet.extract(subnet).state_dict()
        names = {name for name in state if "relative_attention_bias" in name}
        end = "layer.0.SelfAttention.relative_attention_bias.weight"
        assert names == {f"encoder.block.{blocks[0]}.{end}", f"decoder.block.{blocks[1]}.{end}"}
        for stack, block, widest in zip(("encoder", "decoder"), blocks, heads, strict=True):
            expected = parent[f"{stack}.block.0.{end}"][:, :widest]
            assert torch.equal(state[f"{stack}.block.{block}.{end}"], expected)
    assert not [name for name in supernet.extract(NO_ATTENTION).state_dict() if "relative_attention_bias" in name]


def test_an_export_reloads_in_a_clean_process(tmp_path: Path) -> None:
    toy, folder = TOYS["t5"], tmp_path / "export"
    model, inputs = Supernet(sharp_model(toy)).extract(SKIPPED), toy.inputs()
    auto_class = exported(model, toy, folder)
    assert (folder / "modeling_nas.py").exists()
    files_of = [str(tmp_path / "inputs.safetensors"), str(tmp_path / "outputs.safetensors")]
    save_file(inputs, files_of[0])
    script = str(files("nas.exports") / "reload.py")
    subprocess.run(
        [sys.executable, "-P", script, "torch", str(folder), auto_class, "logits", *files_of],
        check=True,
        capture_output=True,
    )
    with torch.inference_mode():
        assert torch.allclose(load_file(files_of[1])["logits"], model(**inputs).logits, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_body_of_an_export_loads_without_its_head(name: str, tmp_path: Path) -> None:
    toy = MODELS[name]
    model, inputs = Supernet(sharp_model(toy)).extract(SKIPPED), toy.inputs()
    exported(model, toy, tmp_path)
    body = transformers.AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert type(body).__name__.endswith("Model")
    with torch.inference_mode():
        hidden = body(**inputs).last_hidden_state
        head = model.get_output_embeddings()(hidden * (48**-0.5 if "t5" in name else 1))
        bias = getattr(model, "final_logits_bias", torch.zeros(1))
        assert torch.allclose(head + bias, model(**inputs).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("toy", "is_stock"),
    [(TOYS["t5"], True), (T5_1_1, True), (BART, True), (TOYS["bart"], False), (TOYS["whisper"], True)],
    ids=["t5, scaled logits", "t5, logits as they are", "bart", "bart, scaled embeddings", "whisper"],
)
def test_a_narrower_model_is_stock_if_its_constants_cancel(toy: Toy, is_stock: bool, tmp_path: Path) -> None:
    supernet, inputs = Supernet(sharp_model(toy)), toy.inputs()
    subnet = SubnetConfig.uniform((1, 2, 5), num_attention_heads=3, intermediate_size=40, hidden_size=36)
    supernet.activate(subnet)
    auto = getattr(transformers, exported(supernet.extract(subnet), toy, tmp_path))
    reloaded = auto.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert _is_nas(reloaded) != is_stock and reloaded.config.d_model == (36 if is_stock else 48)
    with torch.inference_mode():
        assert torch.allclose(reloaded(**inputs).logits, supernet.model(**inputs).logits, atol=1e-4)


# -- two stacks in the space, the order and the features --------------------------------------------------------------


def test_each_stack_has_its_own_depth() -> None:
    layout = Layout(TOYS["bart"].model().config)
    choices = {"num_hidden_layers": [1, 3], "num_decoder_layers": [2, 4], "num_attention_heads": [0, 2, 4]}
    space = layout.search_space(choices, (3, 7, 0, 4, 1, 5, 2, 6))
    assert space.smallest.layers == (3, 4, 7) and space.largest.layers == (0, 1, 3, 4, 5, 6, 7)
    counts = set()
    for seed in range(40):
        subnet = space.sample(Random(seed))
        assert subnet in space and space.parameters.to_subnet(space.parameters.from_subnet(subnet)) == subnet
        counts.add(tuple(len(kept) for kept in layout.kept_positions(subnet)))
    assert counts == {(1, 2), (1, 4), (3, 2), (3, 4)}
    uniform = layout.search_space({**choices, "num_attention_heads": [2, 4], "scope": "uniform"})
    assert len({subnet.key for subnet in uniform}) == uniform.size == 8


def test_features_tell_the_two_stacks_apart() -> None:
    space = Layout(TOYS["bart"].model().config).search_space(
        {"num_hidden_layers": [1, 2, 4], "num_decoder_layers": [1, 2, 4], "num_attention_heads": [1, 4]}
    )
    kept = [(0, 1, 4), (0, 4, 5)]
    subnets = [SubnetConfig.uniform(k, num_attention_heads=4, intermediate_size=96, hidden_size=48) for k in kept]
    table = dict(zip(feature_names(space), features(space, subnets).T, strict=True))
    assert table["num_hidden_layers"].tolist() == [2, 1] and table["num_decoder_layers"].tolist() == [1, 2]
    assert table["num_attention_heads"].tolist() == [2, 1] and table["decoder num_attention_heads"].tolist() == [1, 2]


def test_cross_attention_has_its_own_order() -> None:
    toy = TOYS["t5"]
    supernet = Supernet(sharp_model(toy))
    units = order_by_importance(supernet, [toy.labelled()]).units
    assert all(order == units["heads"][0] for order in units["heads"][:4])
    assert all(order == units["heads"][4] for order in units["heads"][4:])
    assert units["cross_heads"][:4] == [[], [], [], []]
    assert len({tuple(order) for order in units["cross_heads"][4:]}) > 1


def test_an_encoder_and_a_decoder_with_different_heads_are_refused() -> None:
    config = transformers.BartConfig(**{**TOYS["bart"].config, "decoder_attention_heads": 2})
    with pytest.raises(InputError, match=r"heads of as many channels, but got .4, 2. heads for .48, 48. channels"):
        Layout(config).head_dim  # noqa: B018
