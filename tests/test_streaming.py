"""Models whose weights exceed a device: those of the layers stay on the CPU, and are copied when they are used."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from conftest import TOYS
from second_device import DEVICE, second_device
from test_exports import narrower, per_layer
from test_formats import unrounded

from nas.supernets.calibration import calibrate
from nas.supernets.importance import order_by_importance, permute
from nas.supernets.supernet import Supernet

Inputs = Mapping[str, torch.Tensor]


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model fits on another device than the CPU."""
    for module in ("nas.supernets.device", "nas.supernets.supernet"):
        monkeypatch.setattr(f"{module}.fits", lambda _, device: torch.device(device).type == "cpu")


def prepared(supernet: Supernet, inputs: Inputs, by: str) -> dict[str, object]:
    """Orders and calibrates a supernet; returns the order."""
    batches = [{**inputs, "labels": inputs["input_ids"]}]
    order = order_by_importance(supernet, batches, batches, by=by)  # type: ignore[arg-type]
    permute(supernet, order.units, order.hidden)
    supernet.calibration = calibrate(supernet, batches, compensates=True)
    return order.to_dict()


def supernets() -> tuple[Supernet, Supernet, dict[str, torch.Tensor]]:
    """Two supernets of one random decoder."""
    model, inputs = TOYS["llama"].model("text-generation").eval(), dict(TOYS["llama"].inputs())
    model.set_attn_implementation("eager")
    model.config.use_cache = False
    return Supernet(copy.deepcopy(model)), Supernet(model), inputs


@pytest.mark.usefixtures("too_large")
@pytest.mark.parametrize("by", ["activation", pytest.param("gradient", marks=pytest.mark.full)])
def test_a_model_that_exceeds_the_device_computes_the_same(by: str) -> None:
    reference, streamed, inputs = supernets()
    expected_order = prepared(reference, inputs, by)
    with second_device() as device:
        streamed.to(DEVICE)
        assert prepared(streamed, inputs, by) == expected_order
    outside = {p for name, p in streamed.model.named_parameters() if streamed.layout.locate(name).layer is None}
    assert {p.device for p in outside} == {DEVICE} == {streamed.model.device}
    of_layers = sum(p.nbytes for p in streamed.model.parameters() if p.device.type == "cpu")
    for subnet in (streamed.parent, narrower(streamed.layout), unrounded(per_layer(streamed.layout))):
        reference.activate(subnet)
        with torch.no_grad():
            expected = reference.model(**inputs).logits
        with second_device() as device, torch.no_grad():
            streamed.activate(subnet)
            found = streamed.model(**{name: tensor.to(DEVICE) for name, tensor in inputs.items()}).logits.cpu()
            extracted = streamed.extract(subnet)
        assert device.peak_bytes < of_layers / 2
        assert torch.allclose(found, expected, atol=1e-6)
        assert extracted.device.type == "cpu"
        with torch.no_grad():
            assert torch.allclose(extracted(**inputs).logits, expected, atol=1e-5)
    with second_device():
        streamed.to("cpu")
    assert {p.device.type for p in streamed.model.parameters()} == {"cpu"}
    with torch.no_grad():
        assert torch.equal(streamed.model(**inputs).logits, expected)


@pytest.mark.gpu
@pytest.mark.usefixtures("too_large")
def test_a_model_that_exceeds_a_gpu_computes_the_same() -> None:
    reference, streamed, inputs = supernets()
    expected_order = prepared(reference, inputs, "activation")
    assert prepared(streamed.to("cuda"), inputs, "activation") == expected_order
    with torch.inference_mode():
        found = streamed.model(**{name: tensor.to("cuda") for name, tensor in inputs.items()}).logits.cpu()
        assert torch.allclose(found, reference.model(**inputs).logits, atol=1e-4)
