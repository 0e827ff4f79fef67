"""GGUF: the file that llama.cpp loads. It is no workload; latency is measured in exports only.

Decoders of Llama's kind whose layers are alike are written as what they are. Others are written as `deci`, the
architecture with numbers of heads and neurons for each layer that llama.cpp has for Nemotron. Files are written by the
package `gguf`; llama.cpp's own quantizer makes the smaller types. Where `llama-cpp-python` is installed, llama.cpp is
asked for the logits of each new file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from predictors.measurement.file_errors import file_errors_as_input_errors
from predictors.measurement.halves import in_float32
from predictors.measurement.onnx_export import require
from predictors.measurement.rounding import largest_difference
from predictors.measurement.runtime import Format, ForwardFunction, Inputs
from search_spaces.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model type -> llama.cpp's architecture of alike layers."""
PER_LAYER = {"llama": "deci", "qwen2": "deci"}
"""Architecture of alike layers -> that of layers which differ."""
INTERLEAVED = ("llama", "deci")
"""Architectures whose rotary positions turn neighbouring channels, not those half a head apart."""
NO_NEURONS = 32
"""Neurons of zeros in place of a feed-forward block that is skipped: llama.cpp would skip the attention with it. In
place of a skipped attention, the first layer has one head of zeros."""
FILE_TYPES = {"F16": 1, "Q8_0": 7, "Q4_K_M": 15}
"""Type of most weights -> its number in llama.cpp (`llama_ftype`)."""
SPREADS = {"F16": 0.1, "Q8_0": 2.0, "Q4_K_M": 5.0}
"""Type -> largest difference that it may make to a logit, in standard deviations of the logits."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of pieces of a tokenizer."""
TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "unk_token_id": "unk", "pad_token_id": "pad"}


@dataclass(frozen=True)
class _Layer:
    """Sizes of a layer.

    Attributes:
        heads: Attention heads; 0 where attention is skipped.
        kv_heads: Key and value heads.
        neurons: Feed-forward neurons; 0 where the block is skipped.
    """

    heads: int
    kv_heads: int
    neurons: int


def _layers(model: PreTrainedModel) -> list[_Layer]:
    """Sizes of all layers, read off their projections."""
    found, head_dim = [], _head_dim(model)
    for layer in model.base_model.layers:
        sizes = [
            _matrix(getattr(module, name)).shape[0] if hasattr(module, name) else 0
            for module, name in ((layer.self_attn, "q_proj"), (layer.self_attn, "k_proj"), (layer.mlp, "gate_proj"))
        ]
        found.append(_Layer(sizes[0] // head_dim, sizes[1] // head_dim, sizes[2]))
    return found


def _head_dim(model: PreTrainedModel) -> int:
    config: Any = model.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _of_alike_layers(model: PreTrainedModel) -> str:
    """llama.cpp's architecture of a model's type.

    Raises:
        InputError: If it has none, or the model has a head or attention that it does not have.
    """
    config: Any = model.config
    model_type = str(config.model_type).removeprefix("nas_")
    alike = ARCHITECTURES.get(model_type)
    if alike is None or not hasattr(model, "lm_head"):
        raise InputError(
            f"GGUF is written for text generation with {', '.join(ARCHITECTURES)}, but got "
            f"`{type(model).__name__}`; choose another format."
        )
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or [])
    slides = slides or (model_type == "mistral" and config.sliding_window is not None)
    if slides or getattr(config, "nas_arch", {}).get("attention"):
        raise InputError("GGUF is written with full attention in every layer, but some layers have a window.")
    return alike


def _architecture(alike: str, layers: list[_Layer]) -> str:
    """llama.cpp's architecture of these layers.

    Raises:
        InputError: If it has none.
    """
    if len({*layers}) == 1 and layers[0].heads and layers[0].neurons:
        return alike
    if alike not in PER_LAYER:
        raise InputError(
            f"llama.cpp has layers of different sizes for {', '.join(PER_LAYER)} only, but got `{alike}`; export a "
            "subnetwork of scope `uniform`."
        )
    return PER_LAYER[alike]


def _matrix(module: Any) -> torch.Tensor:
    """The weight (outputs, inputs) of a linear layer, of two factors in its place, or of a layer in fewer bits."""
    import torch
    from torch import nn

    if isinstance(module, nn.Linear):
        return module.weight.detach()
    if getattr(module, "bits", "") == "int8":
        raise InputError("GGUF has no layers that round their inputs, but some are `int8`; export `int8-weight` ones.")
    factors = module.down if hasattr(module, "down") else module
    inputs = factors.in_features
    with torch.inference_mode():
        outputs = module(torch.eye(inputs)) - module(torch.zeros(1, inputs))
    return outputs.T.contiguous()


def _bias(module: Any) -> torch.Tensor | None:
    bias = getattr(module.up if hasattr(module, "up") else module, "bias", None)
    return None if bias is None else bias.detach()


def _turned(tensor: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of queries or keys in the order of llama.cpp: the two halves of a head alternate."""
    halves = tensor.reshape(-1, 2, head_dim // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def _tensors(model: PreTrainedModel, architecture: str, layers: list[_Layer]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values of all tensors of a file."""
    import torch

    with torch.inference_mode():
        table = model.get_input_embeddings()(torch.arange(model.config.vocab_size))
    yield "token_embd.weight", table
    base: Any = model.base_model
    yield "output_norm.weight", base.norm.weight.detach()
    if not model.config.tie_word_embeddings:
        yield "output.weight", _matrix(model.lm_head)
    factors = _rope_factors(model)
    if factors is not None:
        yield "rope_freqs.weight", factors
    for number, (layer, sizes) in enumerate(zip(base.layers, layers, strict=True)):
        if sizes.heads or not number:
            for name, tensor in _of_attention(layer, architecture, _head_dim(model), len(base.norm.weight)):
                yield f"blk.{number}.{name}", tensor
        for name, tensor in _of_mlp(layer, sizes.neurons, len(base.norm.weight)):
            yield f"blk.{number}.{name}", tensor


def _of_attention(layer: Any, architecture: str, head_dim: int, hidden: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of attention; one head of zeros where it is skipped."""
    import torch

    attention = layer.self_attn
    if not hasattr(attention, "q_proj"):
        yield "attn_norm.weight", torch.ones(hidden)
        for end in ("q", "k", "v", "output"):
            yield f"attn_{end}.weight", torch.zeros((hidden, head_dim) if end == "output" else (head_dim, hidden))
        return
    yield "attn_norm.weight", layer.input_layernorm.weight.detach()
    for name, end in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output")):
        module, turns = getattr(attention, f"{name}_proj"), name in ("q", "k") and architecture in INTERLEAVED
        for kind, tensor in (("weight", _matrix(module)), ("bias", _bias(module))):
            if tensor is not None:
                yield f"attn_{end}.{kind}", _turned(tensor, head_dim) if turns else tensor
    for name in ("q_norm", "k_norm"):
        if hasattr(attention, name):
            yield f"attn_{name}.weight", getattr(attention, name).weight.detach()


def _of_mlp(layer: Any, neurons: int, hidden: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of a feed-forward block; of zeros where it is skipped."""
    import torch

    yield "ffn_norm.weight", layer.post_attention_layernorm.weight.detach() if neurons else torch.ones(hidden)
    for name in ("gate", "up", "down"):
        if not neurons:
            shape = (hidden, NO_NEURONS) if name == "down" else (NO_NEURONS, hidden)
            yield f"ffn_{name}.weight", torch.zeros(shape)
            continue
        module = getattr(layer.mlp, f"{name}_proj")
        yield f"ffn_{name}.weight", _matrix(module)
        if (bias := _bias(module)) is not None:
            yield f"ffn_{name}.bias", bias


def _rope_factors(model: PreTrainedModel) -> torch.Tensor | None:
    """By what the frequencies of rotary positions are divided, None where they are those of their base.

    Raises:
        InputError: If attention is scaled with them.
    """
    import torch

    rotary: Any = model.base_model.rotary_emb
    theta, pairs = model.config.rope_parameters["rope_theta"], len(rotary.inv_freq)
    plain = theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    factors = (plain / rotary.inv_freq.double()).float()
    if rotary.attention_scaling != 1:
        raise InputError("GGUF is written with rotary positions that do not scale attention; choose another format.")
    return None if torch.allclose(factors, torch.ones(pairs), atol=1e-4) else factors


def _write(type_name: str, model: PreTrainedModel, inputs: Inputs, file: Path) -> None:
    """Writes a file, and compares its logits with those of the model where llama.cpp is installed."""
    require("gguf", extra="gguf", what="a GGUF file")
    if type_name not in ("F16", "Q8_0"):
        require("llama_cpp", extra="llama-cpp", what=f"a GGUF file in {type_name}")
    model = in_float32(model)
    alike, layers = _of_alike_layers(model), _layers(model)
    architecture = _architecture(alike, layers)
    first = file if type_name in ("F16", "Q8_0") else file.with_suffix(".f16")
    _write_file(model, architecture, layers, "Q8_0" if type_name == "Q8_0" else "F16", first)
    if first != file:
        _compare("F16", model, inputs["input_ids"], first)
        _quantize(first, file, FILE_TYPES[type_name])
        first.unlink()
    _compare(type_name, model, inputs["input_ids"], file)


def _write_file(model: PreTrainedModel, architecture: str, layers: list[_Layer], type_name: str, file: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(file, architecture)
    _add_sizes(writer, model, layers, uniform=architecture != "deci")
    writer.add_file_type(FILE_TYPES[type_name])
    _add_tokenizer(writer, Path(model.name_or_path), model.config.vocab_size)
    for name, tensor in _tensors(model, architecture, layers):
        array, kind = _stored(tensor.float().numpy(), type_name)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: Any, model: PreTrainedModel, layers: list[_Layer], *, uniform: bool) -> None:
    config, head_dim = model.config, _head_dim(model)
    writer.add_name(Path(model.name_or_path).name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(len(model.base_model.norm.weight))
    writer.add_block_count(len(layers))
    heads, kv_heads = [each.heads for each in layers], [each.kv_heads for each in layers]
    heads[0], kv_heads[0] = heads[0] or 1, kv_heads[0] or 1  # llama.cpp reads the channels of a head only with heads
    neurons = [each.neurons or NO_NEURONS for each in layers]
    writer.add_head_count(heads[0] if uniform else heads)
    writer.add_head_count_kv(kv_heads[0] if uniform else kv_heads)
    writer.add_feed_forward_length(neurons[0] if uniform else neurons)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _stored(array: np.ndarray, type_name: str) -> tuple[np.ndarray, Any]:
    """A tensor as a file has it: vectors in float32; matrices in the type, in float16 where rows do not fit it."""
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType
    if array.ndim == 1:
        return array.astype(np.float32), kind.F32
    if type_name == "Q8_0" and array.shape[-1] % 32 == 0:
        return gguf.quants.quantize(array, kind.Q8_0), kind.Q8_0
    return array.astype(np.float16), kind.F16


def _add_tokenizer(writer: Any, folder: Path, vocab_size: int) -> None:
    """Writes the tokenizer of a folder.

    Raises:
        InputError: If it is not one of bytes and merges (BPE) whose rules llama.cpp has a name for.
    """
    from transformers import AutoTokenizer

    with file_errors_as_input_errors(folder):
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = described["model"].get("merges", [])
    added = {token["id"]: token for token in described["added_tokens"]}
    pieces = {number: piece for piece, number in described["model"]["vocab"].items()}
    pieces |= {number: token["content"] for number, token in added.items()}
    kinds = {number: CONTROL if token["special"] else USER_DEFINED for number, token in added.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_pre_name(described))
    writer.add_token_list([pieces.get(number, f"[unused {number}]") for number in range(vocab_size)])
    writer.add_token_types([kinds.get(n, NORMAL if n in pieces else UNUSED) for n in range(vocab_size)])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    for name, short in TOKENS.items():
        if getattr(tokenizer, name, None) is not None:
            getattr(writer, f"add_{short}_token_id")(getattr(tokenizer, name))
    writer.add_add_bos_token(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _pre_name(described: Mapping[str, Any]) -> str:
    """llama.cpp's name of the rules by which a tokenizer splits a text before it merges bytes.

    Raises:
        InputError: If it has none.
    """
    steps = described.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    pattern = next((str(step["pattern"].get("Regex")) for step in steps if step.get("type") == "Split"), "")
    names = {
        ("ByteLevel",): "gpt-2",
        ("Digits", "ByteLevel"): "smollm",
        ("Split", "ByteLevel"): "llama-bpe" if r"\p{N}{1,3}" in pattern else "qwen2" if r"\p{N}|" in pattern else "",
    }
    name = names.get(tuple(kinds), "") if described["model"]["type"] == "BPE" else ""
    if not name:
        raise InputError(
            "GGUF is written with byte-level BPE tokenizers such as those of Llama 3, Qwen and SmolLM, but got "
            f"{described['model']['type']} after {', '.join(map(str, kinds))}; choose another format."
        )
    return name


def _quantize(source: Path, file: Path, file_type: int) -> None:
    """Writes a file of a smaller type by llama.cpp's own quantizer."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    if llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), params):
        raise InputError(f"llama.cpp could not quantize `{source}`; choose another format.")


def _compare(type_name: str, model: PreTrainedModel, ids: torch.Tensor, file: Path) -> None:
    """Raises InputError unless llama.cpp gives the logits of the model, as far as the type lets it."""
    import torch

    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        logging.getLogger(__name__).warning(
            "`%s` was not compared with the model: llama-cpp-python is not installed (extra `llama-cpp`).", file.name
        )
        return
    with torch.inference_mode():
        expected = model(input_ids=ids).logits
    found = _load(file)({"input_ids": ids})["logits"]
    difference = largest_difference({"logits": found}, {"logits": expected}) / float(expected.std())
    if not difference <= SPREADS[type_name]:
        raise InputError(
            f"llama.cpp must give the logits of the model within {SPREADS[type_name]:g} standard deviations, but one "
            f"differs by {difference:.3g}; choose another format."
        )


def _load(file: Path) -> ForwardFunction:
    require("llama_cpp", extra="llama-cpp", what="running a GGUF file")
    import llama_cpp
    import numpy as np
    import torch

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Logits (samples, tokens, pieces); zeros at padding."""
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        tokens, threads = ids.shape[1] + 1, torch.get_num_threads()
        options = {"n_ctx": tokens, "n_batch": tokens, "n_threads": threads, "n_threads_batch": threads}
        with file_errors_as_input_errors(file):
            program = llama_cpp.Llama(str(file), logits_all=True, verbose=False, **options)
        logits = torch.zeros(*ids.shape, program.n_vocab())
        for row, sample in enumerate(ids):
            real = torch.ones_like(sample, dtype=torch.bool) if mask is None else mask[row].bool()
            program.reset()
            program.eval(sample[real].tolist())
            logits[row, real] = torch.from_numpy(np.array(program.scores[: int(real.sum())], dtype=np.float32))
        program.close()
        return {"logits": logits}

    return run


def _format(type_name: str) -> Format:
    name = "gguf" if type_name == "F16" else f"gguf-{type_name.lower()}"
    return Format(
        name=name,
        file=f"gguf/model-{type_name.lower()}.gguf",
        write=partial(_write, type_name),
        load=_load,
        workload={"runtime": "torch", "device": "cpu"},
        extra="gguf",
        rounds=True,
        spread=SPREADS[type_name],
        libraries=("llama_cpp",),
    )


GGUF = tuple(map(_format, FILE_TYPES))
