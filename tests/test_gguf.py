"""GGUF files hold what the model computes, and llama.cpp computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers_of_every_kind import byte_bpe, word_piece

from nas.exports.export import enable_remote_code
from nas.exports.formats import load_export
from nas.supernets.calibration import calibrate
from nas.supernets.supernet import Supernet
from predictors.measurement.runtimes import FORMATS
from search_spaces import InputError

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"head_dim": 16, "intermediate_size": 96, "initializer_range": 0.2, "tie_word_embeddings": True}
PER_LAYER = {"num_attention_heads": (0, 4, 2), "num_key_value_heads": (0, 2, 1), "intermediate_size": (96, 0, 64)}
"""A layer without attention, one without a feed-forward block, and a narrow one."""


def folder_of(folder: Path, model_type: str, tokenizer: Any = None, layers: Any = None, **config: Any) -> Path:
    """An export of a toy with a tokenizer; with sizes of layers, of that subnetwork."""
    tokenizer = tokenizer or byte_bpe()
    values = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 64, **config}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(model_type, **values))
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    if layers:
        supernet = Supernet(model.eval())
        supernet.calibration = calibrate(supernet, [{"input_ids": torch.randint(5, 400, (2, 12))}])
        model = supernet.extract(supernet.parent.with_values(**layers))
        enable_remote_code(model, "AutoModelForCausalLM")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def written(folder: Path, form: str = "gguf") -> tuple[Any, Path]:
    """The model of a folder, and its file."""
    model, file = load_export(folder, "text-generation"), folder / FORMATS[form].file
    file.parent.mkdir(exist_ok=True)
    FORMATS[form].write(model, {"input_ids": torch.randint(5, 400, (2, 12))}, file)
    return model, file


@pytest.mark.parametrize("form", ["gguf", "gguf-q8_0"])
def test_a_file_holds_the_weights_and_the_sizes_of_each_layer(tmp_path: Path, form: str) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra `gguf`)")
    model, file = written(folder_of(tmp_path, "llama", layers=PER_LAYER), form)
    reader = gguf.GGUFReader(file)
    tensors = {each.name: gguf.quants.dequantize(each.data, each.tensor_type) for each in reader.tensors}
    assert reader.get_field("general.architecture").contents() == "deci"
    assert reader.get_field("deci.attention.head_count").contents() == [1, 4, 2]
    assert reader.get_field("deci.attention.head_count_kv").contents() == [1, 2, 1]
    assert reader.get_field("deci.feed_forward_length").contents() == [96, 32, 64]
    assert reader.get_field("tokenizer.ggml.pre").contents() == "gpt-2"
    assert not tensors["blk.1.ffn_down.weight"].any() and not tensors["blk.0.attn_output.weight"].any()
    values = model.model.layers[2].self_attn.v_proj.weight.detach()
    step = 0.001 if form == "gguf" else float(values.abs().max()) / 127
    assert (torch.tensor(tensors["blk.2.attn_v.weight"]) - values).abs().max() <= step


@pytest.mark.parametrize(
    ("model_type", "changes", "message"),
    [
        ("gpt2", {}, "GGUF is written for text generation with llama"),
        ("mistral", {"sliding_window": 5}, "some layers have a window"),
        ("qwen3", {"layers": PER_LAYER}, "of different sizes for llama, qwen2 only"),
        ("llama", {"tokenizer": word_piece}, "byte-level BPE tokenizers such as"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "do not scale"),
    ],
)
def test_what_llama_cpp_does_not_have_is_refused(
    tmp_path: Path, model_type: str, changes: dict[str, Any], message: str
) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed (extra `gguf`)")
    made = {**changes, "tokenizer": changes["tokenizer"]()} if "tokenizer" in changes else changes
    with pytest.raises(InputError, match=message):
        written(folder_of(tmp_path, model_type, **made))


CASES = {
    "llama": ("llama", {}),
    "llama-frequencies": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
    "llama-per-layer": ("llama", {"layers": PER_LAYER}),
    "llama-low-rank": ("llama", {"layers": {"mlp_rank": (50,) * 3, "bits": ("int4-weight",) * 3}}),
    "qwen2": ("qwen2", {}),
    "qwen2-per-layer": ("qwen2", {"layers": PER_LAYER}),
    "qwen3": ("qwen3", {"tie_word_embeddings": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_gives_the_logits_of_the_model(tmp_path: Path, case: str) -> None:
    for package, extra in (("gguf", "gguf"), ("llama_cpp", "llama-cpp")):
        pytest.importorskip(package, reason=f"{package} is not installed (extra `{extra}`)")
    model_type, changes = CASES[case]
    for form in ("gguf", "gguf-q8_0", "gguf-q4_k_m"):
        model, file = written(folder_of(tmp_path, model_type, **changes), form)
        ids = torch.randint(5, 400, (2, 9))
        mask = torch.ones_like(ids)
        mask[1, 6:] = 0
        logits = FORMATS[form].load(file)({"input_ids": ids, "attention_mask": mask})["logits"]
        expected = model(input_ids=ids).logits.detach()
        assert not logits[1, 6:].any()
        difference = (logits - expected)[mask.bool()].abs().max() / expected.std()
        assert difference <= FORMATS[form].spread, (form, difference)
