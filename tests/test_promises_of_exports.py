"""What is promised of an export: it can be trained, moved and rounded like any Hugging Face model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from conftest import TOYS, WORDS, sampled
from test_families import calibrated, everything, make_space
from torch._subclasses.fake_tensor import FakeTensorMode

from nas.modeling import quantized
from nas.modeling.quantized import QuantizedLinear, quantize
from nas.supernets.supernet import Supernet
from search_spaces import FAMILIES, SubnetConfig

DTYPES = ("float32", "bfloat16", "int8", "int8-weight", "int4-weight")
SPARSE_DECODERS = [
    name for name, family in FAMILIES.items() if "text-generation" in family.tasks and "attention" in family.dimensions
]
DAILY = ("bert", "llama", "t5", "vit")


def everything_open(family: str, seed: int = 0) -> tuple[Supernet, SubnetConfig]:
    """A supernet and a subnetwork in which every dimension varies."""
    toy = TOYS[family]
    supernet = calibrated(toy.model(attention=toy.attentions[-1]), toy)
    return supernet, make_space(supernet, everything(supernet)).sample(Random(seed))


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
        model(**batch).loss.backward()
    expected, compared = gradients_by_exported_name(supernet, subnet), 0
    for name, parameter in extracted.named_parameters():
        if name not in expected or ".up." in name or ".down." in name:  # factors of a weight have gradients of theirs
            assert parameter.grad is not None and parameter.grad.any(), name
            continue
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(found, expected[name], atol=1e-5, rtol=1e-3), (
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
    if "labels" in (batch := toy.labelled()):
        assert_equal_gradients(supernet, subnet, batch)


@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in DAILY))
def test_gradients_pass_every_dimension(family: str) -> None:
    for seed in range(2):
        supernet, subnet = everything_open(family, seed)
        assert_equal_gradients(supernet, subnet, TOYS[family].labelled())


# -- moves ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", ["int8-weight", "int4-weight"])
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-5])
def test_small_weights_do_not_underflow_in_half_precision(size: float, bits: str, dtype: torch.dtype) -> None:
    layer, x = torch.nn.Linear(64, 8, bias=False), torch.randn(4, 64)
    layer.weight.data = torch.randn(8, 64) * size
    stored = QuantizedLinear(layer, 64, 8, bits)
    stored.load_state_dict(quantize(layer.weight.detach(), bits))
    expected, half = stored(x), copy.deepcopy(stored).to(dtype)
    found = half(x.to(dtype))
    assert found.dtype == dtype and half.scales.dtype == torch.float32
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


@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in DAILY))
def test_what_was_made_on_a_gpu_follows_a_model_to_the_cpu(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors have devices but no values: an operation on two devices fails, as on a machine with a GPU."""
    monkeypatch.setattr(quantized, "has_int8_kernels", lambda x: False)  # which need values
    for seed in range(2):
        supernet, subnet = everything_open(family, seed)
        supernet.activate(subnet)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        replace_tensors(supernet.model, mode.from_tensor)
        inputs = {name: mode.from_tensor(value) for name, value in TOYS[family].inputs().items()}
        with mode, torch.no_grad():
            for module in supernet.model.modules():
                for name, value in vars(module).items():
                    if isinstance(value, torch.Tensor):
                        module.__dict__[name] = torch.empty(value.shape, dtype=value.dtype, device="cuda")
            assert supernet.model(**inputs)[0].device.type == "cpu"


@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in DAILY))
def test_a_model_computes_in_the_dtype_to_which_it_is_moved(family: str) -> None:
    for seed in range(2):
        supernet, subnet = everything_open(family, seed)
        extracted = supernet.extract(subnet)
        supernet.activate(subnet)
        for model in (supernet.model, extracted):
            for dtype in (torch.float64, torch.bfloat16, torch.float32):
                inputs = TOYS[family].inputs()
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
        supernet.model(**TOYS[family].inputs())
    supernet.activate(supernet.parent)
    supernet.activate(subnet)
    supernet.model(**TOYS[family].labelled()).loss.backward()
    supernet.extract(subnet)(**TOYS[family].labelled()).loss.backward()


def test_a_nan_stays_a_nan_in_every_kind_of_layer() -> None:
    layer = torch.nn.Linear(16, 8)
    for bits in DTYPES[1:]:
        stored = QuantizedLinear(layer, 16, 8, bits)
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
    return {"input_ids": torch.randint(5, len(WORDS), (1, 12)), "attention_mask": visible}


@pytest.mark.parametrize("inputs", [packed_positions, documents_mask])
@pytest.mark.parametrize("family", sampled(SPARSE_DECODERS, lambda family: family in ("llama", "qwen3")))
def test_packed_sequences_and_custom_masks_are_refused(family: str, inputs: Any) -> None:
    supernet = Supernet(TOYS[family].model("text-generation"))
    supernet.activate(supernet.parent.with_values(attention=("local:8",) * 4))
    batch = {**inputs(), "use_cache": False}
    with pytest.raises(ValueError, match="reads only padding from a mask"):
        supernet.model(**batch)
    supernet.activate(supernet.parent)
    supernet.model(**batch)


def test_a_custom_mask_of_an_encoder_is_refused() -> None:
    supernet = Supernet(TOYS["bert"].model())
    supernet.activate(supernet.parent.with_values(attention=("local:12",) * 4))
    mask = documents_mask()
    for given in (mask["attention_mask"], torch.where(mask["attention_mask"], 0.0, -1e30)):
        with pytest.raises(ValueError, match="reads only padding from a mask"):
            supernet.model(**{**mask, "attention_mask": given})
