"""Bits: weights are rounded as they are stored, gradients pass, file sizes are exact, useless choices are dropped."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from command import Command
from refusals import read_lines
from safetensors.torch import load_file
from toys import TOYS, bert, context_of, logits

from nas.modeling import elastic, quantized
from nas.modeling.calibrated import quantize_on
from nas.modeling.quantized import QuantizedLinear, dequantize, fake_quant_linear, pack_pairs, quantize, unpack
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.supernets.calibration import calibrate
from nas.supernets.rounded_training import trainable, with_stored_weights
from nas.supernets.space import recipe_choices
from nas.supernets.supernet import Supernet
from predictors import Workload
from predictors.latency.features import feature_names, features
from predictors.measurement import precision
from predictors.measurement.onnx_export import write_onnx
from predictors.measurement.precision import unsupported_reason
from search_spaces import InputError, SearchSpace, SubnetConfig
from search_spaces.dimension import Facts
from search_spaces.dimensions.bits import DTYPES, FULL_PRECISION
from search_spaces.module_kinds import Quantized
from search_spaces.useful_choices import useful_choices

ROUNDED = [dtype for dtype in DTYPES if dtype != FULL_PRECISION]
LARGEST = {"int8-weight": 127, "int8": 63, "int4-weight": 8}
PARENT = SubnetConfig.uniform((0, 1, 2), num_attention_heads=4, intermediate_size=96, hidden_size=48)


def bert_in(dtype: str) -> tuple[Supernet, SubnetConfig]:
    """A random BERT with all its layers in a dtype."""
    supernet = Supernet(TOYS["bert"].model())
    subnet = supernet.parent.with_values(bits=(dtype,) * supernet.parent.num_hidden_layers)
    supernet.activate(subnet)
    return supernet, subnet


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("inputs", [6, 7])
def test_a_weight_is_rounded_to_the_nearest_of_even_steps_and_stored_as_counted(dtype: str, inputs: int) -> None:
    weight = torch.randn(5, inputs) * torch.logspace(-3, 2, 5)[:, None]
    weight[2] = 0.0
    stored = quantize(weight, dtype)
    counted = Quantized(dtype).packed(((5, inputs), "F32", 4))
    assert {name: (tuple(t.shape), t.element_size()) for name, t in stored.items()} == {
        name: (shape, size) for name, (shape, _, size) in counted.items()
    }
    if dtype == "bfloat16":
        assert torch.equal(stored["qweight"], weight.bfloat16())
        return
    integers = unpack(stored["qweight"], inputs)
    assert integers.shape == weight.shape and integers.abs().max() == LARGEST[dtype]
    steps = weight.abs().amax(1, keepdim=True) / LARGEST[dtype]
    errors = (dequantize(inputs=inputs, **stored) - weight).abs()
    assert (errors <= steps / (1 if dtype == "int4-weight" else 2) + 1e-7).all() and errors[2].max() < 1e-30


def test_four_bits_have_a_scale_and_an_offset_for_each_group_of_inputs() -> None:
    weight = 5 + torch.randn(5, 100)
    weight[:, 40] = 40.0
    stored = quantize(weight, "int4-weight")
    assert stored["scales"].shape == stored["offsets"].shape == (5, 4), "32 + 32 + 32 + 4"
    errors = (dequantize(inputs=100, **stored) - weight).abs()
    assert errors[:, 32:64].mean() > 4 * errors[:, :32].mean(), "the large value widens the range of its group only"
    ranges = (weight[:, :32].amax(1) - weight[:, :32].amin(1))[:, None]
    assert (errors[:, :32].square().mean(1).sqrt() < ranges[:, 0] / 15 / 12**0.5 * 1.1).all(), "offsets take the mean"


def test_scales_are_refitted_to_the_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, errors = torch.randn(16, 256), {}
    for number in (0, quantized.REFITS):
        monkeypatch.setattr(quantized, "REFITS", number)
        errors[number] = (dequantize(inputs=256, **quantize(weight, "int4-weight")) - weight).square().mean()
    assert errors[quantized.REFITS] < 0.9 * errors[0]


def test_a_weight_is_quantized_once_until_it_or_what_is_active_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    supernet, subnet = bert_in("int4-weight")
    calls, batch = [], TOYS["bert"].inputs()
    monkeypatch.setattr(elastic, "quantize_on", lambda *args: calls.append(args) or quantize_on(*args))
    first = logits(supernet.model, batch)
    made = len(calls)
    assert torch.equal(logits(supernet.model, batch), first) and len(calls) == made == 6 * len(subnet.layers)
    with torch.no_grad():
        supernet.model.bert.encoder.layer[0].intermediate.dense.weight.mul_(2)
    assert not torch.equal(logits(supernet.model, batch), first) and len(calls) == made + 1
    supernet.activate(subnet.with_values(intermediate_size=(48,) * len(subnet.layers)))
    narrow = supernet.extract(supernet.active)
    assert torch.allclose(logits(supernet.model, batch), logits(narrow, batch), atol=1e-5)


def test_four_bits_on_activations_change_outputs_less_and_do_not_depend_on_the_layout_of_the_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, mixing = (torch.randn(size, 100, generator=generator) for size in (48, 100))
    x = torch.randn(500, 100, generator=generator) @ (mixing / 10 + torch.logspace(-2, 0, 100).diag())
    moment = x.T.double() @ x.double() / len(x)
    moment[7] = moment[:, 7] = 0.0  # an input that is never active

    def error(stored: dict[str, torch.Tensor]) -> torch.Tensor:
        change = (dequantize(inputs=100, **stored) - weight).double()
        return (change @ moment * change).sum()

    nearest, calibrated = quantize(weight, "int4-weight"), quantize_on(weight, "int4-weight", moment)
    assert {name: (t.shape, t.dtype) for name, t in nearest.items()} == {
        name: (t.shape, t.dtype) for name, t in calibrated.items()
    }
    assert 0 < error(calibrated) < 0.7 * error(nearest)
    other = quantize_on(weight.T.contiguous().T, "int4-weight", moment)
    assert all(torch.equal(other[name], calibrated[name]) for name in other)


@pytest.mark.parametrize("changes", [{}, {"intermediate_size": 48, "attention_rank": 50}])
def test_a_supernet_rounds_four_bits_on_its_calibration_data_as_an_export_stores_them(changes: dict[str, int]) -> None:
    supernet, subnet = bert_in("int4-weight")
    nearest, batch = supernet.extract(subnet), TOYS["bert"].inputs()
    parent = logits(supernet.extract(supernet.parent), batch)
    supernet.calibration = calibrate(supernet, [batch])
    supernet.activate(subnet)
    calibrated, active = supernet.extract(subnet), logits(supernet.model, batch)
    assert torch.equal(logits(calibrated, batch), active)
    assert (active - parent).square().mean() < (logits(nearest, batch) - parent).square().mean()
    supernet.activate(narrow := subnet.with_values(**{n: (v,) * len(subnet.layers) for n, v in changes.items()}))
    assert torch.allclose(logits(supernet.extract(narrow), batch), logits(supernet.model, batch), atol=1e-6)


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_weights_in_fewer_bits_are_trained_rounded_and_stored_as_they_were_trained(family: str, dtype: str) -> None:
    supernet, batch = Supernet(TOYS[family].model()), TOYS[family].labelled()
    bits = (dtype, FULL_PRECISION, *[dtype] * (len(supernet.parent.layers) - 2))
    subnet = supernet.parent.with_values(bits=bits, mlp_rank=(50,) * len(bits))
    supernet.calibration = calibrate(supernet, [TOYS[family].inputs()])
    model = trainable(supernet, subnet).requires_grad_(True)
    before = with_stored_weights(model, supernet, subnet)
    layers = [name for name, _ in before.named_buffers() if name.endswith("qweight")]
    assert len(layers) >= 4 * (len(bits) - 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(**batch).loss.backward()
    optimizer.step()
    after, inputs = with_stored_weights(model.eval(), supernet, subnet).eval(), TOYS[family].inputs()
    assert torch.allclose(logits(after, inputs), logits(model, inputs), atol=0.05 if dtype == "bfloat16" else 1e-5)
    changed = [name for name in layers if not torch.equal(after.get_buffer(name), before.get_buffer(name))]
    assert len(changed) > len(layers) / 2


@pytest.mark.parametrize("groups", [1, 4])
def test_files_of_earlier_versions_still_load(groups: int) -> None:
    """With one scale for a row, or for 64 inputs, and no offsets."""
    layer, old = torch.nn.Linear(200, 5), {"bias": torch.zeros(5), "scales": torch.rand(5, groups)}
    old["qweight"] = pack_pairs(torch.randint(-7, 8, (5, 200), dtype=torch.int8))
    earlier = QuantizedLinear(layer, 200, 5, "int4-weight" if groups == 1 else "int4-weight:64")
    earlier.load_state_dict(old)
    x, scales = torch.randn(3, 200), old["scales"].repeat_interleave(64 if groups > 1 else 200, 1)[:, :200]
    assert torch.allclose(earlier(x), x @ (unpack(old["qweight"], 200) * scales).T, atol=1e-4)


def test_an_onnx_file_multiplies_groups_of_four_bits_as_they_are(tmp_path: Path) -> None:
    import onnx

    supernet = Supernet(bert(intermediate_size=128, num_hidden_layers=1))
    layers = supernet.parent.num_hidden_layers
    model = supernet.extract(supernet.parent.with_values(bits=("int4-weight",) * layers))
    assert write_onnx(model, TOYS["bert"].inputs(), tmp_path / "model.onnx") < 1e-4
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert nodes.count("MatMulNBits") == layers, "one layer in each has a multiple of 32 inputs"


@pytest.mark.parametrize("dtype", ROUNDED)
def test_training_computes_with_rounded_weights_and_gradients_pass_the_rounding(dtype: str) -> None:
    x, weight, bias = torch.randn(3, 7, 48), torch.randn(96, 48, requires_grad=True), torch.randn(96)
    with torch.no_grad():
        expected = fake_quant_linear(x, weight, bias, dtype)
    actual = fake_quant_linear(x, weight, bias, dtype)
    atol = 0.2 if dtype == "bfloat16" else 1e-4
    assert torch.allclose(actual, expected, atol=atol)
    assert not torch.allclose(actual, x @ weight.T + bias, atol=1e-3)
    (gradient,) = torch.autograd.grad(actual.square().sum(), weight)
    if dtype != "bfloat16":
        rounded_x = torch.autograd.grad(fake_quant_linear(x, weight, None, dtype).sum(), weight)[0][0]
        assert torch.allclose(rounded_x, x.sum((0, 1)), atol=0.5) and gradient.isfinite().all() and gradient.any()


def test_int8_rounds_activations_as_the_dynamic_quantization_of_pytorch_does() -> None:
    """The reference rounds with PyTorch's own function and multiplies in floating point."""
    layer, x = torch.nn.Linear(48, 96), torch.randn(4, 9, 48) + 0.3
    stored = quantize(layer.weight.detach(), "int8")
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        rounded = torch.quantize_per_tensor_dynamic(x, torch.quint8, False).dequantize()
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
        outputs, copied = module(x), copy.deepcopy(module)(x)
    assert not before.any() and torch.equal(outputs, copied) and (outputs - layer(x)).abs().max() < 0.1


def test_extracted_weights_are_quantized_and_fewer_bits_change_more() -> None:
    changes = {}
    for dtype in ROUNDED:
        supernet, subnet = bert_in(dtype)
        batch = TOYS["bert"].inputs()
        unquantized, quantized = logits(supernet.extract(supernet.parent), batch), logits(supernet.model, batch)
        assert torch.equal(logits(supernet.extract(subnet), batch), quantized)
        changes[dtype] = (quantized - unquantized).abs().mean()
    assert 0 < changes["int8-weight"] < changes["int8"] < changes["int4-weight"]


def test_bits_that_cannot_run_or_help_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_has", lambda *flags: False)
    workload, costs = Workload(), ["latency_ms", "size_mb"]
    assert "no such instructions" in unsupported_reason("bfloat16", workload, costs) and not unsupported_reason(
        "int8", workload, costs
    )
    assert "only reduces size_mb" in unsupported_reason("int4-weight", workload, ["accuracy", "latency_ms"])
    assert not unsupported_reason("int4-weight", workload, ["accuracy", "size_mb"]) and not unsupported_reason(
        FULL_PRECISION, workload, []
    )
    assert "neither an objective" in unsupported_reason("int8", workload, ["accuracy", "macs"])
    assert not unsupported_reason("int8", Workload(runtime="onnxruntime"), costs)
    assert "no such kernels" in unsupported_reason("int8", Workload(runtime="openvino"), costs)
    assert "already" in unsupported_reason("int8", Workload(dtype="int8"), costs)
    facts = Facts(64, unsupported_dtypes={"bfloat16": "why", "int4-weight": "-"})
    choices, reasons = useful_choices({"bits": ["float32", "int8", "bfloat16"]}, facts)
    assert choices["bits"] == ["float32", "int8"] and reasons == ["bits bfloat16 dropped: why"]
    assert useful_choices({"bits": ["full", "int8"]}, facts)[0]["bits"] == ["float32", "int8"], "another name"
    with pytest.raises(InputError, match="did you mean `int8`"):
        useful_choices({"bits": ["int88"]}, facts)


def test_old_subnetworks_keep_their_keys_and_bits_are_read_back() -> None:
    assert "bits" not in PARENT.to_dict() and "bits" not in PARENT.parts
    mixed = PARENT.with_values(bits=("int8", "float32", "int4-weight"))
    assert mixed.key != PARENT.key and SubnetConfig.from_dict(json.loads(json.dumps(mixed.to_dict()))) == mixed
    assert "int8; float32; int4-weight" in str(mixed) and not mixed.is_uniform


def test_latency_may_differ_in_each_dtype() -> None:
    """A law that multiplies widths by the price of their dtype is a sum of the features."""
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
def test_onnx_runtime_multiplies_integers_in_the_chosen_layers_only(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    supernet = Supernet(TOYS["bert"].model())
    subnet = supernet.parent.with_values(bits=("int8", "float32", "int8-weight", "int4-weight"))
    model, batch = supernet.extract(subnet), TOYS["bert"].inputs()
    write_onnx(model, batch, tmp_path / "model.onnx")
    products = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == 6
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    inputs = {port.name: batch[port.name].numpy() for port in session.get_inputs()}
    outputs = torch.from_numpy(session.run(["logits"], inputs)[0]).flatten()
    assert (outputs - logits(model, batch)).abs().max() < 0.005


@pytest.mark.slow
def test_a_search_with_bits_end_to_end(text_recipe: Path, tmp_path: Path) -> None:
    overrides = ["space.bits=[float32, int8, int4-weight]", "space.num_hidden_layers=[2, 4]"]
    overrides += ["objectives={accuracy: maximize, size_mb: minimize}", "search.evaluations=16", "parent.epochs=1"]
    overrides += ["supernet.epochs=1"]
    recipe = Recipe.load(text_recipe, overrides)
    run = search(recipe, tmp_path / "run")
    rows = [line for line in read_lines(run.verified) if line["key"] != "parent"]
    small = min(rows, key=lambda line: line["values"]["size_mb"])
    assert "int4-weight" in small["subnet"]["bits"]
    out = tmp_path / "small"
    command = Command("export", run.folder, "--pick", small["key"], "--out", out)
    said = command.communicate()[1]
    assert command.returncode == 0, said
    file = out / "model.safetensors"
    assert file.stat().st_size / 1e6 == pytest.approx(small["values"]["size_mb"], abs=1e-6)
    assert {torch.uint8, torch.float32} <= {tensor.dtype for tensor in load_file(file).values()}
    faster = recipe.model_copy(update={"objectives": {"accuracy": "maximize", "latency_ms": "minimize"}})
    layout = Supernet(TOYS["bert"].model()).layout
    choices, reasons = recipe_choices(context_of(faster, layout))
    assert choices["bits"] == ["float32", "int8"] and "int4-weight dropped" in reasons[0]
