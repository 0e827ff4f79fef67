"""Supernet: a Hugging Face model made elastic in place, with one subnetwork of it active at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers.initialization import no_init_weights

from nas.modeling import modeling_nas
from nas.modeling.arch import edits_of
from nas.modeling.elastic import (
    Elastic,
    ElasticModuleList,
    Index,
    as_index,
    low_rank_factors,
    make_elastic,
    select_active,
)
from nas.modeling.modeling_nas import WRAPPERS, config_or_module, set_sparse_attention
from nas.modeling.quantized import quantize
from nas.supernets.low_rank import CalibrationStatistics, output_basis, top_eigenvectors
from search_spaces import InputError, Layout, SubnetConfig
from search_spaces.dimension import FULL_RANK
from search_spaces.dimensions.attention import FULL, AttentionPattern
from search_spaces.dimensions.bits import FULL_PRECISION
from search_spaces.dimensions.ranks import RANK_FIELDS, factor_rank
from search_spaces.family import Axes
from search_spaces.stock_config import stock_config_update
from search_spaces.validation import check_subnet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass
class _ElasticLayer:
    """The elastic modules of one layer, or those outside the layers, and the widths they have now."""

    root: nn.Module
    modules: dict[str, Elastic] = field(default_factory=dict)
    axes: dict[str, dict[str, Axes]] = field(default_factory=dict)
    low_rank_weights: dict[str, str] = field(default_factory=dict)
    cached_modules: list[nn.Module] = field(default_factory=list)
    width: dict[str, int] | None = None
    attention: str = FULL
    bits: str = FULL_PRECISION


class Supernet:
    """The parent model and all subnetworks that share its weights.

    The model stays an ordinary Hugging Face model: same class, same parameter names, same ``save_pretrained`` (while
    the parent is active). Only the classes of modules that a family's table names are swapped, so that ``forward``
    computes the active subnetwork on views of the weights.

    Args:
        model: A model of a supported family; it is changed in place.
        calibration: Statistics from `calibrate`, for subnetworks with layers of low rank.

    Raises:
        InputError: If the model type is not supported or its linear layers are not plain ones.
    """

    def __init__(self, model: PreTrainedModel, calibration: CalibrationStatistics | None = None) -> None:
        self.model = model
        self.layout = Layout(model.config)
        self.family, self.config, self.parent = self.layout.family, self.layout.config, self.layout.parent
        self._model_class = type(model)
        for path, (attribute, _) in self.family.unused_modules.items():
            setattr(model.get_submodule(path.rpartition(".")[0]), attribute, False)
        self.stacks = [self._elastic_list(stack.layers) for stack in self.family.stacks]
        distinct = self.parent.layers[:1] if self.family.shared_layers else self.parent.layers
        self._layers = [_ElasticLayer(self.layer(index)) for index in distinct]
        self._outside_layers = _ElasticLayer(model)
        self.embedding: nn.Embedding | None = None
        self._find_modules()
        self._cached_indices = lru_cache(4096)(self._compute_indices)
        self.calibration = calibration
        self.active = self.parent

    @property
    def calibration(self) -> CalibrationStatistics | None:
        """What the bases of low ranks are made from."""
        return self._calibration

    @calibration.setter
    def calibration(self, calibration: CalibrationStatistics | None) -> None:
        self._calibration = calibration
        self._bases: dict[tuple[Any, ...], torch.Tensor] = {}

    def layer(self, index: int) -> nn.Module:
        """The module of a parent layer, active or not; layers are numbered through all stacks."""
        if self.family.shared_layers:
            return self.stacks[0].parent_layer(0)
        stack, place = self.layout.stack_of(index)
        return self.stacks[stack].parent_layer(place)

    def _elastic_list(self, path: str) -> ElasticModuleList:
        layers = self.model.base_model.get_submodule(path)
        layers.__class__ = ElasticModuleList
        return cast(ElasticModuleList, layers)

    def _find_modules(self) -> None:
        tied = {*self.model.all_tied_weights_keys, *self.model.all_tied_weights_keys.values()}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            place = self.layout.locate(name)
            layer = self._outside_layers if place.layer is None else self._layers[place.layer]
            if not any(place.axes) or self.layout.is_shared_by_first_layer(place):
                continue
            if parameter.dim() < len(place.axes):
                raise InputError(
                    f"`{name}` must be the weight of a plain layer to be elastic, but it has {parameter.dim()} "
                    "dimensions; load the model without quantization or adapters."
                )
            layer.modules.setdefault(place.path, make_elastic(layer.root.get_submodule(place.path)))
            layer.axes.setdefault(place.path, {})[name.rpartition(".")[2]] = place.axes
            if self.layout.shapes.linear_axes(place) and name.endswith(".weight"):
                layer.low_rank_weights[place.path] = name
            if self.layout.shapes.is_embedding(place) and name not in tied:
                self.embedding = cast(nn.Embedding, layer.modules[place.path])
                layer.low_rank_weights[place.path] = name
        for index, layer in enumerate(self._layers):
            stack = self.family.stacks[self.layout.stack_of(index)[0]]
            for path, wrapper in stack.mixins.items():
                layer.modules[path] = make_elastic(layer.root.get_submodule(path), WRAPPERS[wrapper])
            for paths in stack.skips.values():
                layer.modules |= {path: make_elastic(layer.root.get_submodule(path)) for path in paths}
            layer.cached_modules = [module for module in layer.root.modules() if hasattr(module, "layer_idx")]
        for stack, layers in zip(self.family.stacks, self.stacks, strict=True):
            for path in stack.shared_by_first_layer:
                parent, _, name = path.rpartition(".")
                for layer in layers[1:]:  # seen by every layer, a child of the first one only
                    layer.get_submodule(parent).__dict__[name] = layers[0].get_submodule(path)

    def check(self, subnet: SubnetConfig) -> None:
        """Raises InputError unless the parent contains a subnetwork."""
        check_subnet(self.layout, subnet)
        if subnet.embedding_rank != FULL_RANK and self.embedding is None:
            raise InputError(
                f"`embedding_rank` must be {FULL_RANK} where the output head shares the embeddings' table, as that of "
                f"{self._model_class.__name__} does, but got {subnet.embedding_rank}."
            )

    def activate(self, subnet: SubnetConfig) -> None:
        """Makes ``subnet`` the network that ``self.model`` computes. Costs attribute assignments only.

        Raises:
            InputError: If the parent does not contain it.
        """
        self.check(subnet)
        for stack, positions in enumerate(self.layout.kept_positions(subnet)):
            indices = [self.layout.stack_of(subnet.layers[position])[1] for position in positions]
            self.stacks[stack].active = (0,) if self.family.shared_layers else tuple(indices)
            for number, position in enumerate(positions[:1] if self.family.shared_layers else positions):
                layer = self._layers[subnet.layers[position]]
                self._set_widths(layer, stack, subnet.layer_values(position))
                self._set_attention(layer, stack, subnet.attention[position])
                self._set_bits(layer, subnet.bits[position])
                for module in layer.cached_modules:
                    module.__dict__["layer_idx"] = number  # the place in the cache
        self._set_widths(self._outside_layers, None, self.layout.outside_values(subnet))
        sizes = getattr(self.model.config, self.family.sub_config) if self.family.sub_config else self.model.config
        sizes.__dict__.pop(self.family.cache_depth_field, None)
        for name, value in self.layout.depth_config_update(subnet).items():
            sizes.__dict__[sizes.attribute_map.get(name, name)] = value
        self.active = subnet

    def _set_widths(self, layer: _ElasticLayer, stack: int | None, width: dict[str, int]) -> None:
        """Sets what is active in one layer, or outside the layers (``stack`` is None)."""
        if layer.width == width:
            return
        index = self._cached_indices(stack, tuple(width.items()))
        for path, kinds in layer.axes.items():
            active_entries = {kind: index[axes] for kind, axes in kinds.items() if axes in index}
            layer.modules[path].__dict__["active_entries"] = active_entries
        low = any(width.get(rank, FULL_RANK) not in (0, FULL_RANK) for rank in (*RANK_FIELDS, "embedding_rank"))
        for path, name in layer.low_rank_weights.items():
            layer.modules[path].__dict__["basis"] = self._basis(name, width) if low else None
        if stack is not None:
            skips = self.layout.skips(stack, width)
            for path in {path for paths in self.family.stacks[stack].skips.values() for path in paths}:
                layer.modules[path].__dict__["skip"] = skips.get(path)
            for path, attributes in self.family.stacks[stack].attributes.items():
                for name, formula in attributes.items():
                    setattr(
                        config_or_module(layer.root, path), name, self.layout.shapes.attribute_value(formula, width)
                    )
        layer.width = width

    def _set_attention(self, layer: _ElasticLayer, stack: int, text: str) -> None:
        """Sets the attention pattern of one layer."""
        if layer.attention != text:
            pattern = AttentionPattern.parse(text)
            module = layer.root.get_submodule(self.family.stacks[stack].attention_module)
            set_sparse_attention(module, None if pattern is None else pattern.to_list())
            layer.attention = text

    def _set_bits(self, layer: _ElasticLayer, bits: str) -> None:
        """Sets in what numbers one layer is stored."""
        if layer.bits != bits:
            for path in layer.low_rank_weights:
                layer.modules[path].__dict__["bits"] = bits
            layer.bits = bits

    def _compute_indices(self, stack: int | None, items: tuple[tuple[str, int], ...]) -> Mapping[Axes, Index]:
        """Axes of the parameters that are not active whole with given widths -> their active entries."""
        width, full = dict(items), self.layout.parent_values[stack or 0]
        layers = [self._outside_layers] if stack is None else self._layers
        every = {axes for layer in layers for kinds in layer.axes.values() for axes in kinds.values()}
        found = {axes: self._active_index(axes, width, full) for axes in every}
        return {axes: index for axes, index in found.items() if any(rows != slice(None) for rows in index)}

    def _active_index(self, axes: Axes, width: Mapping[str, int], full: Mapping[str, int]) -> Index:
        def whole(axis: Any, rows: Any) -> bool:
            return isinstance(rows, slice) and rows.stop == self.layout.shapes.size(axis, full)

        found = [(axis, self.layout.shapes.active_rows(axis, width, full)) for axis in axes]
        return tuple(slice(None) if axis is None or whole(axis, rows) else as_index(rows) for axis, rows in found)

    @property
    def linear_layers(self) -> dict[str, nn.Module]:
        """Name of the weight of each linear layer in the layers -> its module."""
        return {name: layer.modules[path] for layer in self._layers for path, name in layer.low_rank_weights.items()}

    def _basis(self, name: str, width: Mapping[str, int]) -> torch.Tensor | None:
        """Basis (outputs, rank) of a module where these widths hold; None where it is one matrix.

        It is that of the active entries alone, and the same until there are other activations.
        """
        place = self.layout.locate(name)
        rank = self.layout.shapes.rank(place, width)
        if rank is None:
            return None
        axes, full = self.layout.shapes.linear_axes(place) or place.axes, self.layout.parent_values[place.stack or 0]
        index = self._active_index(axes, width, full)
        key = (name, *(i.stop if isinstance(i, slice) else tuple(i.tolist()) for i in index))
        if key not in self._bases:
            self._bases[key] = self._compute_basis(name, index).to(self.model.device, self.model.dtype)
        return self._bases[key][:, :rank]

    def _compute_basis(self, name: str, index: Index) -> torch.Tensor:
        """Basis of the active entries of a module, for its largest rank below break-even."""
        known = self._calibration
        place = self.layout.locate(name)
        if known is not None and self.layout.shapes.is_embedding(place) and known.embedding is not None:
            moment = select_active(known.embedding, (index[1], index[1]))
            return top_eigenvectors(moment, _largest_rank(len(moment), self.layout.sizes.vocab_size))
        if known is None or name not in known.moments:
            raise InputError(f"`{name}` must be calibrated to have a rank; set `calibration` to `calibrate(...)`.")
        weight = select_active(known.weights[name], index)
        return output_basis(
            weight, select_active(known.moments[name], (index[1], index[1])), _largest_rank(*weight.shape)
        )

    def extract(self, subnet: SubnetConfig) -> PreTrainedModel:
        """A model of its own that computes what the supernet computes with ``subnet`` active.

        It is a stock model where a stock config can describe the subnetwork, and otherwise one of
        `nas.modeling.modeling_nas`. Weights are copies; device, dtype and train/eval mode follow the supernet.

        Raises:
            InputError: If the parent does not contain the subnetwork.
        """
        self.check(subnet)
        update = stock_config_update(self.layout, subnet)
        model_class, config = (
            self._stock_class_and_config(update) if update is not None else self._custom_class_and_config(subnet)
        )
        with torch.random.fork_rng(devices=[]), no_init_weights():
            model = model_class._from_config(config, dtype=self.model.dtype)  # rotary frequencies stay in float32
        model.to(self.model.device)
        state = self.state_dict(subnet)
        state = self._fold_constants(state, subnet) if update is not None else state
        model.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
        model.tie_weights()
        if self.model.can_generate():
            model.generation_config = copy.deepcopy(self.model.generation_config)
        return model.train(self.model.training)

    def state_dict(self, subnet: SubnetConfig) -> dict[str, torch.Tensor]:
        """Weights of a subnetwork under the names they have in the extracted model; views where they can be."""
        state: dict[str, torch.Tensor] = {}
        for name, tensor in self.model.state_dict().items():
            width, place = self.layout.values_at(subnet, name), self.layout.locate(name)
            if width is not None:
                index = self._active_index(place.axes, width, self.layout.parent_values[place.stack or 0])
                new_name, basis = self.layout.name_in_subnet(subnet, name), None
                module, _, kind = new_name.rpartition(".")
                is_table = self.layout.shapes.is_embedding(place)
                if self.layout.shapes.linear_axes(place) or is_table:
                    basis = self._basis(f"{name.removesuffix(kind)}weight", width)
                bits = self.layout.bits_of(subnet, place)
                found = select_active(tensor, index)
                if kind != "weight" or (basis is None and bits == FULL_PRECISION):
                    state[new_name if basis is None else f"{module}.up.{kind}"] = found
                    continue
                matrices = {"": found.T if self.family.conv1d or is_table else found}
                if basis is not None:
                    up, down = low_rank_factors(matrices[""], basis)
                    matrices = {".up": up, ".down": down.T if is_table else down}
                for end, one in matrices.items():
                    stored = {"weight": one} if bits == FULL_PRECISION else quantize(one, bits)
                    state |= {f"{module}{end}.{what}": numbers for what, numbers in stored.items()}
        return state

    def _fold_constants(self, state: dict[str, torch.Tensor], subnet: SubnetConfig) -> dict[str, torch.Tensor]:
        """The weights of a stock model whose constants follow from another hidden size than the parent's."""
        if self.family.rescale_constants is None or subnet.hidden_size == self.parent.hidden_size:
            return state
        folds = self.family.rescale_constants(self.config, subnet.hidden_size)
        for end, (factor, offset) in folds.items():
            for name in state:
                if f".{name}".endswith(f".{end}"):
                    state[name] = (state[name] + offset) * factor - offset
        return state

    def _stock_class_and_config(self, update: dict[str, Any]) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
        config = copy.deepcopy(self.config)
        sizes = getattr(config, self.family.sub_config) if self.family.sub_config else config
        sizes.update({**update, **{name: False for _, name in self.family.unused_modules.values()}})
        if hasattr(sizes, "set_output_features_output_indices"):  # a backbone's config names its stages, one a layer
            sizes.stage_names = ["stem", *(f"stage{k + 1}" for k in range(sizes.num_hidden_layers))]
            sizes.set_output_features_output_indices(out_features=None, out_indices=None)
        config._attn_implementation = self.model.config._attn_implementation
        return self._model_class, config

    def _custom_class_and_config(self, subnet: SubnetConfig) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
        """Class and config of a subnetwork that no stock config describes."""
        _, config = self._stock_class_and_config(self.layout.depth_config_update(subnet))
        config.update({"nas_arch": edits_of(self.model, self.layout, subnet)})
        nas_config = getattr(modeling_nas, modeling_nas.PREFIX + type(config).__name__)
        nas_model = getattr(modeling_nas, modeling_nas.PREFIX + self._model_class.__name__)
        described = nas_config.from_dict({n: v for n, v in config.to_dict().items() if n != "model_type"})
        described._attn_implementation = self.model.config._attn_implementation
        if subnet.embedding_rank != FULL_RANK:
            described.tie_word_embeddings = False  # no head can share a table of another width
        return nas_model, described


def _largest_rank(outputs: int, inputs: int) -> int:
    """The largest rank of two factors below break-even."""
    rank = factor_rank(outputs, inputs, FULL_RANK - 1)
    assert rank is not None
    return rank
