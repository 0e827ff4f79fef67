"""On a GPU: measurement, training and comparison of outputs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import TOYS, logits

from nas.modeling.elastic import make_elastic
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.supernets.supernet import Supernet
from predictors import Workload
from predictors.measurement.energy import energy_mj
from predictors.measurement.measure import measure
from predictors.measurement.memory import peak_memory_mb
from predictors.measurement.prepare import prepare
from predictors.measurement.timing import REFERENCE
from search_spaces import SubnetConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = Workload(device="cuda", batch_size=3, sequence_length=12)


@pytest.mark.parametrize("model_type", ["bert", "llama", "t5", "vit"])
def test_the_extracted_model_equals_the_supernet(model_type: str) -> None:
    toy = TOYS[model_type]
    supernet = Supernet(toy.model().cuda())
    widths = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    half = {field: [width // 2 for width in getattr(supernet.parent, field)] for field in widths}
    subnet = SubnetConfig.from_dict({**supernet.parent.to_dict(), **half})
    inputs = {name: value.cuda() for name, value in toy.inputs().items()}
    supernet.activate(subnet)
    torch.testing.assert_close(
        logits(supernet.model, inputs), logits(supernet.extract(subnet), inputs), rtol=0, atol=1e-5
    )


def test_an_embedding_gets_the_gradient_of_its_stock_module() -> None:
    ids, stock = torch.randint(0, 50, (4, 7), device="cuda"), torch.nn.Embedding(50, 6, padding_idx=0).cuda()
    elastic = torch.nn.Embedding(50, 6, padding_idx=0).cuda()
    table = elastic.weight
    elastic.load_state_dict(stock.state_dict())
    make_elastic(elastic).__dict__["active_entries"] = {"weight": (slice(None), slice(0, 4))}
    stock(ids)[..., :4].square().sum().backward()
    elastic(ids).square().sum().backward()
    torch.testing.assert_close(table.grad, stock.weight.grad)


@pytest.mark.parametrize(
    ("runtime", "dtype"), [("torch", "float32"), ("torch", "bfloat16"), ("torch", "float16"), ("compile", "float32")]
)
def test_latencies_include_the_work_of_the_gpu(runtime: str, dtype: str) -> None:
    large = torch.randn(8192, 8192, device="cuda")
    workload = Workload(runtime=runtime, device="cuda", dtype=dtype, batch_size=3, sequence_length=12)
    model = TOYS["bert"].model()
    call = prepare(model, TOYS["bert"].inputs(), workload)
    timed = measure({"product": lambda: large @ large}, call, workload)
    assert timed["product"].latency_ms > 5  # 1.1e12 operations, queued in microseconds
    assert 0 < timed[REFERENCE].latency_ms < 100


def test_memory_and_energy_are_those_of_the_gpu() -> None:
    def load() -> object:
        weights = torch.ones(64, 1024, 1024, device="cuda")  # 268 MB
        return lambda: weights + 1  # and as much again

    memory = peak_memory_mb(load, GPU)  # type: ignore[arg-type]
    assert memory is not None and 500 < memory < 700
    if find_spec("pynvml") is None:
        pytest.skip("needs nvidia-ml-py")
    matrix = torch.randn(8192, 8192, device="cuda")

    def call() -> None:
        torch.mm(matrix, matrix)
        torch.cuda.synchronize()

    energy = energy_mj(call, GPU, seconds=1.0)
    assert energy is not None and 500 < energy < 100_000  # 1.1e12 operations at some hundred watts


@pytest.mark.parametrize("changes", [[], ["supernet.bf16=true", "workload.dtype=bfloat16"]])
def test_a_search_ends_in_a_front_measured_on_the_gpu(changes: list[str], text_recipe: Path, tmp_path: Path) -> None:
    run = search(Recipe.load(text_recipe, ["workload.device=cuda", *changes]), tmp_path / "run")
    assert run.device == torch.cuda.get_device_name()
    assert all(point.measured and point.values["latency_ms"] > 0 for point in run.front())
