"""Bits: weights are rounded as they are stored, gradients pass, files hold what is counted, what cannot pay goes."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOYS, logits, read_lines
from safetensors.torch import load_file

from nas.modeling.quantized import QuantizedLinear, fake_quant_linear, quantize, unpack
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.supernets.space import recipe_choices
from nas.supernets.supernet import Supernet
from predictors import Workload
from predictors.latency.features import feature_names, features
from predictors.measurement import precision
from predictors.measurement.onnx_export import write_onnx
from predictors.measurement.precision import unsupported_reason
from search_spaces import InputError, SearchSpace, SubnetConfig
from search_spaces.dimensions.bits import BITS, FULL_PRECISION, stored_weight
from search_spaces.useful_choices import useful_choices

ROUNDED = [kind for kind in BITS if kind != FULL_PRECISION]
LARGEST = {"int8-weight": 127, "int8": 127, "int4-weight": 7}
PARENT = SubnetConfig.uniform((0, 1, 2), num_attention_heads=4, intermediate_size=96, hidden_size=48)


def bert_in(kind: str) -> tuple[Supernet, SubnetConfig]:
    """A random BERT with all its layers in a kind of bits."""
    supernet = Supernet(TOYS["bert"].model())
    subnet = replace(supernet.parent, bits=(kind,) * supernet.parent.num_hidden_layers)
    supernet.activate(subnet)
    return supernet, subnet


@pytest.mark.parametrize("kind", ROUNDED)
@pytest.mark.parametrize("inputs", [6, 7])
def test_a_weight_is_rounded_to_the_nearest_of_even_steps_and_stored_as_counted(kind: str, inputs: int) -> None:
    weight = torch.randn(5, inputs) * torch.logspace(-3, 2, 5)[:, None]
    weight[2] = 0.0
    found = quantize(weight, kind)
    counted = stored_weight(5, inputs, kind)
    assert {name: (tuple(t.shape), t.element_size()) for name, t in found.items()} == {
        name: (shape, size) for name, (shape, _, size) in counted.items()
    }
    if kind == "bfloat16":
        assert torch.equal(found["qweight"], weight.bfloat16())
        return
    steps = weight.abs().amax(1, keepdim=True) / LARGEST[kind]
    whole = unpack(found["qweight"], inputs)
    assert whole.shape == weight.shape and whole.abs().max() == LARGEST[kind] and not whole[2].any()
    assert ((whole * found["scales"] - weight).abs() <= steps / 2 + 1e-7).all()


@pytest.mark.parametrize("kind", ROUNDED)
def test_training_sees_what_is_computed_and_its_gradients_pass_the_rounding(kind: str) -> None:
    x, weight, bias = torch.randn(3, 7, 48), torch.randn(96, 48, requires_grad=True), torch.randn(96)
    with torch.no_grad():
        expected = fake_quant_linear(x, weight, bias, kind)
    found = fake_quant_linear(x, weight, bias, kind)
    near = 0.2 if kind == "bfloat16" else 1e-4
    assert torch.allclose(found, expected, atol=near) and not torch.allclose(found, x @ weight.T + bias, atol=1e-3)
    (gradient,) = torch.autograd.grad(found.square().sum(), weight)
    if kind != "bfloat16":
        rounded_x = torch.autograd.grad(fake_quant_linear(x, weight, None, kind).sum(), weight)[0][0]
        assert torch.allclose(rounded_x, x.sum((0, 1)), atol=0.5) and gradient.isfinite().all() and gradient.any()


def test_int8_rounds_activations_as_the_dynamic_quantization_of_pytorch_does() -> None:
    """The reference rounds with PyTorch's own function and multiplies in floating point."""
    layer, x = torch.nn.Linear(48, 96), torch.randn(4, 9, 48) + 0.3
    stored = quantize(layer.weight.detach(), "int8")
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        rounded = torch.quantize_per_tensor_dynamic(x, torch.quint8, True).dequantize()
        expected = torch.nn.functional.linear(rounded, stored["qweight"] * stored["scales"], layer.bias)
        assert torch.allclose(fake_quant_linear(x, layer.weight, layer.bias, "int8"), expected, atol=1e-5)
        assert not torch.allclose(layer(x), expected, atol=1e-3)


def test_a_stored_layer_follows_its_tensors_and_can_be_copied() -> None:
    layer, x = torch.nn.Linear(8, 4), torch.randn(2, 8)
    module = QuantizedLinear(layer, 8, 4, "int8")
    with torch.inference_mode():
        before = module(x)
    module.load_state_dict({**quantize(layer.weight, "int8"), "bias": layer.bias})
    with torch.inference_mode():
        found, copied = module(x), copy.deepcopy(module)(x)
    assert not before.any() and torch.equal(found, copied) and (found - layer(x)).abs().max() < 0.1


def test_extracted_weights_are_whole_numbers_and_coarser_bits_change_more() -> None:
    changes = {}
    for kind in ROUNDED:
        supernet, subnet = bert_in(kind)
        batch = TOYS["bert"].inputs()
        whole, found = logits(supernet.extract(supernet.parent), batch), logits(supernet.model, batch)
        assert torch.equal(logits(supernet.extract(subnet), batch), found)
        changes[kind] = (found - whole).abs().mean()
    assert 0 < changes["int8-weight"] < changes["int8"] < changes["int4-weight"]


def test_bits_are_left_out_where_they_cannot_run_or_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_has", lambda *flags: False)
    here, both = Workload(), ["latency_ms", "size_mb"]
    assert "no such instructions" in unsupported_reason("bfloat16", here, both) and not unsupported_reason(
        "int8", here, both
    )
    assert "only reduces size_mb" in unsupported_reason("int4-weight", here, ["accuracy", "latency_ms"])
    assert not unsupported_reason("int4-weight", here, ["accuracy", "size_mb"]) and not unsupported_reason(
        FULL_PRECISION, here, []
    )
    assert "neither an objective" in unsupported_reason("int8", here, ["accuracy", "macs"])
    assert "VNNI" in unsupported_reason("int8", Workload(runtime="onnxruntime"), both)
    assert "no such kernels" in unsupported_reason("int8", Workload(runtime="openvino"), both)
    assert "already" in unsupported_reason("int8", Workload(dtype="int8"), both)
    choices, reasons = useful_choices(
        {"bits": ["float32", "int8", "bfloat16"]}, 64, {"bfloat16": "why", "int4-weight": "-"}
    )
    assert choices["bits"] == ["float32", "int8"] and reasons == ["bits bfloat16 dropped: why"]
    with pytest.raises(InputError, match="did you mean `int8`"):
        useful_choices({"bits": ["int88"]}, 64)


def test_old_subnetworks_keep_their_keys_and_kinds_come_back() -> None:
    assert "bits" not in PARENT.to_dict() and "bits" not in PARENT.parts
    mixed = replace(PARENT, bits=("int8", "float32", "int4-weight"))
    assert mixed.key != PARENT.key and SubnetConfig.from_dict(json.loads(json.dumps(mixed.to_dict()))) == mixed
    assert "int8; float32; int4-weight" in str(mixed) and not mixed.is_uniform


def test_latency_may_have_a_price_of_its_own_in_each_kind() -> None:
    """A law that multiplies widths by the price of their numbers is a sum of the features."""
    choices: dict[str, Any] = {"num_attention_heads": [0, 2, 4], "intermediate_size": [0, 48, 96]}
    space = SearchSpace(PARENT, num_hidden_layers=[1, 2, 3], bits=["float32", "int8", "int4-weight"], **choices)
    subnets = [space.sample(Random(k)) for k in range(200)]
    price = {"float32": 3.0, "int8": 1.0, "int4-weight": 3.5}
    law = [
        sum(
            0.1 + (h + f / 48) * price[b]
            for h, f, b in zip(s.num_attention_heads, s.intermediate_size, s.bits, strict=True)
        )
        for s in subnets
    ]
    table = features(space, subnets)
    assert table.shape == (200, len(set(feature_names(space))))
    fitted = np.linalg.lstsq(table, np.array(law), rcond=None)[0]
    assert np.allclose(table @ fitted, law)


@pytest.mark.slow
def test_onnx_runtime_multiplies_whole_numbers_in_the_chosen_layers_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    supernet = Supernet(TOYS["bert"].model())
    subnet = replace(supernet.parent, bits=("int8", "float32", "int8-weight", "int4-weight"))
    model, batch = supernet.extract(subnet), TOYS["bert"].inputs()
    write_onnx(model, batch, tmp_path / "model.onnx")
    products = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 6
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    given = {port.name: batch[port.name].numpy() for port in session.get_inputs()}
    found = torch.from_numpy(session.run(["logits"], given)[0]).flatten()
    assert (found - logits(model, batch)).abs().max() < 0.02


@pytest.mark.slow
def test_the_whole_road_with_bits(text_recipe: Path, tmp_path: Path) -> None:
    overrides = ["space.bits=[float32, int8, int4-weight]", "space.num_hidden_layers=[2, 4]"]
    overrides += ["objectives={accuracy: maximize, size_mb: minimize}", "search.evaluations=30", "parent.epochs=1"]
    recipe = Recipe.load(text_recipe, overrides)
    run = search(recipe, tmp_path / "run")
    rows = [line for line in read_lines(run.verified) if line["key"] != "parent"]
    small = min(rows, key=lambda line: line["values"]["size_mb"])
    assert "int4-weight" in small["subnet"]["bits"]
    out = tmp_path / "small"
    command = ["export", str(run.folder), "--pick", small["key"], "--out", str(out)]
    assert subprocess.run([sys.executable, "-m", "nas.cli", *command], capture_output=True).returncode == 0
    file = out / "model.safetensors"
    assert file.stat().st_size / 1e6 == pytest.approx(small["values"]["size_mb"], abs=1e-6)
    assert {torch.uint8, torch.float32} <= {tensor.dtype for tensor in load_file(file).values()}
    faster = recipe.model_copy(update={"objectives": {"accuracy": "maximize", "latency_ms": "minimize"}})
    layout = Supernet(TOYS["bert"].model()).layout
    kept, reasons = recipe_choices(SimpleNamespace(layout=layout, recipe=faster))  # type: ignore[arg-type]
    assert kept["bits"] == ["float32", "int8"] and "int4-weight dropped" in reasons[0]
