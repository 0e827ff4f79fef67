"""Loads the weights of a model and refuses what would leave some of them random, wrong or unused, without a word."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.tasks.sources.opened import require_no_pointer
from search_spaces import InputError, Layout

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

ADAPTER = "adapter_config.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
"""Files with weights that are loaded."""
OTHER_WEIGHTS = ("*.h5", "*.msgpack", "*.gguf", "*.ckpt", "*.pt", "*.pth", "*.onnx", "*.npz")
"""Files with weights of other formats or frameworks."""
POOLER = "pooler"
"""Part of the names of weights that follow the encoder of a bare model; another head may replace them."""
LEGACY_BUFFERS = ("inv_freq", "masked_bias", "position_ids")
"""Last parts of names in old checkpoints that were no weights."""
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Of safetensors; a weight of another is quantized, and would be taken for the number that encodes it."""
CHECKED_AT_ONCE = 2**20
"""Numbers of a weight that are checked at once: a table of tokens is most of some models."""
WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DataParallel",
    "model": "Lightning",
    "base_model.model": "peft",
}
"""Prefix of all names in a checkpoint -> what wrapped the model when it was saved."""


def require_known_weights(model: str) -> None:
    """Raises InputError if a folder has weights, but only in formats that transformers does not load here."""
    folder = Path(model)
    if not folder.is_dir():
        return
    others = [file.name for pattern in OTHER_WEIGHTS for file in sorted(folder.glob(pattern))]
    if others and not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        raise InputError(
            f"the weights of a model must be safetensors or a pytorch_model.bin, but `{model}` has {others[0]}; save "
            "it "
            "with transformers, or delete the file to train from scratch."
        )


def require_no_adapter(model: str) -> None:
    """Raises InputError if a folder holds an adapter, which changes the weights of another model."""
    file = Path(model, ADAPTER)
    if not file.is_file():
        return
    try:
        adapter = json.loads(file.read_text())
    except ValueError:
        adapter = {}
    kind, base = adapter.get("peft_type", "LoRA"), adapter.get("base_model_name_or_path", "its base model")
    raise InputError(
        f"`{model}` holds a {kind} adapter of `{base}`, not a whole model; merge it first: load it with peft's "
        "AutoPeftModel class of the task, then `.merge_and_unload().save_pretrained(FOLDER)`, and save the tokenizer "
        "there."
    )


def require_no_quantization(config: PreTrainedConfig, model: str) -> None:
    """Raises InputError if a model's config says that its weights are quantized."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return
    given = quantization if isinstance(quantization, dict) else quantization.to_dict()
    raise InputError(
        f"the weights of a model must be floating-point numbers, but those of `{model}` are quantized "
        f"({given.get('quant_method', 'by an unknown method')}); give the model it was made from."
    )


def load_weights(
    auto: Any,
    source: str,
    layout: Layout,
    *,
    dtype: torch.dtype,
    new_head: bool,
    quantized: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Loads a model of which every weight comes from its files; only a new head may be random.

    Args:
        auto: The auto class.
        source: Hub id or folder.
        layout: Of the model.
        dtype: Of the weights in memory.
        new_head: Whether the head is not in the files.
        quantized: Whether it may have the quantized layers of a finished model.
        **options: Those of ``from_pretrained``.

    Raises:
        InputError: If a weight is missing, has another shape, is in the files only, is quantized or is not finite.
    """
    if not quantized:
        _require_floats(source)
    options |= {"dtype": dtype, "trust_remote_code": False}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = auto.from_pretrained(source, **options)
    if new_head and (renamed := _other_base(report)):
        model, report = auto.from_pretrained(source, **options, key_mapping=renamed)
        _save_under_own_names(model, renamed)
    _check_report(model, report, source, layout, new_head)
    require_finite(model, f"the weights in `{source}`", "get the model again, or train it again")
    return model


def _other_base(report: Mapping[str, Any]) -> dict[str, str]:
    """The prefix of the base model in a checkpoint -> that in the model, if the names differ in it alone.

    transformers calls the base model of Llama's head for question answering, and of its relatives', otherwise than
    that of their other heads, and would leave all of it random.
    """
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    for mine in {name.partition(".")[0] for name in missing}:
        tails = {name.partition(".")[2] for name in missing if name.startswith(f"{mine}.")}
        for theirs in {name.partition(".")[0] for name in unexpected} if len(tails) > 2 else ():
            if all(f"{theirs}.{tail}" in unexpected for tail in tails):
                return {rf"^{theirs}\.": f"{mine}."}
    return {}


def _save_under_own_names(model: PreTrainedModel, renamed: Mapping[str, str]) -> None:
    """Makes ``save_pretrained`` write a model's own names, not those that it was loaded from."""
    conversions = getattr(model, "_weight_conversions", [])
    model._weight_conversions = [each for each in conversions if not {*each.source_patterns} & {*renamed}]


def require_finite(model: torch.nn.Module, whose: str, way_out: str) -> None:
    """Raises InputError if a weight is NaN or infinite."""
    import torch

    for name, weight in model.state_dict().items():
        parts = weight.flatten().split(CHECKED_AT_ONCE) if weight.is_floating_point() else ()
        if not all(torch.isfinite(part).all() for part in parts):
            wrong = "NaN" if torch.isnan(weight).any() else "infinite"
            raise InputError(
                f"{whose} must be finite numbers, but `{name}` holds {wrong} values, so that every loss is nan; "
                f"{way_out}."
            )


def _check_report(
    model: PreTrainedModel, report: Mapping[str, Any], source: str, layout: Layout, new_head: bool
) -> None:
    names = list(model.state_dict())
    heads = _heads(names, layout) if new_head else set[str]()
    is_bare = model.base_model is model

    def may_be_new(name: str) -> bool:
        is_pooler = POOLER in name.split(".")
        return name.partition(".")[0] in heads or (is_pooler and (new_head or is_bare))

    missing = sorted(name for name in report["missing_keys"] if not may_be_new(name))
    unexpected = sorted(report["unexpected_keys"])
    if missing:
        raise InputError(_missing_text(missing, unexpected, names, source))
    mismatched = sorted((key for key in report["mismatched_keys"] if not may_be_new(key[0])), key=lambda key: key[0])
    if mismatched:
        raise InputError(_mismatched_text(mismatched, source))
    unused = [name for name in unexpected if _is_weight_of_layer(name, unexpected, layout)]
    if unused:
        raise InputError(
            f"the checkpoint in `{source}` holds weights that its config.json has no place for ({_some(unused)}); "
            f"{_layers_text(unused, layout)}check that both are of one model."
        )
    if report.get("error_msgs"):
        raise InputError(
            f"the weights in `{source}` cannot be loaded: {' '.join(map(str, report['error_msgs']))[:200]}."
        )


def _heads(names: Iterable[str], layout: Layout) -> set[str]:
    """The first parts of the names of weights beside the layers: those of a head."""
    first = {name.partition(".")[0]: False for name in names}
    for name in names:
        first[name.partition(".")[0]] |= layout.locate(name).layer is not None
    return {part for part, has_layers in first.items() if not has_layers}


def _is_weight_of_layer(name: str, unexpected: Collection[str], layout: Layout) -> bool:
    """Whether a name is that of a weight in a layer, and not of a buffer that old checkpoints have."""
    module, _, kind = name.rpartition(".")
    is_causal_mask = kind == "bias" and module.endswith(("attn", "attention")) and f"{module}.weight" not in unexpected
    return layout.locate(name).layer is not None and kind not in LEGACY_BUFFERS and not is_causal_mask


def _layers_text(unused: Iterable[str], layout: Layout) -> str:
    """A hint if the checkpoint has more layers than the config."""
    stack, layer = max(
        (where.stack, where.layer)
        for where in map(layout.locate, unused)
        if where.layer is not None and where.stack is not None
    )
    depth = sum(layout.depths[: stack + 1])
    return f"it has {layer + 1} layers, and the config {depth}; " if layer >= depth else ""


def _missing_text(missing: Collection[str], unexpected: Collection[str], names: Collection[str], source: str) -> str:
    """What to say of missing weights: how the file calls them, if it has them under other names."""
    prefix = _prefix(missing, unexpected)
    how_many = "all of them" if len(missing) >= len(names) else f"{len(missing)} of {len(names)}"
    if prefix is None:
        which, way_out = f"{how_many}: {_some(missing)}", "get all files of the model, or correct its config.json"
    else:
        wrapper = WRAPPERS.get(prefix)
        which = f"{how_many}, they are called {prefix}.*"
        way_out = f"save the model that is inside {wrapper}, or" if wrapper else "save it again, or"
        way_out += f" remove `{prefix}.` from the names"
    return (
        f"the checkpoint in `{source}` lacks weights that the model needs ({which}), which would be random; {way_out}."
    )


def _prefix(missing: Iterable[str], unexpected: Collection[str]) -> str | None:
    """What the names in a file have before those of the model, if that is why they are missing."""
    for name in missing:
        for tail in (name, name.partition(".")[2]):
            found = next((other for other in unexpected if tail and other.endswith(f".{tail}")), None)
            if found is not None:
                return _known_prefix(found.removesuffix(f".{tail}"))
    return (
        next((p for p in WRAPPERS if all(name.startswith(f"{p}.") for name in unexpected)), None)
        if unexpected
        else None
    )


def _known_prefix(found: str) -> str:
    """The prefix of a wrapper if it is one, as more of the name may differ."""
    known = [prefix for prefix in WRAPPERS if f"{found}.".startswith(f"{prefix}.")]
    return max(known, key=len) if known else found


def _mismatched_text(mismatched: Collection[tuple[str, Any, Any]], source: str) -> str:
    in_rows = [(name, a, b) for name, a, b in mismatched if len(a) == len(b) and a[1:] == b[1:]]
    name, stored, expected = next(iter(in_rows or mismatched))
    sizes = f"{stored[0]} rows against {expected[0]}" if in_rows else f"{[*stored]} against {[*expected]}"
    more = f", and {len(mismatched) - 1} more differ" if len(mismatched) > 1 else ""
    return (
        f"the weights in `{source}` must have the shapes of its config.json, but they differ (`{name}`: "
        f"{sizes}{more}); "
        "correct the config.json, or give a model that is not pruned."
    )


def _some(names: Collection[str]) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(list(names)[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def files_of_weights(model: PreTrainedModel, source: str) -> list[Path]:
    """The files of a model, with their index, if they hold just the weights that it would save; else none.

    Args:
        model: With the dtype of its files.
        source: The folder or hub id that it was loaded from.
    """
    from transformers.utils import cached_file

    folder = Path(source)
    if not folder.is_dir():
        folder = Path(str(cached_file(source, "config.json"))).parent
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    names = {} if whole.is_file() or not index.is_file() else json.loads(index.read_text())["weight_map"]
    files = sorted({folder / name for name in names.values()}) or [whole]
    if not all(file.is_file() for file in files) or _stored(files) != _to_store(model):
        return []
    return [*files, index] if names else files


def _stored(files: Iterable[Path]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> dtype and shape of the weights in files."""
    from safetensors import safe_open

    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  (it is no mapping)
            found |= {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    return found


def _to_store(model: PreTrainedModel) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> dtype and shape of the weights that a model saves, as far as these are floating-point numbers."""
    import torch

    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    left_out = {*(model._keys_to_ignore_on_save or ()), *model.all_tied_weights_keys}
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
    return {name: (names.get(tensor.dtype, ""), tuple(tensor.shape)) for name, tensor in kept.items()}


def _require_floats(source: str) -> None:
    """Raises InputError if a weight in a local folder is stored as integers or in eight bits."""
    from safetensors import safe_open

    for file in sorted(Path(source).glob("*.safetensors")) if Path(source).is_dir() else ():
        require_no_pointer(file)
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (it is no mapping)
                dtype = opened.get_slice(name).get_dtype()
                if name.endswith(("weight", "bias")) and dtype not in FLOAT_DTYPES:
                    raise InputError(
                        f"the weights of a model must be floating-point numbers, but `{name}` in `{file}` is stored "
                        "as "
                        f"{dtype}; give the model it was made from."
                    )
