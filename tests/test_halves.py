"""A parent in bfloat16 or float16: trained in float32, otherwise kept, counted and exported in its own dtype."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from samples import sampled
from test_exports import per_layer
from toys import TOYS, bert

from nas.exports.check import check_folder
from nas.exports.export import (
    _outputs,
    check_reload,
    export_subnet,
    outputs_in_subprocess,
    reload_in_process,
    save_subnet,
    supernet_outputs,
)
from nas.exports.formats import convert
from nas.modeling.cast import cast_weights, exact_sums
from nas.pipeline import locked_run, run_stages
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.parent import run_parent
from nas.stages.parent_check import _require_running
from nas.studies.pick import pick
from nas.supernets.calibration import calibrate
from nas.supernets.load import load_supernet
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from predictors import AnalyticCosts
from predictors.measurement import openvino_export
from predictors.measurement.halves import in_own_dtype
from predictors.measurement.rounding import largest_difference, leaf_outputs
from predictors.measurement.runtimes import FORMATS
from search_spaces import TASKS, InputError, SubnetConfig

HALVES = {torch.bfloat16: "BF16", torch.float16: "F16"}
SUBNET = SubnetConfig((0, 2), (4, 2), (96, 24), 48, bits=("float32", "int8"))


def dtypes_in(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  (it is no mapping)


@pytest.fixture
def halved(text_recipe: Path, request: pytest.FixtureRequest) -> TaskContext:
    """A recipe whose model has 16 bits and a trained head."""
    model = bert(num_labels=2, problem_type="single_label_classification").to(request.param)
    model.save_pretrained(text_recipe.parent / "model")
    return TaskContext(Recipe.load(text_recipe, ["parent.epochs=1"]))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in ("bert", "gpt2", "llama", "t5", "vit")))
def test_file_sizes_in_16_bits_are_those_of_real_files(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    toy = TOYS[family]
    supernet = Supernet(toy.model(), dtype=dtype)
    supernet.calibration = calibrate(supernet, [toy.inputs()])
    subnets = [supernet.parent, per_layer(supernet.layout)]
    counts = AnalyticCosts.from_model(supernet.model, supernet.layout, dtype=supernet.dtype)
    for subnet, counted in zip(subnets, counts.count(["size_mb"], subnets)["size_mb"], strict=True):
        model = cast_weights(supernet.extract(subnet), dtype)
        model.save_pretrained(tmp_path)
        assert (tmp_path / "model.safetensors").stat().st_size == round(1e6 * counted)
        again = type(model).from_pretrained(tmp_path)
        assert again.dtype == dtype
        assert {n: t.dtype for n, t in again.state_dict().items()} == {
            n: t.dtype for n, t in model.state_dict().items()
        }


@pytest.mark.parametrize("halved", HALVES, indirect=True)
def test_a_parent_in_16_bits_is_trained_in_float32_and_exported_in_16(halved: TaskContext, tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run", halved.recipe)
    run_parent(run, halved)
    model = halved.load_model(run.parent)
    assert dtypes_in(run.parent) == {HALVES[halved.dtype]} and model.dtype == torch.float32
    supernet = Supernet(model.eval(), dtype=halved.dtype)
    save_subnet(supernet, SUBNET, halved, tmp_path / "small")
    assert dtypes_in(tmp_path / "small") == {HALVES[halved.dtype], "I8", "F32"}
    check_reload(tmp_path / "small", *supernet_outputs(supernet, SUBNET, halved), SUBNET, halved)
    reloaded = reload_in_process(tmp_path / "small", supernet, SUBNET, halved)
    assert reloaded.dtype == halved.dtype
    exact = score(supernet.extract(SUBNET), halved.splits.test, ["loss"])["loss"].value
    assert score(reloaded, halved.splits.test, ["loss"])["loss"].value == pytest.approx(exact, rel=0.05)


def test_a_float32_parent_whose_config_names_no_dtype_stays_in_it(text_recipe: Path) -> None:
    config = text_recipe.parent / "model" / "config.json"
    config.write_text(json.dumps({n: v for n, v in json.loads(config.read_text()).items() if n != "dtype"}))
    assert TaskContext(Recipe.load(text_recipe)).dtype == torch.float32


@pytest.mark.parametrize("halved", HALVES, indirect=True)
def test_an_export_whose_weights_were_not_rounded_is_refused(halved: TaskContext, tmp_path: Path) -> None:
    supernet = Supernet(halved.load_model().eval(), dtype=halved.dtype)
    save_subnet(supernet, SUBNET, halved, tmp_path)
    with torch.no_grad():
        supernet.model.classifier.weight += 0.01
    with pytest.raises(InputError, match="must agree"):
        reload_in_process(tmp_path, supernet, SUBNET, halved)


HALVED = (torch.bfloat16, "onnx")
FILES = [
    pytest.param(dtype, form, marks=pytest.mark.slow if (dtype, form) == HALVED else pytest.mark.full)
    for dtype in HALVES
    for form in ("onnx", "int8", "program")
]


@pytest.mark.parametrize(("halved", "name"), FILES, indirect=["halved"])
def test_files_of_other_runtimes_hold_16_bits_and_agree(name: str, halved: TaskContext, tmp_path: Path) -> None:
    import onnx

    supernet = Supernet(halved.load_model().eval(), dtype=halved.dtype)
    save_subnet(supernet, supernet.parent, halved, tmp_path)
    info = {"task": "text-classification", "workload": halved.recipe.workload.to_dict(), "max_length": 16}
    full = {"subnet": supernet.parent.to_dict(), "key": "0", "name": "", "device": "", "split": "", "measured": False}
    (tmp_path / "subnet.json").write_text(json.dumps({**info, **full, "values": {}, "errors": {}}))
    file = convert(tmp_path, [name])[name]
    inputs, expected = supernet_outputs(supernet, supernet.parent, halved)
    found = outputs_in_subprocess(name, file, "text-classification", inputs)
    assert largest_difference(found, expected) < {"onnx": 1e-4}.get(name, 0.1)
    if name != "program":
        kinds = {len(t.raw_data): t.data_type for t in onnx.load(file).graph.initializer}
        large = {kind for size, kind in kinds.items() if size >= 2 * 48 * 48}
        assert large <= {getattr(onnx.TensorProto, str(halved.dtype)[6:].upper()), onnx.TensorProto.INT8}
    else:
        weights = torch.export.load(file).state_dict.values()
        assert {tensor.dtype for tensor in weights if tensor.is_floating_point()} == {halved.dtype}


@pytest.mark.parametrize("dtype", HALVES)
def test_an_openvino_file_of_16_bits_is_compared_with_the_model_before_it_is_kept(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    model, inputs, file = (
        bert(num_hidden_layers=1).to(dtype).eval(),
        dict(TOYS["bert"].inputs()),
        tmp_path / "model.xml",
    )
    FORMATS["openvino"].write(model, inputs, file)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    assert file.with_suffix(".bin").stat().st_size < 1.1 * weights, "it stores 16 bits too"
    other, trace = bert(num_hidden_layers=1), openvino_export.trace
    monkeypatch.setattr(openvino_export, "trace", lambda model, inputs, dynamic: trace(other, inputs, dynamic=dynamic))
    with pytest.raises(InputError, match="an OpenVINO model must give the outputs of the model"):
        FORMATS["openvino"].write(model, inputs, file)


@pytest.mark.slow
def test_an_export_of_a_float32_parent_can_have_16_bits(finished: tuple[Path, Path], tmp_path: Path) -> None:
    run = Run(finished[1])
    point = pick(run, "knee")
    export_subnet(run, point, tmp_path / "small", dtype="float16")
    info = json.loads((tmp_path / "small" / "subnet.json").read_text())
    assert "F16" in dtypes_in(tmp_path / "small") and info["dtype"] == "float16"
    assert info["values"]["size_mb"] == (tmp_path / "small" / "model.safetensors").stat().st_size / 1e6
    assert info["values"]["size_mb"] < 0.9 * point.values["size_mb"]
    assert "stored in float16" in (tmp_path / "small" / "README.md").read_text()
    checks, failures = check_folder(tmp_path / "small", run, trust=True)
    assert not failures and checks["torch"].difference is not None and checks["torch"].difference < 1e-5
    with pytest.raises(InputError, match="--dtype must be one of float32, bfloat16, float16, but got `half`"):
        export_subnet(run, point, tmp_path / "other", dtype="half")


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in ("bert", "llama", "t5", "vit", "qwen3")))
def test_what_is_extracted_in_16_bits_is_what_is_active(family: str, dtype: torch.dtype) -> None:
    toy, inputs = TOYS[family], dict(TOYS[family].inputs())
    supernet = Supernet(toy.model().to(dtype).eval(), dtype=dtype)
    supernet.calibration = calibrate(supernet, [inputs], compensates=True)
    subnet = per_layer(supernet.layout)
    supernet.activate(subnet)
    extracted, halves = supernet.extract(subnet), in_own_dtype(supernet.model, inputs)
    exact = leaf_outputs(deepcopy(extracted).float(), inputs)
    with exact_sums(extracted):
        assert largest_difference(leaf_outputs(extracted, inputs), exact) < 1e-5
    found = leaf_outputs(extracted, halves)
    rounding = largest_difference(found, exact)
    assert rounding > 0 and extracted.dtype == dtype
    assert largest_difference(leaf_outputs(supernet.model, halves), found) <= 2 * rounding


@pytest.mark.parametrize("family", ["segformer", "beit"])
def test_images_meet_weights_of_their_own_dtype(family: str) -> None:
    """Convolutions take no other; the first weights of SegFormer are those of a list of layers."""
    toy = TOYS[family]
    inputs, context = toy.inputs(), SimpleNamespace(task=TASKS["image-classification"])
    model = toy.model().bfloat16().eval()
    _require_running(model, SimpleNamespace(batches=[inputs]))  # type: ignore[arg-type]
    expected = deepcopy(model).float()(**inputs).logits
    with exact_sums(model):
        found = _outputs(model, inputs, context, exact=True)["logits"]  # type: ignore[arg-type]
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("halved", [torch.bfloat16], indirect=True)
def test_16_bits_stay_in_memory_where_nothing_is_trained(halved: TaskContext, tmp_path: Path) -> None:
    overrides = ["supernet.strategy=none", "finish.models=0", "workload.dtype=bfloat16", "search.evaluations=12"]
    recipe = Recipe.load(Path(halved.recipe.model).parent / "recipe.yaml", overrides)
    with locked_run(recipe, tmp_path / "run") as (context, run):
        run_stages(run, context, last="export")
        supernet, _ = load_supernet(run, context)
        assert supernet.model.dtype == torch.bfloat16 and dtypes_in(run.supernet) == {"BF16"}
        assert dtypes_in(run.exports / run.front().knee().key) == {"BF16"}
        with context.training():
            assert load_supernet(run, context)[0].model.dtype == torch.float32


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_model_in_place_has_the_weights_of_its_supernet(family: str) -> None:
    toy = TOYS[family]
    supernet, inputs = Supernet(toy.model().eval()), toy.inputs()
    subnet = supernet.parent.with_values(intermediate_size=(48,) * 4)
    model, before = supernet.in_place(subnet), leaf_outputs(supernet.extract(subnet), inputs)
    own = {tensor.untyped_storage().data_ptr() for tensor in supernet.model.parameters()}
    assert {tensor.untyped_storage().data_ptr() for tensor in model.parameters()} <= own
    assert largest_difference(leaf_outputs(model, inputs), before) < 1e-6
    model.bfloat16()
    assert supernet.model.dtype == torch.float32 and leaf_outputs(model, inputs)
