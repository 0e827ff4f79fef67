"""On a GPU: measurement, training and comparison of outputs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from random import Random

import pytest
import torch
from test_families import dimensions, everything, make_space
from test_promises_of_exports import assert_equal_gradients
from toys import TOYS, logits

from nas.modeling.elastic import make_elastic
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.supernets.calibration import calibrate
from nas.supernets.supernet import Supernet
from predictors import Workload
from predictors.measurement.energy import energy_mj
from predictors.measurement.measure import measure
from predictors.measurement.memory import peak_memory_mb
from predictors.measurement.prepare import prepare
from predictors.measurement.timing import REFERENCE
from search_spaces import FAMILIES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = Workload(device="cuda", batch_size=3, sequence_length=12)


FAMILIES_HERE = ("bert", "llama", "t5", "vit")
DIMENSIONS_HERE = sorted({*(name for family in FAMILIES_HERE for name in FAMILIES[family].dimensions), "everything"})


def task_of(family: str) -> str:
    """A task whose head shares no table with the embeddings, where there is one."""
    return "text-classification" if "text-classification" in FAMILIES[family].tasks else FAMILIES[family].tasks[0]


def on_gpu(family: str) -> tuple[Supernet, dict[str, torch.Tensor]]:
    """A calibrated supernet and its inputs on the GPU; its embeddings may be low-rank."""
    toy = TOYS[family]
    supernet = Supernet(toy.model(task_of(family)).cuda())
    inputs = {name: value.cuda() for name, value in toy.inputs().items()}
    supernet.calibration = calibrate(supernet, [inputs])
    return supernet, inputs


@pytest.mark.parametrize("dimension", DIMENSIONS_HERE)
@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_the_extracted_model_equals_the_supernet(family: str, dimension: str) -> None:
    supernet, inputs = on_gpu(family)
    names = everything(supernet) if dimension == "everything" else [dimension]
    if dimension != "everything" and dimension not in dimensions(supernet):
        pytest.skip(f"{family} has no {dimension}")
    space = make_space(supernet, names)
    for seed in range(3):
        subnet = space.sample(Random(seed))
        supernet.activate(subnet)
        active, extracted = logits(supernet.model, inputs), logits(supernet.extract(subnet), inputs)
        tolerance = 1e-2 if {*subnet.bits} - {"float32", "int8-weight", "int4-weight"} else 1e-4  # what rounds
        torch.testing.assert_close(active, extracted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_what_was_active_on_the_gpu_goes_on_on_the_cpu_and_back(family: str) -> None:
    supernet, inputs = on_gpu(family)
    space = make_space(supernet, everything(supernet))
    for seed in range(3):
        subnet = space.sample(Random(seed))
        supernet.activate(subnet)
        before = logits(supernet.model, inputs)
        supernet.model.cpu()
        there = logits(supernet.model, {name: value.cpu() for name, value in inputs.items()})
        supernet.model.cuda()
        torch.testing.assert_close(logits(supernet.model, inputs), before)
        torch.testing.assert_close(there, before.cpu(), rtol=0, atol=5e-2)


@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_gradients_pass_every_dimension(family: str) -> None:
    supernet, _ = on_gpu(family)
    batch = {name: value.cuda() for name, value in TOYS[family].labelled(task_of(family)).items()}
    assert_equal_gradients(supernet, make_space(supernet, everything(supernet)).sample(Random(0)), batch)


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
    assert run.target.device == torch.cuda.get_device_name()
    assert all(point.measured and point.values["latency_ms"] > 0 for point in run.front())
