"""What is promised of an export: it can be trained, moved and rounded like any Hugging Face model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from samples import sampled
from test_families import calibrated, everything, make_space, own_inputs, unpadded
from torch._subclasses.fake_tensor import FakeTensorMode
from toys import TOYS, WORDS, labelled_outputs

from nas.modeling import quantized
from nas.modeling.quantized import QuantizedLinear, quantize
from nas.supernets.supernet import Supernet
from search_spaces import FAMILIES, SubnetConfig
from search_spaces.module_kinds import Quantized

DTYPES = ("float32", "bfloat16", "int8", "int8-weight", "int4-weight")
SPARSE_DECODERS = [
    name for name, family in FAMILIES.items() if "text-generation" in family.tasks and "attention" in family.dimensions
]
DAILY = ("bert", "llama", "t5", "vit")


def everything_open(family: str, seed: int = 0) -> tuple[Supernet, SubnetConfig]:
    """A supernet and a subnetwork in which every dimension varies."""
    toy = TOYS[family]
    supernet = calibrated(toy.model(attention=toy.attentions[-1]), toy)
    names = [name for name in everything(supernet) if name != "vocabulary"]  # it reads other tokens
    return supernet, make_space(supernet, names).sample(Random(seed))


def each_dimension_open(family: str) -> Iterator[tuple[Supernet, SubnetConfig]]:
    """Supernets and subnetworks in which one dimension is the smallest, then those of `everything_open`."""
    toy = TOYS[family]
    names = everything(everything_open(family)[0])
    for name in names:
        supernet = calibrated(toy.model(attention=toy.attentions[-1]), toy)
        yield supernet, make_space(supernet, [name]).smallest
    yield from (everything_open(family, seed) for seed in range(2))


# -- gradients --------------------------------------------------------------------------------------------------------


def gradients_by_exported_name(supernet: Supernet, subnet: SubnetConfig) -> dict[str, torch.Tensor]:
    """The gradients that the active subnetwork gave the supernet, sliced and named as its weights are exported."""
    parameters = dict(supernet.model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        found = {name: tensor.clone() for name, tensor in supernet.state_dict(subnet).items()}
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
    return found


def assert_equal_gradients(supernet: Supernet, subnet: SubnetConfig, batch: dict[str, torch.Tensor]) -> None:
    supernet.activate(subnet)
    extracted = supernet.extract(subnet)
    for model in (supernet.model, extracted):
        model.zero_grad()
        labelled_outputs(model, batch).loss.backward()
    expected, compared = gradients_by_exported_name(supernet, subnet), 0
    for name, parameter in extracted.named_parameters():
        interpolated = (".position_embeddings",) if subnet.image_size != "full" else ()
        if name.endswith((".up.weight", ".down.weight", ".codebook", *interpolated)):  # have gradients of their own
            assert parameter.grad is not None and parameter.grad.any(), name
            continue
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(found, expected[name], atol=5e-5, rtol=1e-3), (  # an activation may round either way
            name,
            (found - expected[name]).abs().max(),
        )
        compared += bool(found.any())
    assert compared > 1


@pytest.mark.parametrize("bits", DTYPES)
@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in DAILY))
def test_what_an_export_computes_has_the_gradients_of_the_supernet(family: str, bits: str) -> None:
    toy = TOYS[family]
    supernet = Supernet(toy.model())
    subnet = supernet.parent.with_values(bits=(bits,) * len(supernet.parent.layers))
    assert_equal_gradients(supernet, subnet, toy.labelled())


@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in DAILY))
def test_gradients_pass_every_dimension(family: str) -> None:
    """Four bits left aside: without calibration they are above, with it a training takes the nearest integers."""
    for seed in range(2):
        supernet, subnet = everything_open(family, seed)
        subnet = subnet.with_values(bits=tuple("int8-weight" if b == "int4-weight" else b for b in subnet.bits))
        assert_equal_gradients(supernet, subnet, own_inputs(TOYS[family].labelled(), subnet))


# -- moves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", ["int8-weight", "int4-weight"])
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5])
def test_small_weights_do_not_underflow_in_half_precision(size: float, bits: str, dtype: torch.dtype) -> None:
    layer, x = torch.nn.Linear(64, 8, bias=False), torch.randn(4, 64)
    layer.weight.data = torch.randn(8, 64) * size
    stored = QuantizedLinear(layer, 64, 8, Quantized(bits).form)
    stored.load_state_dict(quantize(layer.weight.detach(), bits))
    expected, half = stored(x), copy.deepcopy(stored).to(dtype)
    found = half(x.to(dtype))
    assert found.dtype == dtype and half.scales.dtype == stored.scales.dtype
    assert ((found.float() - expected).norm() / expected.norm()) < 0.02
    back = half.float()
    assert torch.equal(back(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", ["int8-weight", "int8", "int4-weight", "bfloat16"])
@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in ("bert", "t5")))
def test_a_supernet_in_half_precision_equals_its_export(
    family: str, bits: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    toy = TOYS[family]
    toy.model().save_pretrained(tmp_path)
    stock = type(toy.model())
    model = stock.from_pretrained(tmp_path, dtype=dtype, attn_implementation=toy.attentions[0]).eval()
    supernet = Supernet(model)
    subnet = supernet.parent.with_values(bits=(bits,) * len(supernet.parent.layers))
    supernet.activate(subnet)
    extracted, batch = supernet.extract(subnet), toy.inputs()
    batch = {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}
    with torch.inference_mode():
        expected, found = model(**batch), extracted(**batch)
    assert found[0].dtype == expected[0].dtype
    assert torch.equal(found[0], expected[0])
    extracted.save_pretrained(tmp_path / "export")
    reloaded = type(extracted).from_pretrained(tmp_path / "export", attn_implementation=toy.attentions[0]).eval()
    with torch.inference_mode():
        assert torch.equal(reloaded(**batch)[0], expected[0])


OF_SHAPES_ALONE = [family for family in TOYS if not FAMILIES[family].cuts_patches]
"""Families whose computation has no sizes that are values of tensors."""


@pytest.mark.parametrize("family", sampled(OF_SHAPES_ALONE, lambda family: family == "bert"))
def test_what_was_made_on_a_gpu_follows_a_model_to_the_cpu(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors have devices but no values: an operation on two devices fails, as on a machine with a GPU."""
    monkeypatch.setattr(quantized, "has_int8_kernels", lambda x: False)  # which need values
    for supernet, subnet in each_dimension_open(family):
        supernet.activate(subnet)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        replace_tensors(supernet.model, mode.from_tensor)
        inputs = {name: mode.from_tensor(value) for name, value in own_inputs(TOYS[family].inputs(), subnet).items()}
        with mode, torch.no_grad():
            for module in supernet.model.modules():
                for name in [name for name in vars(module) if not name.startswith("_")]:  # what ``.to`` does not move
                    module.__dict__[name] = left_on_gpu(module.__dict__[name])
            assert supernet.model(**inputs)[0].device.type == "cpu"


def left_on_gpu(value: Any) -> Any:
    """Fake CUDA tensors in the place of tensors, also of those in dictionaries and tuples."""
    if isinstance(value, torch.Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="cuda")
    if isinstance(value, dict):
        return {name: left_on_gpu(each) for name, each in value.items()}
    return tuple(map(left_on_gpu, value)) if type(value) is tuple else value


@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in DAILY))
def test_a_model_computes_in_the_dtype_to_which_it_is_moved(family: str) -> None:
    for seed in range(2):
        supernet, subnet = everything_open(family, seed)
        extracted = supernet.extract(subnet)
        supernet.activate(subnet)
        for model in (supernet.model, extracted):
            for dtype in (torch.float64, torch.bfloat16, torch.float32):
                inputs = own_inputs(TOYS[family].inputs(), subnet)
                inputs = unpadded(inputs) if dtype == torch.float64 else inputs  # stock code masks below float32
                inputs |= {name: value.to(dtype) for name, value in inputs.items() if value.is_floating_point()}
                with torch.no_grad():
                    found = model.to(dtype)(**inputs)[0]
                assert found.dtype == dtype and found.isfinite().all()


def replace_tensors(model: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replaces parameters and buffers, which are what ``.to`` moves."""
    replaced: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for stored in (module._parameters, module._buffers):
            for name, value in stored.items():
                if value is not None:
                    stored[name] = replaced.setdefault(id(value), change(value.detach()))  # type: ignore[assignment]


@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in DAILY))
def test_an_activation_in_inference_mode_does_not_poison_training(family: str) -> None:
    supernet, subnet = everything_open(family)
    with torch.inference_mode():
        supernet.activate(subnet)
        supernet.model(**own_inputs(TOYS[family].inputs(), subnet))
    supernet.activate(supernet.parent)
    supernet.activate(subnet)
    for model in (supernet.model, supernet.extract(subnet)):
        labelled_outputs(model, own_inputs(TOYS[family].labelled(), subnet)).loss.backward()


def test_a_nan_stays_a_nan_in_every_kind_of_layer() -> None:
    layer = torch.nn.Linear(16, 8)
    for bits in DTYPES[1:]:
        stored = QuantizedLinear(layer, 16, 8, Quantized(bits).form)
        stored.load_state_dict({**quantize(layer.weight.detach(), bits), "bias": layer.bias})
        for grad in (False, True):
            with torch.set_grad_enabled(grad):
                assert stored(torch.full((1, 16), float("nan"))).isnan().all(), bits
                assert stored(torch.randn(2, 16)).isfinite().all(), bits


# -- masks ------------------------------------------------------------------------------------------------------------


def packed_positions() -> dict[str, torch.Tensor]:
    """Two documents of six tokens in one sequence."""
    positions = torch.arange(6).repeat(2)[None]
    return {"input_ids": torch.randint(5, len(WORDS), (1, 12)), "position_ids": positions}


def documents_mask() -> dict[str, torch.Tensor]:
    """A mask of shape (batch, 1, queries, keys) that hides the first document from the second."""
    visible = torch.ones(1, 1, 12, 12).tril().bool()
    visible[:, :, 6:, :6] = False
    positions = torch.arange(12)[None]  # OPT counts them in the mask of padding only
    return {"input_ids": torch.randint(5, len(WORDS), (1, 12)), "attention_mask": visible, "position_ids": positions}


DOCUMENTS = [(family, inputs) for family in SPARSE_DECODERS for inputs in (packed_positions, documents_mask)]
DOCUMENTS.remove(("opt", packed_positions))  # its stock code reads no documents from positions, see below


@pytest.mark.parametrize(("family", "inputs"), sampled(DOCUMENTS, lambda family, _: family in ("llama", "qwen3")))
def test_packed_sequences_and_custom_masks_are_refused(family: str, inputs: Any) -> None:
    supernet = Supernet(TOYS[family].model("text-generation"))
    supernet.activate(supernet.parent.with_values(attention=("local:8",) * 4))
    batch = {**inputs(), "use_cache": False}
    with pytest.raises(ValueError, match="reads only padding from a mask"):
        supernet.model(**batch)
    supernet.activate(supernet.parent)
    supernet.model(**batch)


def test_opt_itself_reads_no_documents_from_positions() -> None:
    model, batch = TOYS["opt"].model("text-generation"), packed_positions()
    with torch.no_grad():
        before = model(**batch).logits
        batch["input_ids"][0, 0] = 5 if batch["input_ids"][0, 0] > 5 else 6
        assert not torch.allclose(model(**batch).logits[0, 6:], before[0, 6:], atol=1e-5)


def test_a_custom_mask_of_an_encoder_is_refused() -> None:
    supernet = Supernet(TOYS["bert"].model())
    supernet.activate(supernet.parent.with_values(attention=("local:12",) * 4))
    mask = documents_mask()
    for given in (mask["attention_mask"], torch.where(mask["attention_mask"], 0.0, -1e30)):
        with pytest.raises(ValueError, match="reads only padding from a mask"):
            supernet.model(**{**mask, "attention_mask": given})


# -- indices of outputs -----------------------------------------------------------------------------------------------


def narrow_heads(supernet: Supernet) -> SubnetConfig:
    """Of each stack: a layer without attention, one with a sparse pattern if there are any, one with fewer heads."""
    parent, stacks = supernet.parent, supernet.layout.kept_positions(supernet.parent)
    heads, groups = list(parent.num_attention_heads), list(parent.num_key_value_heads)
    attention = list(parent.attention)
    for positions in stacks:
        if "attention" in supernet.family.skippable:
            heads[positions[1]] = groups[positions[1]] = 0
        if "attention" in supernet.family.dimensions:
            attention[positions[2]] = "local:4"
        last = positions[3]
        heads[last], groups[last] = heads[last] // 2, groups[last] // 2
    return parent.with_values(num_attention_heads=heads, num_key_value_heads=groups, attention=attention)


def assert_indices_of_layers(outputs: Any, name: str, subnet: SubnetConfig, positions: list[int]) -> None:
    """Each layer of a stack has its own attention weights, or None, and its own hidden state."""
    weights, states = outputs[f"{name}attentions"], outputs[f"{name}hidden_states"]
    assert len(weights) == len(positions) and len(states) == len(positions) + 1
    for position, found in zip(positions, weights, strict=True):
        attends = subnet.num_attention_heads[position] and subnet.attention[position] == "full"
        assert found.shape[1] == subnet.num_attention_heads[position] if attends else found is None


@pytest.mark.parametrize("family", sampled(sorted({*TOYS} - {"albert"}), lambda family: family in DAILY))
def test_attention_weights_and_hidden_states_keep_the_indices_of_layers(family: str, tmp_path: Path) -> None:
    supernet = Supernet(TOYS[family].model(attention="eager"))
    subnet = narrow_heads(supernet)
    made = supernet.extract(subnet)
    made.save_pretrained(tmp_path)
    loaded = type(made).from_pretrained(tmp_path, attn_implementation="eager").eval()
    stacks = supernet.layout.kept_positions(subnet)
    for model in (made, copy.deepcopy(made), loaded):
        with torch.no_grad():
            outputs = model(**TOYS[family].inputs(), output_attentions=True, output_hidden_states=True)
        names = ("",) if len(stacks) == 1 else ("encoder_", "decoder_")
        for name, positions in zip(names, stacks, strict=True):
            assert_indices_of_layers(outputs, name, subnet, positions)
        if len(stacks) > 1:
            crossing = [weights is not None for weights in outputs.cross_attentions]
            assert crossing == [subnet.num_attention_heads[position] > 0 for position in stacks[1]]


def test_a_layer_that_is_applied_again_has_no_weights_where_its_pattern_is_sparse() -> None:
    supernet = Supernet(TOYS["albert"].model(attention="eager"))
    model = supernet.extract(supernet.parent.with_values(attention=("local:4",) * 4))
    with torch.no_grad():
        outputs = model(**TOYS["albert"].inputs(), output_attentions=True, output_hidden_states=True)
    assert outputs.attentions == (None,) * 4 and len(outputs.hidden_states) == 5
