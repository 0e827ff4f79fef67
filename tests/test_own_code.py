"""Models with code of their own: it runs where it is trusted, is proved like any layout, and exports carry it."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
import transformers
import yaml
from toys import SIZES, TEXT, logits, text_inputs
from transformers.models.bert import configuration_bert, modeling_bert
from typer.testing import CliRunner

from nas.cli import app
from nas.exports.check import check_folder
from nas.exports.export import enable_remote_code, export_subnet
from nas.modeling.modeling_nas import PREFIX
from nas.modeling.own_code import MODELING_FILES
from nas.pipeline import search
from nas.ray.search_worker import WorkerPayload
from nas.recipe.schema import Recipe
from nas.supernets.supernet import Supernet
from nas.tasks.loading import load_config
from search_spaces import InputError

AUTO_MAP = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
    "AutoModelForMaskedLM": "modeling_own.OwnForMaskedLM",
}
LOAD = """
import sys, torch, transformers
inputs, outputs, *folders = sys.argv[1:]
found = []
for first, again in zip(folders[::2], folders[1::2]):
    for folder in (first, again):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
        with torch.inference_mode():
            found.append(model(**torch.load(inputs)).logits.flatten())
        model.save_pretrained(again)
torch.save(found, outputs)
assert "nas" not in sys.modules
"""


def code_of(module: Any, model_type: str) -> str:
    """The code of BERT as that of a type of its own, which lies beside the weights."""
    text = re.sub(r"from \.\.\.(\w)", r"from transformers.\1", inspect.getsource(module))
    text = text.replace("from ... import", "from transformers import").replace("tion_bert", "tion_own")
    return text.replace('model_type = "bert"', f'model_type = "{model_type}"').replace("Bert", "Own")


def write_own_model(folder: Path, model_type: str = "own", **config: Any) -> Path:
    """A tiny model without weights, with code of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "configuration_own.py").write_text(code_of(configuration_bert, model_type))
    (folder / "modeling_own.py").write_text(code_of(modeling_bert, model_type))
    config = {**SIZES, **TEXT, "model_type": model_type, "auto_map": AUTO_MAP, **config}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def own_recipe(text_recipe: Path) -> Path:
    """The recipe of the toy texts with a model that has code of its own."""
    folder = write_own_model(text_recipe.parent / "own")
    transformers.AutoTokenizer.from_pretrained(text_recipe.parent / "model").save_pretrained(folder)
    recipe = yaml.safe_load(text_recipe.read_text())
    text_recipe.write_text(yaml.safe_dump({**recipe, "model": "own", "trust_remote_code": True}))
    return text_recipe


def test_code_does_not_run_without_a_word_and_the_line_says_which_and_the_way_out(tmp_path: Path) -> None:
    folder = write_own_model(tmp_path / "stranger", "stranger")
    (folder / "configuration_own.py").write_text("raise SystemError('it ran')")
    with pytest.raises(
        InputError, match=r"`stranger`, whose code would run \(configuration_own.py\).*--trust-remote-c"
    ):
        load_config(str(folder))
    with pytest.raises(InputError, match=r"the code of `.*stranger` cannot be used: .*it ran"):
        load_config(str(folder), trust=True)


def test_a_type_that_transformers_has_needs_no_code(tmp_path: Path) -> None:
    folder = str(write_own_model(tmp_path / "rival", "bert"))
    assert load_config(folder).__module__.startswith("transformers.")
    with pytest.raises(InputError, match=r"`trust_remote_code` is for types that transformers lacks.* is a `bert`"):
        load_config(folder, trust=True)


def test_two_models_of_one_type_have_the_same_code(tmp_path: Path) -> None:
    load_config(str(write_own_model(tmp_path / "own")), trust=True)
    other = write_own_model(tmp_path / "other")
    load_config(str(other), trust=True)
    (other / "modeling_own.py").write_text(code_of(modeling_bert, "own") + "# changed")
    with pytest.raises(InputError, match=r"of the type `own`.*`modeling_own.py` of `.*other` differs"):
        load_config(str(other), trust=True)


def on_the_hub(cache: Path, name: str) -> Path:
    """Folder of a model in the hub's cache, as a download leaves it."""
    repository, revision = cache / f"models--{name.replace('/', '--')}", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots" / revision).mkdir(parents=True)
    return write_own_model(repository / "snapshots" / revision, "hubbed")


def test_code_from_the_hub_is_asked_for_compared_and_run_as_that_of_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    on_the_hub(tmp_path, "someone/one")
    with pytest.raises(InputError, match=r"`hubbed`, whose code would run \(configuration_own.py\)"):
        load_config("someone/one")
    config = load_config("someone/one", trust=True)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert Supernet(model).family.alike == "bert" and "someone" in type(model).__module__
    (on_the_hub(tmp_path, "someone/two") / "modeling_own.py").write_text("# changed")
    with pytest.raises(InputError, match=r"of the type `hubbed`.*`modeling_own.py` of `someone/two` differs"):
        load_config("someone/two", trust=True)


def test_families_proves_the_layout_of_its_code(tmp_path: Path) -> None:
    folder = write_own_model(tmp_path / "own")
    output = CliRunner().invoke(app, ["families", str(folder), "--trust-remote-code"]).output
    assert "no table for `own`; its modules are laid out as those of `" in output
    assert "num_hidden_layers, num_attention_heads, intermediate_size, hidden_size compute what they should" in output


def small_one(folder: Path, inputs: dict[str, torch.Tensor], **choices: Any) -> tuple[Any, torch.Tensor]:
    """A subnetwork of a model with code of its own, ready to be saved, and its logits."""
    config = load_config(str(write_own_model(folder)), trust=True)
    supernet = Supernet(transformers.AutoModelForSequenceClassification.from_config(config).eval())
    subnet = supernet.layout.search_space(choices).sample(Random(1))
    supernet.activate(subnet)
    small = supernet.extract(subnet)
    if type(small).__name__.startswith(PREFIX):
        enable_remote_code(small, "AutoModelForSequenceClassification")
    return small, logits(supernet.model, inputs)


UNIFORM = {"num_hidden_layers": [2], "intermediate_size": [40], "scope": "uniform"}
PER_LAYER = {"num_attention_heads": [1, 2, 3], "scope": "per-layer"}


def test_exports_have_the_code_and_its_classes(tmp_path: Path) -> None:
    """Where layers differ, those of `nas_own`, which imports both the code and our edits."""
    for name, choices in (("stock", UNIFORM), ("mixed", PER_LAYER)):
        small_one(tmp_path / "own", text_inputs(), **choices)[0].save_pretrained(tmp_path / name)
    maps = [json.loads((tmp_path / name / "config.json").read_text())["auto_map"] for name in ("stock", "mixed")]
    assert maps[0]["AutoModelForSequenceClassification"] == "modeling_own.OwnForSequenceClassification"
    assert {reference.partition(".")[0] for reference in maps[1].values()} == {"nas_own"}
    assert maps[1]["AutoModel"] == "nas_own.NasOwnModel"
    files = {file.name for file in (tmp_path / "mixed").glob("*.py")}
    assert files == {"configuration_own.py", "modeling_own.py", "nas_own.py", *MODELING_FILES}
    assert {file.name for file in (tmp_path / "stock").glob("*.py")} == files - {"nas_own.py", *MODELING_FILES}


@pytest.mark.slow
def test_exports_reload_in_a_process_that_knows_transformers_only(tmp_path: Path) -> None:
    """Also after a user has saved them again."""
    inputs, expected, folders = text_inputs(), list[torch.Tensor](), list[str]()
    for name, choices in (("stock", UNIFORM), ("mixed", PER_LAYER)):
        small, outputs = small_one(tmp_path / "own", inputs, **choices)
        small.save_pretrained(tmp_path / name)
        expected += [outputs, outputs]
        folders += [str(tmp_path / name), str(tmp_path / f"{name}-again")]
    torch.save(inputs, tmp_path / "inputs")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "inputs"), str(tmp_path / "outputs"), *folders]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    torch.testing.assert_close(torch.load(tmp_path / "outputs"), expected, atol=1e-5, rtol=0)


WORKER = """
import pickle, sys
from pathlib import Path
scorer = pickle.loads(Path(sys.argv[1]).read_bytes())(Path(sys.argv[2]))
print(type(scorer.supernet.model).__name__, scorer.supernet.family.alike, scorer.examples.hidden_size)
"""


@pytest.mark.full
def test_a_worker_on_another_machine_gets_the_code_with_the_weights(tmp_path: Path) -> None:
    """It unpickles configs, and then finds the classes of the model in the folder."""
    config = load_config(str(write_own_model(tmp_path / "own")), trust=True)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path / "weights")
    scorer: Any = SimpleNamespace(supernet=SimpleNamespace(model=model), names=[], examples=config, in_other_sizes={})
    payload = WorkerPayload.from_folder(tmp_path / "weights", scorer)
    assert {"modeling_own.py", "configuration_own.py"} < {*payload.digests}
    (tmp_path / "payload").write_bytes(ray.cloudpickle.dumps(payload.load))
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", WORKER, str(tmp_path / "payload"), str(tmp_path / "weights")]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.stdout.split() == ["OwnForSequenceClassification", "bert", "48"], process.stderr


@pytest.mark.slow
def test_a_search_goes_the_whole_road_and_nothing_of_the_run_gives_its_word(own_recipe: Path, tmp_path: Path) -> None:
    run = search(Recipe.load(own_recipe, ["search.evaluations=6", "finish.models=0"]), tmp_path / "run")
    (folder,) = run.exports.iterdir()
    assert (folder / "modeling_own.py").read_text() == code_of(modeling_bert, "own")
    with pytest.raises(InputError, match=r"names code that would run \(`trust_remote_code`\)"):
        export_subnet(run, run.front().knee(), tmp_path / "small")
    best = max(run.verified_points(), key=lambda point: point.values["accuracy"])
    small = export_subnet(run, best, tmp_path / "small", trust=True)
    with pytest.raises(InputError, match=r"holds code that would run \(configuration_own.py"):
        check_folder(small, run)
    classify: Any = transformers.pipeline("text-classification", str(small), trust_remote_code=True)
    assert classify("the film is very good")[0]["label"] == "1"
