"""Hugging Face models whose layers differ: a stock model plus the list of edits in ``config.nas_arch``.

This file, `sparse_attention`, `quantized` and `compressed_table` are copied into the folder of an exported subnetwork
and need only torch and transformers. Every stock class has a counterpart here: ``NasBertForSequenceClassification`` is
``BertForSequenceClassification`` with the edits applied before the weights are loaded.
"""

import copy
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from .compressed_table import CompressedEmbedding, compress_embedding
from .quantized import QuantizedLinear, Stored
from .sparse_attention import NAME

PREFIX = "Nas"

SHAPE_ATTRIBUTES: dict[type[nn.Module], tuple[str, Callable[[tuple[int, ...]], Any]]] = {
    nn.LayerNorm: ("normalized_shape", tuple),
    Conv1D: ("nf", lambda shape: shape[1]),
}
"""Module class -> the attribute that its forward reads and that must match the shape of its weight, and its value."""


def skip_output(returns: str, layer_idx: int | None, *args: Any, **kwargs: Any) -> Any:
    """Returns the output of a module whose block is skipped.

    Args:
        returns: ``input`` (or ``identity``), ``zeros`` of the input's shape, or ``residual``, the second argument;
            after commas the other outputs of an attention module: ``None`` for its weights, or ``position_bias``.
        layer_idx: Index of an attention module in the cache, which must not lose a layer (see `_store_tokens`).
        args: Arguments of the module.
        kwargs: Arguments of the module.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    cache = kwargs.get("past_key_values", kwargs.get("layer_past"))
    if cache is not None and layer_idx is not None:
        source = kwargs.get("key_value_states", kwargs.get("encoder_hidden_states"))
        _store_tokens(cache, layer_idx, hidden, source)
    kind, *others = returns.split(", ")
    output = args[1] if kind == "residual" else torch.zeros_like(hidden) if kind == "zeros" else hidden
    return (output, *(kwargs.get(name) for name in others)) if others else output


def _store_tokens(cache: Any, layer_idx: int, hidden: torch.Tensor, source: torch.Tensor | None) -> None:
    """Stores one zero per token in the cache, because masks and positions are computed from its lengths.

    Cross-attention stores the tokens of its ``source`` once.
    """
    if source is None:
        tokens = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
        getattr(cache, "self_attention_cache", cache).update(tokens, tokens, layer_idx)
    elif not cache.is_updated.get(layer_idx):
        tokens = source.new_zeros(source.shape[0], 1, source.shape[1], 1)
        cache.cross_attention_cache.update(tokens, tokens, layer_idx)
        cache.is_updated[layer_idx] = True


class Skip(nn.Module):
    """Replaces a module whose block is skipped; see `skip_output`."""

    def __init__(self, returns: str, layer_idx: int | None) -> None:
        super().__init__()
        self.returns, self.layer_idx = returns, layer_idx

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the input, zeros or the residual."""
        return skip_output(self.returns, self.layer_idx, *args, **kwargs)


class LowRank(nn.Module):
    """Replaces a linear layer by two low-rank ones: (.., inputs) -> (.., rank) -> (.., outputs)."""

    def __init__(self, original: Any, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        factory_kwargs = {"device": original.weight.device, "dtype": original.weight.dtype}
        self.down = nn.Linear(inputs, rank, bias=False, **factory_kwargs)
        self.up = nn.Linear(rank, outputs, bias=original.bias is not None, **factory_kwargs)

    @property
    def weight(self) -> torch.Tensor:
        """A weight with the right dtype and device, which stock code reads."""
        return self.up.weight

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Applies both layers."""
        return self.up(self.down(hidden_states))


class LowRankEmbedding(nn.Module):
    """Replaces an embedding by a low-rank one and a linear layer: ids -> (.., rank) -> (.., outputs)."""

    def __init__(self, original: Any, outputs: int, rank: int) -> None:
        super().__init__()
        factory_kwargs = {"device": original.weight.device, "dtype": original.weight.dtype}
        self.down = original  # keeps the stock class, which may scale its outputs
        self.down.weight = nn.Parameter(original.weight.data.new_empty(original.num_embeddings, rank))
        self.down.embedding_dim = rank
        self.up = nn.Linear(rank, outputs, bias=False, **factory_kwargs)

    @property
    def weight(self) -> torch.Tensor:
        """A weight with the right dtype and device, which stock code reads."""
        return self.up.weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Looks up the low-rank embeddings and projects them."""
        return self.up(self.down(input))


class SlicedPositionBias:
    """Mixin of an attention module that receives the position bias of all heads and uses that of its own.

    All layers number their heads alike, so a narrower layer has the first heads.
    """

    num_attention_heads: int

    def forward(self, hidden_states: Any, attention_mask: Any = None, position_bias: Any = None, **kwargs: Any) -> Any:
        """Runs the stock module with the bias of its own heads, (1 or batch, heads, queries, keys)."""
        own = None if position_bias is None else position_bias[:, : self.num_attention_heads]
        return super().forward(hidden_states, attention_mask, own, **kwargs)  # type: ignore[misc]


class SharedPositionBias:
    """Mixin of T5's attention: every layer uses the bias of its own heads out of one that all layers share.

    The first attention of a stack computes the bias for as many heads as the widest layer has.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        key_value_states: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Runs the stock attention; also returns the bias (1, heads of the widest layer, queries, keys)."""
        module: Any = self
        if position_bias is None and key_value_states is None:
            position_bias = module.compute_bias(*self._lengths(hidden_states, past_key_values))
        own = None if position_bias is None else position_bias[:, : module.n_heads]
        inputs = hidden_states, mask, key_value_states, own, past_key_values
        output, _, weights = super().forward(*inputs, **kwargs)  # type: ignore[misc]
        return output, position_bias, weights

    def _lengths(self, hidden_states: torch.Tensor, cache: Any) -> tuple[int, int, torch.device, Any]:
        """Returns the arguments of ``compute_bias``: queries, keys, device, and the number of past queries."""
        queries, device = hidden_states.shape[1], hidden_states.device
        if cache is None:
            return queries, queries, device, 0
        layer: int = self.layer_idx  # type: ignore[attr-defined]
        return queries, cache.get_mask_sizes(queries, layer)[0], device, cache.get_seq_length(layer)


class LayerConfig:
    """A config of one module: its own values, and those of the model for everything else."""

    def __init__(self, shared: Any) -> None:
        self.shared = shared

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "shared":  # copying reads these before ``shared`` is set
            raise AttributeError(name)
        return getattr(self.shared, name)


def config_or_module(root: nn.Module, path: str) -> Any:
    """Returns the module at a path, or, if the path ends in ``config``, a config that only this module reads."""
    parent, _, last = path.rpartition(".")
    if last != "config":
        return root.get_submodule(path)
    module = root.get_submodule(parent)
    if not isinstance(module.config, LayerConfig):
        module.config = LayerConfig(module.config)  # type: ignore[assignment]
    return module.config


def set_sparse_attention(module: Any, graph: list[int] | None) -> None:
    """Sets the pattern of an attention module (see `sparse_attention.Graph`); None restores the model's attention."""
    if graph is not None:
        if not isinstance(module.config, LayerConfig):
            module.config = LayerConfig(module.config)
        vars(module.config).update(_attn_implementation=NAME, nas_pattern=graph)
    elif isinstance(module.config, LayerConfig):
        for name in ("_attn_implementation", "nas_pattern"):
            vars(module.config).pop(name, None)


def set_output_size(model: Any, size: int | None) -> None:
    """Sets how many leading channels of its hidden states a model returns; None: all."""
    if size is not None and not hasattr(type(model), "output_size"):
        model.__class__ = _truncated_class(type(model))
    model.output_size = size


def _truncated_class(stock: Any) -> type:
    """Returns a subclass of a model's class, of the same name, whose ``forward`` returns ``output_size`` channels."""

    @functools.wraps(stock.forward)  # libraries read the names of its arguments
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = stock.forward(self, *args, **kwargs)
        if isinstance(outputs, tuple):
            return (outputs[0][..., : self.output_size], *outputs[1:])
        name = next(iter(outputs))
        outputs[name] = outputs[name][..., : self.output_size]
        return outputs

    members = {"output_size": None, "forward": forward, "__module__": stock.__module__, "__doc__": stock.__doc__}
    return type(stock.__name__, (stock,), members)


WRAPPERS: dict[str, type] = {"SlicedPositionBias": SlicedPositionBias, "SharedPositionBias": SharedPositionBias}
"""Name in a family's table -> mixin of a stock module's class."""


def apply_arch(model: nn.Module, arch: dict[str, Any]) -> None:
    """Edits a stock model in place, section by section in the order of `EDITS`.

    Args:
        model: A stock model, on any device (``from_pretrained`` builds it on ``meta``).
        arch: Section of `EDITS` -> path -> what is edited there. Paths are relative to the base model, so that every
            head shares one list; ``head_shapes`` are those of the head it was exported with.
    """
    base: Any = model.base_model
    for section, edit in EDITS.items():
        for path, what in arch.get(section, {}).items():
            if section != "output" or base is model:  # a head reads the hidden states whole
                edit(model if section == "head_shapes" else base, path, what)


def _put(root: Any, path: str, module: Any) -> None:
    """Puts a module at a path."""
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)


def _copy(root: Any, path: str, other: str) -> None:
    _put(root, path, copy.deepcopy(root.get_submodule(other)))


def _move(root: Any, path: str, origin: str) -> None:
    _put(root, path, root.get_submodule(origin))


def _skip(root: Any, path: str, returns: str) -> None:
    _put(root, path, Skip(returns, getattr(root.get_submodule(path), "layer_idx", None)))


def _wrap(root: Any, path: str, name: str) -> None:
    module = root.get_submodule(path)
    module.__class__ = type(type(module).__name__, (WRAPPERS[name], type(module)), {})


def _factorize(root: Any, path: str, sizes: list[int]) -> None:
    _put(root, path, LowRank(root.get_submodule(path), *sizes))


def _factorize_embedding(root: Any, path: str, sizes: list[int]) -> None:
    _put(root, path, LowRankEmbedding(root.get_submodule(path), *sizes))


def _compress_table(root: Any, path: str, form: list[int]) -> None:
    """Compresses the table of tokens, or the first of its two factors."""
    module = root.get_submodule(path)
    compress_embedding(module.down if isinstance(module, LowRankEmbedding) else module, *form)


def _set_attributes(root: Any, path: str, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        setattr(config_or_module(root, path), name, value)


def _attend(root: Any, path: str, graph: list[int]) -> None:
    set_sparse_attention(root.get_submodule(path), graph)


def _truncate(root: Any, path: str, size: int) -> None:
    set_output_size(root.get_submodule(path), size)


def _quantize(root: Any, path: str, bits: str) -> None:
    """Replaces a linear layer, or both layers of a `LowRank`, by quantized ones."""
    module = root.get_submodule(path)
    if isinstance(module, LowRank):
        for factor in ("down", "up"):
            _quantize(root, f"{path}.{factor}", bits)
        return
    outputs, inputs = module.weight.T.shape if isinstance(module, Conv1D) else module.weight.shape
    quantized = QuantizedLinear(module, inputs, outputs, bits)
    keeps_float32 = {*(getattr(root, "_keep_in_fp32_modules", None) or ())} & {*path.split(".")}
    if keeps_float32 and quantized.weight.dtype == torch.float16:  # in half precision its sums would overflow
        quantized.weight = quantized.weight.float()
    _put(root, path, quantized)


def _reshape(root: Any, name: str, lengths: list[int | None]) -> None:
    """Gives a parameter another shape, if this model has it: other heads may lack it. None keeps a length."""
    path, _, kind = name.rpartition(".")
    try:
        module = root.get_submodule(path)
        stock = getattr(module, kind)
    except AttributeError:
        return
    shape = tuple(before if length is None else length for length, before in zip(lengths, stock.shape, strict=True))
    setattr(module, kind, nn.Parameter(stock.data.new_empty(shape), requires_grad=stock.requires_grad))
    if isinstance(module, nn.Linear) and kind == "weight":
        module.out_features, module.in_features = shape
    for cls, (attribute, of_shape) in SHAPE_ATTRIBUTES.items():
        if isinstance(module, cls) and kind == "weight":
            setattr(module, attribute, of_shape(shape))


def _keep_indices(root: Any, path: str, present: dict[str, list[bool]]) -> None:
    """Lets the attention weights that a model outputs keep the indices of its layers; the others give None."""
    names = path.split(".")
    above = [root.get_submodule(".".join(names[:depth])) for depth in range(len(names))]
    owner = [module for module in above if isinstance(module, transformers.PreTrainedModel)][-1]
    owner.register_forward_hook(partial(_insert_missing, present))


def _insert_missing(present: dict[str, list[bool]], module: Any, inputs: Any, outputs: Any) -> None:
    """Inserts None where a layer has no attention weights, if the outputs hold those of all others."""
    for name, layers in present.items():
        found = outputs.get(name) if isinstance(outputs, dict) else None
        if found is not None and len(found) == sum(layers):
            rest = iter(found)
            outputs[name] = tuple(next(rest) if has else None for has in layers)


EDITS: dict[str, Callable[[Any, str, Any], None]] = {
    "like": _copy,
    "move": _move,
    "skip": _skip,
    "wrap": _wrap,
    "low_rank": _factorize,
    "embedding": _factorize_embedding,
    "shapes": _reshape,
    "head_shapes": _reshape,
    "table": _compress_table,
    "bits": _quantize,
    "attributes": _set_attributes,
    "attention": _attend,
    "output": _truncate,
    "attention_weights": _keep_indices,
}
"""Section of ``nas_arch`` -> the edit of one path, in the order in which they apply.

``like``: a module that is copied there. ``move``: the module that goes there. ``skip``: what the module returns
instead. ``wrap``: a name in `WRAPPERS`. ``low_rank``: inputs, outputs and rank of the two linear layers in its place.
``embedding``: outputs and rank of the two in place of the table of tokens. ``shapes``, ``head_shapes``: shape of a
parameter. ``table``: bits, channels of a code, number of codes and channels of a scale of the table of tokens, or of
the first of the two in its place. ``bits``: the dtype of a linear layer, or of each of the two in its place;
after colons the inputs that share a scale, and whether they have offsets.
``attributes``: values of attributes of a module, or of the config that it reads. ``attention``: its graph of tokens.
``output``: the number of leading channels of its hidden states that a model without a head returns.
``attention_weights``: by the name of an output, whether each of a list of layers has weights to output.
"""


def _nas_config(stock: Any, module: str) -> type:
    model_type = f"nas_{stock.model_type}"
    return type(PREFIX + stock.__name__, (stock,), {"model_type": model_type, "__module__": module})


def _nas_model(stock: Any, module: str) -> type:
    config_class = counterpart(stock.config_class, module)

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        config.__class__ = stock.config_class  # a head may build its body with an auto class, by the config's type
        try:
            stock.__init__(self, config, *args, **kwargs)
        finally:
            config.__class__ = config_class
        config.model_type = stock.config_class.model_type  # read by pipelines and other libraries, saved by no one
        if getattr(config, "nas_arch", None):
            apply_arch(self, config.nas_arch)
            self.post_init()

    def _get_static_cache_init_shape(self: Any) -> None:
        """Returns None: layers differ in key and value heads, so a static cache takes its shapes from the inputs."""

    def _get_dtype_plan(self: Any, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """Returns the dtypes of weights that are loaded in another one: what quantized layers store keeps its own."""
        stored = {
            f"{path}.{name}": tensor.dtype
            for path, module in self.named_modules()
            if isinstance(module, Stored)
            for name, tensor in module.stored.items()
        }
        return {**stored, **stock._get_dtype_plan(self, dtype)}

    def load_state_dict(self: Any, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads weights by the names of modules or by those in files, as `Trainer` does with its checkpoints."""
        if not state_dict.keys() <= self.state_dict().keys():
            state_dict = _module_names(self, state_dict)
        return stock.load_state_dict(self, state_dict, strict, assign)

    def resize_token_embeddings(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Resizes the vocabulary; of a low-rank embedding, its first factor."""
        table = self.get_input_embeddings()
        if any(isinstance(module, CompressedEmbedding) for module in table.modules()):
            raise ValueError("A table of embeddings that is stored in fewer bits cannot be resized.")
        if not isinstance(table, LowRankEmbedding):
            return stock.resize_token_embeddings(self, *args, **kwargs)
        self.set_input_embeddings(table.down)
        try:
            table.down = stock.resize_token_embeddings(self, *args, **kwargs)
        finally:
            self.set_input_embeddings(table)
        return table

    members = {
        "__init__": __init__,
        "resize_token_embeddings": resize_token_embeddings,
        "_get_static_cache_init_shape": _get_static_cache_init_shape,
        "_get_dtype_plan": _get_dtype_plan,
        "load_state_dict": load_state_dict,
        "_tied_weights_keys": _ties(stock),
        "config_class": config_class,
        "__module__": module,
        "__doc__": stock.__doc__,
    }
    return type(PREFIX + stock.__name__, (stock,), members)


def _ties(stock: Any) -> Any:
    """Returns the ties of a model's weights; of RT-DETRv2 only those of the heads of a layer with the decoder's own.

    It also ties the heads of all layers by a pattern, which is void, but without a second layer no model is built.
    """
    ties = stock._tied_weights_keys
    return (
        {k: v for k, v in ties.items() if "(?![0])" not in k}
        if stock.__name__.startswith("RTDetrV2") and ties
        else ties
    )


def _module_names(model: Any, file: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the weights of a file under the names of modules; those that the model lacks keep the file's names."""
    options = {"dtype": model.dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    read, report = type(model).from_pretrained(None, config=copy.deepcopy(model.config), state_dict=file, **options)
    known = {name: tensor for name, tensor in read.state_dict().items() if name not in report["missing_keys"]}
    return {**known, **{name: file[name] for name in report["unexpected_keys"]}}


def _register_weight_renamings(stock: Any, custom: Any) -> None:
    """Registers the renamings of weights that the stock model has, by its class or by its model type.

    Imported here: what runs an ONNX file needs the config of this module only, and may have an older transformers.
    """
    from transformers import conversion_mapping

    for key in (stock.__name__, stock.config_class.model_type):
        renamings = conversion_mapping.get_checkpoint_conversion_mapping(key)
        if renamings is not None:
            conversion_mapping.register_checkpoint_conversion_mapping(custom.__name__, renamings, overwrite=True)
            return


def class_by_name(name: str) -> Any:
    """Returns a class of this module by name; it is created on first use."""
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = counterpart(stock)
    return globals()[name]


def counterpart(stock: Any, module: str = __name__) -> Any:
    """Returns the class of exports of a stock class; it is created on first use, as one of a module."""
    if stock.__module__.startswith("transformers."):
        stock = getattr(transformers, stock.__name__, stock)  # not a subclass that returns fewer channels
    if stock not in _counterparts:
        is_config = issubclass(stock, transformers.PreTrainedConfig)
        _counterparts[stock] = _nas_config(stock, module) if is_config else _nas_model(stock, module)
        if not is_config:
            _register_weight_renamings(stock, _counterparts[stock])
    return _counterparts[stock]


def counterparts(module: str, *stock: Any) -> dict[str, Any]:
    """Returns the classes of exports of a model's own classes, by name."""
    return {PREFIX + each.__name__: counterpart(each, module) for each in stock}


_counterparts: dict[Any, Any] = {}

__getattr__ = class_by_name
