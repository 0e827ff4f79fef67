"""Exports in the backends of sentence-transformers: its class in a clean process loads our ONNX and OpenVINO files.

The backends need optimum, which asks for older releases of transformers than ours. So they run in interpreters of
their own: PARETOFORMER_ONNX_PYTHON is one with sentence-transformers[onnx], PARETOFORMER_OPENVINO_PYTHON one with
sentence-transformers[openvino].
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_text_ranking import cross_encoder
from toy_tasks import SENTENCES, csv, encoder

from nas.exports.card import write_card
from nas.exports.export import save_subnet
from nas.exports.formats import forward_arguments
from nas.recipe.schema import Recipe
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.sentence_modules import SentenceModules
from predictors import Workload
from predictors.measurement.runtimes import FORMATS
from search_spaces import SubnetConfig

PYTHON = {name: os.environ.get(f"PARETOFORMER_{name.upper()}_PYTHON") for name in ("onnx", "openvino")}
OPTIONS: dict[str, Any] = {"onnx": {}, "openvino": {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}}
SMALL = {"layers": (1, 3), "num_attention_heads": 2, "intermediate_size": 24, "hidden_size": 48}
LOAD = """
import json, sys
import numpy as np
import sentence_transformers

kind, folder, backend, options, texts, out = sys.argv[1:]
model = getattr(sentence_transformers, kind)(
    folder, backend=backend, device="cpu", trust_remote_code=True, model_kwargs=json.loads(options)
)
run = model.encode if kind == "SentenceTransformer" else model.predict
np.save(out, run(json.loads(texts)))
"""


def export(task: str, folder: Path, out: Path) -> TaskContext:
    """A subnetwork whose int8 layer and skipped layers no stock config describes."""
    train = csv(folder / "train", [{"query": s, "passage": s, "label": 1.0} for s in SENTENCES])
    (encoder if task == "sentence-similarity" else cross_encoder)(folder / "model")
    if task == "sentence-similarity":
        SentenceModules().write(folder / "model", 48, 64)
    settings = {"type": task, "train": train, "test": train, "search_examples": 6, "max_length": 16}
    settings |= {"text": "query"} if task == "sentence-similarity" else {}
    context = TaskContext(Recipe.parse({"model": str(folder / "model"), "task": settings}))
    subnet = SubnetConfig.uniform(bits="int8", **SMALL)  # type: ignore[arg-type]
    save_subnet(Supernet(context.load_model().eval()), subnet, context, out)
    return context


def write_format(name: str, context: TaskContext, out: Path) -> None:
    model = context.load_model(out).eval()
    file = out / FORMATS[name].file
    file.parent.mkdir()
    inputs = context.dummy_inputs(Workload(batch_size=2, sequence_length=8))
    FORMATS[name].write(model, forward_arguments(model, inputs), file)


def name_tokenizer(folder: Path) -> None:
    """Says of the toy's tokenizer what real ones say, because older versions of transformers have other defaults."""
    file = folder / "tokenizer_config.json"
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))


def outputs(python: str, kind: str, folder: Path, backend: str, texts: list[Any]) -> np.ndarray:
    out = folder.parent / f"{backend}.npy"
    options = OPTIONS.get(backend, {})
    words = [kind, str(folder), backend, json.dumps(options), json.dumps(texts), str(out)]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "-c", LOAD, *words], capture_output=True, text=True, env=clean)
    assert done.returncode == 0, done.stderr[-2000:]
    return np.asarray(np.load(out))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("backend", PYTHON)
@pytest.mark.parametrize("task", ["sentence-similarity", "text-ranking"])
def test_the_files_give_the_vectors_of_the_export(task: str, backend: str, tmp_path: Path) -> None:
    python = PYTHON[backend]
    if python is None:
        pytest.skip(f"PARETOFORMER_{backend.upper()}_PYTHON is not set")
    pytest.importorskip({"onnx": "onnxscript", "openvino": "openvino"}[backend])
    out = tmp_path / "small"
    context = export(task, tmp_path, out)
    write_format(backend, context, out)
    name_tokenizer(out)
    is_pairs = task == "text-ranking"
    texts = list(zip(SENTENCES[:5], SENTENCES[9:14], strict=True)) if is_pairs else SENTENCES[:5]
    kind = "CrossEncoder" if is_pairs else "SentenceTransformer"
    expected = outputs(sys.executable, kind, out, "torch", texts)
    assert np.ptp(expected) > 1e-3
    differences = np.abs(outputs(python, kind, out, backend, texts) - expected)
    assert np.median(differences) < 1e-5 and differences.max() < 5e-3, "an input between two steps rounds either way"


def test_an_onnx_file_needs_only_the_config_of_our_code(tmp_path: Path) -> None:
    """ONNX's optimum has an older transformers, without the module that renames weights."""
    out = tmp_path / "small"
    export("sentence-similarity", tmp_path, out)
    code = (
        "import sys\n"
        "from transformers import AttentionInterface, AutoConfig, BertModel\n"
        "sys.modules['transformers.conversion_mapping'] = None\n"
        f"print(AutoConfig.from_pretrained({str(out)!r}, trust_remote_code=True).model_type)"
    )
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean)
    assert done.stdout.strip() == "nas_bert", done.stderr[-2000:]


def test_the_card_says_how_its_files_are_loaded(tmp_path: Path) -> None:
    for name in ("onnx", "int8", "openvino"):
        file = tmp_path / FORMATS[name].file
        file.parent.mkdir(exist_ok=True)
        file.touch()
    info = {
        "name": "toy", "license": None, "base_model": None, "task": "text-ranking", "key": "k",
        "subnet": SubnetConfig.uniform(**SMALL).to_dict(), "values": {"ndcg10": 0.8}, "errors": {}, "measured": True,
        "split": "test", "workload": {"sequence_length": 16}, "device": "cpu",
    }  # fmt: skip
    write_card(tmp_path, info)
    card = (tmp_path / "README.md").read_text()
    assert 'CrossEncoder("this-folder")' in card and "library_name: sentence-transformers" in card
    assert '- `onnx/model.onnx`: onnx, with `backend="onnx"`\n' in card
    assert 'with `backend="onnx", model_kwargs={"file_name": "onnx/model_int8.onnx"}`' in card
    assert '- `openvino/openvino_model.xml`: openvino, with `backend="openvino"`' in card
