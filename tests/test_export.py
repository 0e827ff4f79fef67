"""Law 2: what is exported reloads, in a clean process, with equal outputs; stock wherever a stock config suffices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import TOYS
from safetensors.torch import load_file, save_file

from nas.export import describe_remote_code
from nas.supernet import Supernet
from search_spaces import AUTO_CLASSES, FAMILIES, SubnetConfig

AUTO = {name: AUTO_CLASSES[family.tasks[0]] for name, family in FAMILIES.items()}
UNEVEN = SubnetConfig((0, 2, 3), (4, 1, 2), (96, 16, 40), 48)
UNIFORM = SubnetConfig.uniform((1, 3), num_attention_heads=4, intermediate_size=40, hidden_size=48)
FEWER_HEADS = SubnetConfig.uniform((1, 3), num_attention_heads=2, intermediate_size=40, hidden_size=48)

LOAD = """
import sys, torch, transformers
{imports}
from safetensors.torch import load_file, save_file
folder, auto = sys.argv[1:3]
model = getattr(transformers, auto).from_pretrained(folder{trust}).eval()
with torch.inference_mode():
    save_file({{"logits": model(**load_file(folder + "/in.safetensors")).logits}}, folder + "/out.safetensors")
model.save_pretrained(folder + "/again")
print(type(model).__module__)
"""


def write(family: str, subnet: SubnetConfig, folder: Path) -> torch.Tensor:
    """Exports a subnetwork of a random model with inputs beside it; returns the active supernet's outputs."""
    supernet, batch = Supernet(TOYS[family].model()), TOYS[family].inputs()
    model = supernet.extract(subnet)
    if model.config.model_type.startswith("nas_"):
        describe_remote_code(model, AUTO[family])
    model.save_pretrained(folder)
    save_file(batch, folder / "in.safetensors")
    supernet.activate(subnet)
    with torch.inference_mode():
        return supernet.model(**batch).logits


def reload(family: str, folder: Path, *, trust: bool, imports: str = "") -> tuple[torch.Tensor, str]:
    """Outputs and module of the class, from a fresh process outside the repository."""
    code = LOAD.format(imports=imports, trust=", trust_remote_code=True" if trust else "")
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), AUTO[family]],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_HOME": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out.safetensors")["logits"], done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("family", TOYS)
def test_an_uneven_subnetwork_reloads_with_its_one_file(family: str, tmp_path: Path) -> None:
    expected = write(family, UNEVEN, tmp_path)
    found, module = reload(family, tmp_path, trust=True)
    assert torch.allclose(found, expected, atol=1e-6)
    assert module.startswith("transformers_modules")
    assert (tmp_path / "again" / "modeling_nas.py").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", TOYS)
def test_it_reloads_without_the_flag_once_nas_is_imported(family: str, tmp_path: Path) -> None:
    expected = write(family, UNEVEN, tmp_path)
    found, module = reload(family, tmp_path, trust=False, imports="import nas")
    assert torch.allclose(found, expected, atol=1e-6)
    assert module == "nas.modeling_nas"
    assert (tmp_path / "again" / "modeling_nas.py").exists()


@pytest.mark.slow
@pytest.mark.parametrize("family", TOYS)
def test_a_uniform_subnetwork_is_a_plain_stock_model(family: str, tmp_path: Path) -> None:
    expected = write(family, UNIFORM, tmp_path)
    found, module = reload(family, tmp_path, trust=False)
    assert torch.allclose(found, expected, atol=1e-6)
    assert module.startswith("transformers.models")
    assert not list(tmp_path.glob("*.py"))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == family


@pytest.mark.slow
def test_fewer_heads_are_stock_only_where_the_config_can_say_so(tmp_path: Path) -> None:
    expected = write("vit", FEWER_HEADS, tmp_path / "vit")
    found, module = reload("vit", tmp_path / "vit", trust=False)
    assert torch.allclose(found, expected, atol=1e-6) and module.startswith("transformers.models")
    write("bert", FEWER_HEADS, tmp_path / "bert")
    assert (tmp_path / "bert" / "modeling_nas.py").exists()


def test_an_export_trains_and_reloads_as_any_model(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    write("bert", UNEVEN, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    batch = {**load_file(tmp_path / "in.safetensors"), "labels": torch.tensor([0, 1, 1])}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path / "trained")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "trained", trust_remote_code=True)
    with torch.inference_mode():
        assert torch.equal(model.eval()(**batch).logits, again.eval()(**batch).logits)


@pytest.mark.slow
def test_an_export_that_differs_is_refused(text_recipe: Path, tmp_path: Path) -> None:
    """A modelling file that computes something else must not get out."""
    from nas import export, modeling_nas
    from nas.config import Recipe
    from nas.tasks import Workbench
    from search_spaces import InputError

    bench = Workbench(Recipe.load(text_recipe))
    supernet = Supernet(bench.load_model())
    export.save_subnet(supernet, UNEVEN, bench, tmp_path / "good")
    export.check_reload(tmp_path / "good", supernet, UNEVEN, bench)
    with torch.no_grad():
        supernet.model.classifier.bias.add_(0.01)
    with pytest.raises(InputError, match=r"differ by 0\.01"):
        export.check_reload(tmp_path / "good", supernet, UNEVEN, bench)
    (tmp_path / "good" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="does not reload"):
        export.check_reload(tmp_path / "good", supernet, UNEVEN, bench)
    assert modeling_nas.PREFIX == "Nas"
