"""Models whose weights exceed a device: those of the layers stay on the CPU, and are copied when they are used."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from test_exports import narrower, per_layer
from test_formats import unrounded
from toys import TOYS

from nas.supernets.calibration import calibrate
from nas.supernets.importance import order_by_importance, permute
from nas.supernets.supernet import Supernet

Inputs = Mapping[str, torch.Tensor]


@contextmanager
def too_large() -> Iterator[None]:
    """No model fits on another device than the CPU."""

    def fits(_: Any, device: Any) -> bool:
        return torch.device(device).type == "cpu"

    with mock.patch("nas.supernets.device.fits", fits), mock.patch("nas.supernets.supernet.fits", fits):
        yield


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


def compare(by: str) -> None:
    """A supernet on a second device that its weights exceed has the order, the outputs and the exports of another."""
    from second_device import DEVICE, second_device

    reference, streamed, inputs = supernets()
    expected_order = prepared(reference, inputs, by)
    with second_device():
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


@pytest.mark.slow
@pytest.mark.parametrize("by", ["activation", pytest.param("gradient", marks=pytest.mark.full)])
def test_a_model_that_exceeds_the_device_computes_the_same(by: str) -> None:
    """In a process of its own, as PyTorch keeps a device that was registered."""
    code = f"import test_streaming as t\nwith t.too_large(): t.compare({by!r})"
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests.parent)}
    subprocess.run([sys.executable, "-c", code], cwd=tests, env=environment, check=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_that_exceeds_a_gpu_computes_the_same() -> None:
    reference, streamed, inputs = supernets()
    expected_order = prepared(reference, inputs, "activation")
    with too_large():
        assert prepared(streamed.to("cuda"), inputs, "activation") == expected_order
        with torch.inference_mode():
            found = streamed.model(**{name: tensor.to("cuda") for name, tensor in inputs.items()}).logits.cpu()
            assert torch.allclose(found, reference.model(**inputs).logits, atol=1e-4)
