"""Law 2 over every family: what is exported reloads in a fresh process with equal outputs; stock where a stock config
suffices, else with its modeling files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from samples import DAILY_FAMILIES, LAYOUTS, sampled
from toys import TOYS, as_fixed, logits

from nas.exports.export import enable_remote_code
from nas.modeling.modeling_nas import PREFIX
from nas.supernets.calibration import calibrate
from nas.supernets.supernet import Supernet
from search_spaces import FAMILIES, TASKS, Layout, SubnetConfig
from search_spaces.stock_config import stock_config_update

HEADS_IN_CONFIG = {
    name
    for name, family in FAMILIES.items()
    if family.head_dim_in_config or "num_attention_heads" in family.fixed_reasons
}
"""Families whose stock config can set the number of heads independently of the hidden size, or that fix the heads."""
NEVER_NARROWER = {"bart", "mbart", "bloom", "falcon", "olmoe", "swin", "segformer"}
"""Families whose toy scales tied embeddings by the root of the hidden size, with no norm that could undo it, whose
stock config ties the heads, which are fixed, to the hidden size, or holds whole ratios of neurons to it."""

LOAD = """
import json, sys, torch, transformers
from pathlib import Path
from safetensors.torch import load_file, save_file
{prepare}
root, again = Path(sys.argv[1]), sys.argv[2]
modules = {{}}
for folder, auto in json.loads((root / "folders.json").read_text()).items():
    model = getattr(transformers, auto).from_pretrained(root / folder{trust}).eval()
    inputs = load_file(root / folder / "inputs.safetensors")
    with torch.inference_mode():
        outputs = model(**inputs)
    if "last_hidden_state" in outputs and "attention_mask" in inputs:
        mask = inputs["attention_mask"][..., None]
        outputs = {{"logits": (outputs["last_hidden_state"] * mask).sum(1) / mask.sum(1)}}
    names = [n for n in ("logits", "start_logits", "end_logits", "pred_boxes", "pooler_output") if n in outputs]
    save_file({{"out": torch.cat([outputs[name].flatten() for name in names])}}, root / folder / (again + ".out"))
    model.save_pretrained(root / folder / again)
    modules[folder] = type(model).__module__
(root / (again + ".json")).write_text(json.dumps(modules))
"""
ISOLATED = "sys.modules |= dict.fromkeys(('nas', 'search_spaces', 'predictors'))  # not to be imported"
MODES = {
    "trusted": LOAD.format(prepare=ISOLATED, trust=", trust_remote_code=any((root / folder).glob('*.py'))"),
    "imported": LOAD.format(prepare="import nas", trust=""),
}


def per_layer(layout: Layout) -> SubnetConfig:
    """Three different layers of each stack: the first layer is dropped, each block is skipped once, some layers have a
    low rank, fewer units or a quantized dtype; sparse attention and low-rank embeddings if the family allows them."""
    if layout.family.shared_layers:
        sizes = {"num_attention_heads": 4, "intermediate_size": 40, "hidden_size": 36, "mlp_rank": 50}
        return SubnetConfig.uniform((0, 1), **sizes, attention="local:4", bits="int4-weight")
    groups, stacks = (0, 2, 4), len(layout.depths)
    heads = tuple(per_group(layout) * number for number in groups)
    layers = tuple(4 * stack + layer for stack in range(stacks) for layer in (1, 2, 3))
    slides = getattr(layout.sizes, "sliding_window", None) is not None
    sparse = ("full", "local:4", "local:3" if slides else "bigbird:2,1,1") * stacks
    patterns = sparse if "attention" in layout.family.dimensions else ()
    low_rank_embedding = bool(layout.family.embedding) and not layout.ties_embedding(layout.family.tasks[0])
    return SubnetConfig(
        layers,
        num_attention_heads=heads * stacks,
        intermediate_size=(96, 0, 40) * stacks,
        hidden_size=hidden(layout, 36),
        num_key_value_heads=groups * stacks,
        attention_rank=(100, 40, 100) * stacks,
        mlp_rank=(30, 100, 60) * stacks,
        attention=patterns,
        bits=("int8", "bfloat16", "int4-weight") * stacks,
        embedding_rank=60 if low_rank_embedding else 100,
        embedding_bits="4" if low_rank_embedding else "full",
    )


def narrower(layout: Layout) -> SubnetConfig:
    """Everything narrower, with the parent's ratio of hidden size and heads."""
    size = hidden(layout, 36)
    return uniform(layout, groups=size // 12, hidden_size=size, intermediate_size=72)


def fewer_heads(layout: Layout) -> SubnetConfig:
    """Half of the heads at the full hidden size."""
    return uniform(layout, groups=2, hidden_size=48, intermediate_size=96)


def uniform(layout: Layout, groups: int, **sizes: int) -> SubnetConfig:
    """The first and third layer of each stack; grouped heads are dropped in groups."""
    layers = tuple(4 * stack + layer for stack in range(len(layout.depths)) for layer in (0, 2))
    layers = (0, 1) if layout.family.shared_layers else layers
    heads = per_group(layout) * groups
    return SubnetConfig.uniform(layers, num_attention_heads=heads, num_key_value_heads=groups, **sizes)


def short_vectors(layout: Layout) -> SubnetConfig:
    """What `fewer_heads` has, with 20 components of the vector."""
    return fewer_heads(layout).with_values(embedding_dim=20)


def hidden(layout: Layout, size: int) -> int:
    """A hidden size, or the parent's where it cannot vary."""
    return layout.parent.hidden_size if "hidden_size" in layout.family.fixed_reasons else size


def per_group(layout: Layout) -> int:
    return layout.parent.num_attention_heads[0] // layout.parent.num_key_value_heads[0]


SUBNETS = {"per-layer": per_layer, "narrower": narrower, "fewer-heads": fewer_heads, "short-vectors": short_vectors}
VECTORS = "feature-extraction"
SAMPLED = sampled(
    (
        (family, kind)
        for family, kind in product(TOYS, SUBNETS)
        if kind != "short-vectors" or VECTORS in FAMILIES[family].tasks
    ),
    lambda family, kind: family in (LAYOUTS if kind == "per-layer" else (*DAILY_FAMILIES, "bart")),
)


@dataclass(frozen=True)
class Exports:
    """Folders of every family and subnetwork, outputs of the supernets, and modules that fresh processes loaded."""

    root: Path
    expected: dict[str, torch.Tensor]
    modules: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def exports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """All that this session asks for, loaded by one process a mode."""
    root = tmp_path_factory.mktemp("exports")
    items = [item for item in request.session.items if item.path == request.path]
    cases = [item.callspec.params for item in items if "exports" in item.fixturenames]
    expected, folders = {}, {}
    for family, kind in dict.fromkeys((case["family"], case["kind"]) for case in cases):
        name = f"{family}-{kind}"
        task = VECTORS if kind == "short-vectors" else FAMILIES[family].tasks[0]
        folders[name] = TASKS[task].auto_class
        expected[name] = write(family, kind, task, root / name)
    (root / "folders.json").write_text(json.dumps(folders))
    modules = {}
    for mode, code in MODES.items():
        command = [sys.executable, "-c", code, str(root), mode]
        paths = os.environ.get("PYTHONPATH", "") if mode == "imported" else ""
        environment = {**os.environ, "HF_HOME": str(root / "cache"), "PYTHONPATH": paths}
        process = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
        assert process.returncode == 0, process.stderr
        modules[mode] = json.loads((root / f"{mode}.json").read_text())
    return Exports(root, expected, modules)


def write(family: str, kind: str, task: str, folder: Path) -> torch.Tensor:
    """Exports a subnetwork of a random model together with inputs; returns the active supernet's outputs."""
    torch.manual_seed(0)
    supernet, batch = Supernet(TOYS[family].model(task)), TOYS[family].inputs()
    supernet.calibration = calibrate(supernet, [batch])
    subnet = as_fixed(supernet.layout, SUBNETS[kind](supernet.layout))
    model = supernet.extract(subnet)
    if type(model).__name__.startswith(PREFIX):
        enable_remote_code(model, TASKS[task].auto_class)
    model.save_pretrained(folder)
    save_file(batch, folder / "inputs.safetensors")
    supernet.activate(subnet)
    return logits(supernet.model, batch)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("family", "kind"), SAMPLED)
def test_an_export_reloads_with_equal_outputs(exports: Exports, family: str, kind: str, mode: str) -> None:
    name = f"{family}-{kind}"
    folder = exports.root / name
    actual = load_file(folder / f"{mode}.out")["out"]
    assert torch.allclose(actual, exports.expected[name], atol=1e-5)
    first, again = load_file(folder / "model.safetensors"), load_file(folder / mode / "model.safetensors")
    assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)
    assert {file.name for file in folder.glob("*.py")} == {file.name for file in (folder / mode).glob("*.py")}


@pytest.mark.parametrize(("family", "kind"), SAMPLED)
def test_an_export_is_stock_if_a_stock_config_suffices(exports: Exports, family: str, kind: str) -> None:
    name = f"{family}-{kind}"
    files = sorted(file.name for file in (exports.root / name).glob("*.py"))
    config = json.loads((exports.root / name / "config.json").read_text())
    model_type, custom = config["model_type"], {"auto_map", "nas_arch"} & config.keys()
    modules = [exports.modules[mode][name] for mode in ("trusted", "imported")]
    names = {"narrower": set(TOYS) - NEVER_NARROWER, "fewer-heads": HEADS_IN_CONFIG}
    if family in names.get(kind, ()):
        assert not files and model_type == family and not custom
        assert hasattr(transformers, config["architectures"][0])  # what other servers of models go by
        assert all(module.startswith("transformers.models.") for module in modules)
    else:
        assert (
            files == ["compressed_table.py", "modeling_nas.py", "quantized.py", "sparse_attention.py"]
            and model_type == f"nas_{family}"
        )
        assert modules[0].startswith("transformers_modules.") and modules[1] == "nas.modeling.modeling_nas"


def test_a_first_layer_that_stock_models_build_differently_needs_the_file() -> None:
    layout = Layout(TOYS["modernbert"].model().config)
    sizes = {"num_attention_heads": 4, "intermediate_size": 96, "hidden_size": 48}
    assert stock_config_update(layout, SubnetConfig.uniform((0, 2), **sizes)) is not None
    assert stock_config_update(layout, SubnetConfig.uniform((1, 2), **sizes)) is None
