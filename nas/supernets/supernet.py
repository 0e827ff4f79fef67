"""Supernet: a Hugging Face model made elastic in place, with one active subnetwork at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers.initialization import no_init_weights

from nas.modeling import modeling_nas
from nas.modeling.arch import edits_of
from nas.modeling.elastic import (
    Elastic,
    ElasticModuleList,
    Index,
    as_index,
    freeze_batch_norms,
    make_elastic,
    select_active,
)
from nas.modeling.known_layouts import adopt
from nas.modeling.modeling_nas import WRAPPERS, config_or_module
from nas.modeling.module_kinds import KINDS
from nas.modeling.position_caches import fill_position_caches
from nas.modeling.quantized import Stored
from nas.modeling.registration import task_with_own_stacks
from nas.modeling.smaller_images import SizeChecks, interpolation
from nas.supernets.codebook import fit_codebook
from nas.supernets.compensation import Compensation, is_compensated
from nas.supernets.device import fits, moved
from nas.supernets.low_rank import CalibrationStatistics, output_basis, top_eigenvectors
from nas.tasks.vocabulary import Vocabulary
from search_spaces import InputError, Layout, SubnetConfig
from search_spaces.blueprint import LayerBlueprint
from search_spaces.dimension import FULL_RANK
from search_spaces.dimensions import DEPTHS
from search_spaces.dimensions.ranks import factor_rank
from search_spaces.family import Axes
from search_spaces.layout import config_part, update_config
from search_spaces.module_kinds import (
    CompressedTable,
    Kind,
    LowRank,
    LowRankEmbedding,
    Quantized,
    Skipped,
    SparseAttention,
)
from search_spaces.stock_config import stock_config_update
from search_spaces.validation import check_subnet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from search_spaces.shapes import Rows


@dataclass(frozen=True)
class _Fitted:
    """The bases and codebooks of one module with the active units of a blueprint."""

    supernet: Supernet
    name: str
    blueprint: LayerBlueprint

    def basis(self, rank: int) -> torch.Tensor:
        """See `nas.modeling.module_kinds.Fitted`."""
        return self.supernet._basis(self.name, self.blueprint.sizes, rank)

    def moment(self) -> torch.Tensor | None:
        """See `nas.modeling.module_kinds.Fitted`."""
        return self.supernet._moment(self.name, self.blueprint.sizes)

    def codebook(self, kind: CompressedTable) -> torch.Tensor:
        """See `nas.modeling.module_kinds.Fitted`."""
        return self.supernet._codebook(self.name, self.blueprint, kind)


@dataclass
class _ElasticLayer:
    """The elastic modules of one layer, or those outside of the layers, and their active values.

    Attributes:
        root: The layer, or the model.
        modules: Path -> elastic module.
        axes: Path -> name of a parameter -> its axes.
        linear_weights: Path of a linear layer, or of the table of embeddings -> name of its weight in the model.
        compensated: Path -> name of a parameter whose inputs take over others -> its name in the model.
        candidates: Kind of module -> the modules that may become one: path in a blueprint -> path below the root.
        cached_modules: Modules with a ``layer_idx``, their place in the key-value cache.
        blueprint: What is active.
    """

    root: nn.Module
    modules: dict[str, Elastic] = field(default_factory=dict)
    axes: dict[str, dict[str, Axes]] = field(default_factory=dict)
    linear_weights: dict[str, str] = field(default_factory=dict)
    compensated: dict[str, dict[str, str]] = field(default_factory=dict)
    candidates: dict[type[Kind], dict[str, str]] = field(default_factory=dict)
    cached_modules: list[nn.Module] = field(default_factory=list)
    blueprint: LayerBlueprint | None = None


class Supernet:
    """The parent model and all subnetworks that share its weights.

    The model stays an ordinary Hugging Face model: same class, same parameter names, same ``save_pretrained`` (while
    the parent is active). Only the classes of the modules in the family's table are replaced, so that ``forward``
    computes the active subnetwork on views of the weights.

    Args:
        model: A model of a supported family; it is changed in place.
        calibration: Statistics from `calibrate`; needed for subnetworks with low-rank layers.
        vocabulary: The order of the pieces of its tokenizer; needed for subnetworks with fewer of them.
        dtype: Of its files; the model may be trained in another.

    Raises:
        InputError: If the model type is not supported, or its layers are quantized or have adapters.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        calibration: CalibrationStatistics | None = None,
        vocabulary: Vocabulary | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.vocabulary, self.dtype = model, vocabulary, dtype
        adopt(model.config.model_type)
        self.layout = Layout(model.config, task_with_own_stacks(model))
        self.family, self.config, self.parent = self.layout.family, self.layout.config, self.layout.parent
        self._model_class = type(model)
        self._generation_ids = copy.deepcopy(vars(model.generation_config)) if model.can_generate() else {}
        for path, (attribute, _) in self.family.unused_modules.items():
            setattr(model.get_submodule(path.rpartition(".")[0]), attribute, False)
        self.stacks = [self._elastic_list(stack.layers) for stack in self.family.stacks]
        self._lists = [self._elastic_lists(stack.lists) for stack in self.family.stacks]
        distinct = self.parent.layers[:1] if self.family.shared_layers else self.parent.layers
        self._layers = [_ElasticLayer(self.layer(index)) for index in distinct]
        self._outside_layers = _ElasticLayer(model)
        freeze_batch_norms(model)
        self.embedding: nn.Embedding | None = None
        self._find_modules()
        self._cached_indices = lru_cache(4096)(self._compute_indices)
        self._size_checks = SizeChecks(model)
        fill_position_caches(model)
        self.calibration = calibration
        self.active = self.parent

    @property
    def calibration(self) -> CalibrationStatistics | None:
        """The statistics from which low-rank bases, and what slices compensate, are computed."""
        return self._calibration

    @calibration.setter
    def calibration(self, calibration: CalibrationStatistics | None) -> None:
        self._calibration = calibration
        self._bases: dict[tuple[Any, ...], torch.Tensor] = {}
        moments = calibration.moments if calibration is not None and calibration.compensates else {}
        self._compensation = Compensation(self.layout, dict(self.model.named_parameters()), moments)
        for layer in self._layers:
            layer.blueprint = None

    def layer(self, index: int) -> nn.Module:
        """Returns the module of a parent layer, active or not; indices run through all stacks."""
        if self.family.shared_layers:
            return self.stacks[0].parent_layer(0)
        stack, position = self.layout.stack_of(index)
        return self.stacks[stack].parent_layer(position)

    def to(self, device: torch.device | str) -> Supernet:
        """Moves the model to a device, or all but the matrices of its layers if its weights exceed that.

        These stay on the CPU. What is active of a matrix is copied to the device while its module runs, so that they
        can be read and permuted at any time.
        """
        is_whole = fits(self.model, device)
        modules = [module for layer in self._layers for module in layer.modules.values()]
        named = self.model.named_parameters()
        staying = set() if is_whole else {id(p) for name, p in named if p.dim() > 1 and self._is_multiplied(name)}
        for module in modules:
            module.__dict__["computes_on"] = None if is_whole else torch.device(device)
        self.model._apply(lambda tensor: tensor if id(tensor) in staying else tensor.to(device))
        return self

    def _is_multiplied(self, name: str) -> bool:
        """Whether a parameter is a matrix of a layer or of its experts; tables are read by other modules too."""
        location, shapes = self.layout.locate(name), self.layout.shapes
        return location.layer is not None and (bool(shapes.linear_axes(location)) or shapes.is_of_experts(location))

    def _elastic_list(self, path: str) -> ElasticModuleList:
        layers = self.model.base_model.get_submodule(path)
        layers.__class__ = ElasticModuleList
        return cast(ElasticModuleList, layers)

    def _elastic_lists(self, ends: tuple[str, ...]) -> list[ElasticModuleList]:
        """The lists outside the layers with an entry for each layer of a stack, by the ends of their paths."""
        found = [
            module
            for path, module in self.model.named_modules(remove_duplicate=False)
            if any(f".{path}".endswith(f".{end}") for end in ends)
        ]
        for module in found:
            module.__class__ = ElasticModuleList
        return cast(list[ElasticModuleList], found)

    def _find_modules(self) -> None:
        tied = {*self.model.all_tied_weights_keys, *self.model.all_tied_weights_keys.values()}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            location = self.layout.locate(name)
            layer = self._outside_layers if location.layer is None else self._layers[location.layer]
            if not any(location.axes) or self.layout.is_shared_by_first_layer(location):
                continue
            if parameter.dim() < len(location.axes):
                raise InputError(
                    f"`{name}` must be the weight of an unquantized layer, but it has {parameter.dim()} dimensions; "
                    "load the model without quantization or adapters."
                )
            layer.modules.setdefault(location.path, make_elastic(layer.root.get_submodule(location.path)))
            layer.axes.setdefault(location.path, {})[name.rpartition(".")[2]] = location.axes
            if self.layout.shapes.linear_axes(location) and name.endswith(".weight"):
                layer.linear_weights[location.path] = name
            if is_compensated(self.layout, name):
                layer.compensated.setdefault(location.path, {})[name.rpartition(".")[2]] = name
            if self.layout.shapes.is_embedding(location) and name not in tied:
                self.embedding = cast(nn.Embedding, layer.modules[location.path])
                layer.linear_weights[location.path] = name
                for kind in (LowRankEmbedding, CompressedTable):
                    layer.candidates[kind] = {self.family.embedding: location.path}
        if self.model.base_model is self.model:
            self._outside_layers.candidates |= {kind: {"": ""} for kind, each in KINDS.items() if each.of_model}
        for index, layer in enumerate(self._layers):
            stack = self.family.stacks[self.layout.stack_of(index)[0]]
            for path, wrapper in stack.mixins.items():
                layer.modules[path] = make_elastic(layer.root.get_submodule(path), WRAPPERS[wrapper])
            for paths in stack.skips.values():
                layer.modules |= {path: make_elastic(layer.root.get_submodule(path)) for path in paths}
            layer.cached_modules = [module for module in layer.root.modules() if hasattr(module, "layer_idx")]
            skipped = [path for paths in stack.skips.values() for path in paths]
            linear, attention = list(layer.linear_weights), [stack.attention_module] * bool(stack.attention_module)
            paths_of = {LowRank: linear, Quantized: linear, Skipped: skipped, SparseAttention: attention}
            layer.candidates = {kind: {path: path for path in paths} for kind, paths in paths_of.items()}
        for stack, layers in zip(self.family.stacks, self.stacks, strict=True):
            for path in stack.shared_by_first_layer:
                parent, _, name = path.rpartition(".")
                for layer in layers[1:]:  # an attribute of every layer, but a submodule of the first layer only
                    layer.get_submodule(parent).__dict__[name] = layers[0].get_submodule(path)

    def check(self, subnet: SubnetConfig) -> None:
        """Raises InputError if the parent does not contain the subnetwork."""
        check_subnet(self.layout, subnet)
        if subnet.changes("vocabulary") and self.vocabulary is None:
            raise InputError(
                f"the vocabulary of {self._model_class.__name__} must stay full, as no order of its pieces is set, "
                f"but got {subnet}."
            )
        for path, kinds in self.layout.blueprint(subnet).outside.kinds.items():
            for kind in map(type, kinds):
                if path not in self._outside_layers.candidates.get(kind, ()):
                    why = KINDS[kind].impossible.format(model=self._model_class.__name__)
                    raise InputError(f"{why}, but got {subnet}.")

    def activate(self, subnet: SubnetConfig) -> None:
        """Makes ``self.model`` compute ``subnet``. This only sets attributes.

        Raises:
            InputError: If the parent does not contain it.
        """
        self.check(subnet)
        with torch.inference_mode(False):  # what is cached here is used in training too
            self._activate(subnet)

    def _activate(self, subnet: SubnetConfig) -> None:
        blueprint = self.layout.blueprint(subnet)
        for stack, positions in enumerate(self.layout.kept_positions(subnet)):
            indices = [self.layout.stack_of(subnet.layers[position])[1] for position in positions]
            for layers in (self.stacks[stack], *self._lists[stack]):
                layers.active = (0,) if self.family.shared_layers else tuple(indices)
            for number, position in enumerate(positions[:1] if self.family.shared_layers else positions):
                layer = self._layers[subnet.layers[position]]
                self._apply(layer, blueprint.layers[position])
                for module in layer.cached_modules:
                    module.__dict__["layer_idx"] = number  # the place in the cache
        self._apply(self._outside_layers, blueprint.outside)
        sizes, _ = config_part(self.model.config, self.family, "")
        sizes.__dict__.pop(self.family.cache_depth_field, None)
        self._size_checks.expect(blueprint.outside.sizes["image"])
        for name, value in {**self.layout.config_update(subnet), **self._token_ids(subnet)}.items():
            part, last = config_part(self.model.config, self.family, name)
            part.__dict__[part.attribute_map.get(last, last)] = value
        if self._generation_ids:
            self.model.generation_config.update(**self._generation_token_ids(subnet))
        self.active = subnet

    def _apply(self, layer: _ElasticLayer, blueprint: LayerBlueprint) -> None:
        """Makes the modules of one layer, or those outside the layers, compute a blueprint."""
        if layer.blueprint is blueprint:
            return
        stack = blueprint.stack
        index = self._cached_indices(stack, tuple(blueprint.sizes.items()))
        for path, parameters in layer.axes.items():
            active_entries = {name: index[axes] for name, axes in parameters.items() if axes in index}
            for name, whole in layer.compensated.get(path, {}).items():
                if name in active_entries:
                    active_entries[name] = self._compensation.of(whole, active_entries[name])
            layer.modules[path].__dict__ |= {"active_entries": active_entries, "quantized": {}}
        changed = None if layer.blueprint is None else {*layer.blueprint.kinds, *blueprint.kinds}
        for kind, paths in layer.candidates.items() if changed is None or changed else ():
            for here, path in paths.items():
                if changed is not None and here not in changed:
                    continue
                fitted = _Fitted(self, layer.linear_weights.get(path, ""), blueprint)
                KINDS[kind].activate(layer.root.get_submodule(path), blueprint.kind(here, kind), fitted)
        for path, attributes in self.family.stacks[stack].attributes.items() if stack is not None else ():
            for name, formula in attributes.items():
                value = self.layout.shapes.attribute_value(formula, blueprint.sizes)
                setattr(config_or_module(layer.root, path), name, value)
        layer.blueprint = blueprint

    def _compute_indices(self, stack: int | None, items: tuple[tuple[str, int], ...]) -> Mapping[Axes, Index]:
        """Returns axes of a parameter -> its active entries, for parameters that are not fully active."""
        sizes, full = dict(items), self.layout.full_sizes[stack or 0]
        layers = [self._outside_layers] if stack is None else self._layers
        distinct = {axes for layer in layers for kinds in layer.axes.values() for axes in kinds.values()}
        indices = {axes: self._active_index(axes, sizes, full) for axes in distinct}
        return {axes: index for axes, index in indices.items() if any(rows != slice(None) for rows in index)}

    def _active_index(
        self, axes: Axes, sizes: Mapping[str, int], full: Mapping[str, int]
    ) -> tuple[slice | torch.Tensor, ...]:
        def is_full(axis: Any, rows: Any) -> bool:
            return isinstance(rows, slice) and rows.stop == self.layout.shapes.size(axis, full)

        active = [(axis, self._rows(axis, sizes, full)) for axis in axes]
        return tuple(slice(None) if axis is None or is_full(axis, rows) else as_index(rows) for axis, rows in active)

    def _rows(self, axis: Any, sizes: Mapping[str, int], full: Mapping[str, int]) -> Rows:
        """Active entries along a dimension of a weight; of the table of tokens, those of the pieces that are kept.

        Positions of smaller images are sums of the parent's.
        """
        if axis == "vocab" and sizes["vocab"] < full["vocab"]:
            assert self.vocabulary is not None
            return self.vocabulary.kept(str(sizes["vocab"]))
        if axis == "positions" and sizes["image"]:
            old, new = (self.layout.inputs.patches(side["image"]) for side in (full, sizes))
            return interpolation(self.family.special_tokens, old, new, (full["queries"], sizes["queries"]))
        return self.layout.shapes.active_rows(axis, sizes, full)

    def _token_ids(self, subnet: SubnetConfig) -> dict[str, Any]:
        """Config fields that hold ids of tokens, as a subnetwork's tokenizer numbers them."""
        if self.vocabulary is None:
            return {}
        return self.vocabulary.token_ids(vars(self.layout.sizes), subnet.vocabulary)

    def _generation_token_ids(self, subnet: SubnetConfig) -> dict[str, Any]:
        """The same of the settings with which the model generates."""
        return {} if self.vocabulary is None else self.vocabulary.token_ids(self._generation_ids, subnet.vocabulary)

    @property
    def linear_layers(self) -> dict[str, nn.Module]:
        """Name of a weight -> its linear layer, for all linear layers in the layers."""
        return {name: layer.modules[path] for layer in self._layers for path, name in layer.linear_weights.items()}

    @property
    def expert_layers(self) -> dict[str, nn.Module]:
        """Name of the weight that reads the neurons of all experts of a layer -> the module of these experts."""
        found = {
            name: layer.modules[path]
            for layer in self._layers
            for path, of in layer.compensated.items()
            for name in of.values()
        }
        return {name: module for name, module in found.items() if name not in self.linear_layers}

    def _basis(self, name: str, sizes: Mapping[str, int], rank: int) -> torch.Tensor:
        """Basis (outputs, rank) of a module with these active units.

        The basis is computed from the active entries only, and cached until the calibration changes.
        """
        index = self._linear_index(name, sizes)
        key = (name, *(i.stop if isinstance(i, slice) else tuple(i.tolist()) for i in index))
        if key not in self._bases:
            self._bases[key] = self._compute_basis(name, index).to(self.model.device, self.model.dtype)
        return self._bases[key][:, :rank]

    def _linear_index(self, name: str, sizes: Mapping[str, int]) -> tuple[slice | torch.Tensor, ...]:
        """Active outputs and inputs of a linear layer, or tokens and channels of the table, all tokens active."""
        location = self.layout.locate(name)
        axes, full = (
            self.layout.shapes.linear_axes(location) or location.axes,
            self.layout.full_sizes[location.stack or 0],
        )
        return self._active_index(axes, {**sizes, "vocab": full["vocab"]}, full)

    def _moment(self, name: str, sizes: Mapping[str, int]) -> torch.Tensor | None:
        """Second moment (inputs, inputs) of the active inputs of a linear layer; None if it was not calibrated."""
        if self._calibration is None or name not in self._calibration.moments:
            return None
        _, inputs = self._linear_index(name, sizes)
        return select_active(self._calibration.moments[name], (inputs, inputs))

    def _compute_basis(self, name: str, index: Index) -> torch.Tensor:
        """Computes the basis of the active entries of a module, for its largest rank below break-even."""
        calibration = self._calibration
        location = self.layout.locate(name)
        if calibration is not None and self.layout.shapes.is_embedding(location) and calibration.embedding is not None:
            moment = select_active(calibration.embedding, (index[1], index[1]))
            return top_eigenvectors(moment, _largest_rank(len(moment), self.layout.sizes.vocab_size))
        if calibration is None or name not in calibration.moments:
            raise InputError(f"`{name}` must be calibrated to have a rank; set `calibration` to `calibrate(...)`.")
        stored = calibration.weights[name]
        weight = select_active(stored, (index[0], self._compensation.of_inputs(name, index[1])))
        return output_basis(
            weight, select_active(calibration.moments[name], (index[1], index[1])), _largest_rank(*weight.shape)
        )

    def _codebook(self, name: str, blueprint: LayerBlueprint, kind: CompressedTable) -> torch.Tensor:
        """Codebook (parts, vectors, channels of a part) of the rows of tokens that are kept, or of their first factor.

        All widths and ranks share it: a narrower row is the first channels of a wider one. It is cached until the
        calibration changes.
        """
        assert self.embedding is not None
        is_low_rank = blueprint.kind(self.family.embedding, LowRankEmbedding) is not None
        width = self.layout.shapes.size("embedding", blueprint.sizes) if is_low_rank else None
        key = (name, kind, width, blueprint.sizes["vocab"])
        if key not in self._bases:
            table = cast(torch.Tensor, self.embedding._parameters["weight"]).detach()
            rows = select_active(table, (as_index(self._rows("vocab", blueprint.sizes, self.layout.full_sizes[0])),))
            if width is not None:
                largest = _largest_rank(width, self.layout.sizes.vocab_size)
                rows = rows[:, :width] @ self._basis(name, blueprint.sizes, largest)
            self._bases[key] = fit_codebook(rows, kind.part, kind.centroids)
        return self._bases[key]

    def extract(self, subnet: SubnetConfig) -> PreTrainedModel:
        """Returns a separate model with the outputs of the supernet with ``subnet`` active.

        It is a stock model if a stock config can describe the subnetwork, and otherwise one of
        `nas.modeling.modeling_nas`. Weights are copies; device, dtype and train/eval mode are those of the supernet.

        Raises:
            InputError: If the parent does not contain the subnetwork.
        """
        self.check(subnet)
        return self._model(subnet, {name: tensor.clone() for name, tensor in self.state_dict(subnet).items()})

    def in_place(self, subnet: SubnetConfig) -> PreTrainedModel:
        """Returns a model of a subnetwork's architecture on the supernet's own weights, where these are a prefix.

        It takes no memory for them. It computes as fast as the extracted model, but without what slices compensate.

        Raises:
            InputError: If the parent does not contain the subnetwork.
        """
        self.check(subnet)
        return self._model(subnet, self.state_dict(subnet, compensates=False))

    def _model(self, subnet: SubnetConfig, state: dict[str, torch.Tensor]) -> PreTrainedModel:
        """A separate model with these weights, see `extract`."""
        config_update = stock_config_update(self.layout, subnet)
        model_class, config = (
            self._stock_class_and_config({**config_update, **self._token_ids(subnet)})
            if config_update is not None
            else self._custom_class_and_config(subnet)
        )
        with torch.random.fork_rng(devices=[]), no_init_weights(), init_empty_weights(include_buffers=False):
            model = model_class._from_config(config, dtype=self.model.dtype)  # rotary frequencies stay in float32
        state = self._fold_constants(state, subnet) if config_update is not None else state
        model.load_state_dict(state, assign=True)
        for module in model.modules():
            if isinstance(module, Stored):  # its weight is empty and in no file
                module.weight = torch.empty_like(module.weight, device=self.model.device)
        moved(model, self.model.device)
        model.tie_weights()
        if self.model.can_generate():
            model.generation_config = self._generation_config(subnet)
        return model.train(self.model.training)

    def _generation_config(self, subnet: SubnetConfig) -> Any:
        """Returns the generation settings of a subnetwork: those that name layers and heads follow its numbering.

        ``alignment_heads`` lists pairs of a decoder layer and one of its cross-attention heads.
        """
        settings = copy.deepcopy(self.model.generation_config)
        settings.update(**self._generation_token_ids(subnet))
        if getattr(settings, "alignment_heads", None) is None:
            return settings
        blueprint, shapes, kept = self.layout.blueprint(subnet), self.layout.shapes, {}
        for number, position in enumerate(self.layout.kept_positions(subnet)[-1]):
            channels = shapes.size("cross_heads", blueprint.layers[position].sizes)
            _, layer = self.layout.stack_of(subnet.layers[position])
            kept[layer] = number, channels // shapes.channels_per_unit("cross_heads")
        settings.alignment_heads = [
            [kept[layer][0], head] for layer, head in settings.alignment_heads if head < kept.get(layer, (0, 0))[1]
        ]
        if not settings.alignment_heads:
            del settings.alignment_heads
        return settings

    def state_dict(self, subnet: SubnetConfig, *, compensates: bool = True) -> dict[str, torch.Tensor]:
        """Returns the weights of a subnetwork under their names in the extracted model; as views if possible.

        Args:
            subnet: The subnetwork.
            compensates: Whether what remains of a layer takes over what is left out, if the supernet does so.
        """
        state: dict[str, torch.Tensor] = {}
        for name, tensor in self.model.state_dict().items():
            blueprint, location = self.layout.blueprint_at(subnet, name), self.layout.locate(name)
            if blueprint is None:
                continue
            index = self._active_index(location.axes, blueprint.sizes, self.layout.full_sizes[location.stack or 0])
            new_name = self.layout.name_in_subnet(subnet, name)
            active = select_active(tensor, self._compensation.of(name, index) if compensates else index)
            parameter = new_name.rpartition(".")[2]
            kinds, fitted = self.layout.shapes.kinds(location, blueprint), _Fitted(self, name, blueprint)
            is_conv1d = self.family.conv1d and parameter == "weight" and self.layout.shapes.linear_axes(location)
            tensors = {parameter: active.T if kinds and is_conv1d else active}
            for kind in kinds:
                stored = (KINDS[type(kind)].store(kind, *one, fitted) for one in tensors.items())
                tensors = {end: stored_tensor for each in stored for end, stored_tensor in each.items()}
            state |= {new_name.removesuffix(parameter) + end: stored_tensor for end, stored_tensor in tensors.items()}
        return state

    def _fold_constants(self, state: dict[str, torch.Tensor], subnet: SubnetConfig) -> dict[str, torch.Tensor]:
        """Rescales weights of a stock model, whose constants depend on the hidden size, to keep its outputs."""
        if self.family.rescale_constants is None or subnet.hidden_size == self.parent.hidden_size:
            return state
        scales = self.family.rescale_constants(self.config, subnet.hidden_size)
        for suffix, (factor, offset) in scales.items():
            for name in state:
                if f".{name}".endswith(f".{suffix}"):
                    state[name] = (state[name] + offset) * factor - offset
        return state

    def _stock_class_and_config(self, config_update: dict[str, Any]) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
        config = copy.deepcopy(self.config)
        sizes = getattr(config, self.family.sub_config) if self.family.sub_config else config
        update_config(config, self.family, {**config_update, **dict.fromkeys(self._unused_fields, False)})
        if hasattr(sizes, "set_output_features_output_indices"):  # a backbone's config names one stage per layer
            sizes.stage_names = ["stem", *(f"stage{k + 1}" for k in range(getattr(sizes, DEPTHS[0])))]
            sizes.set_output_features_output_indices(out_features=None, out_indices=None)
        config._attn_implementation = _attention_of(self.model.config)
        return self._model_class, config

    @property
    def _unused_fields(self) -> list[str]:
        return [name for _, name in self.family.unused_modules.values()]

    def _custom_class_and_config(self, subnet: SubnetConfig) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
        """Returns class and config of a subnetwork that no stock config describes."""
        _, config = self._stock_class_and_config({**self.layout.config_update(subnet), **self._token_ids(subnet)})
        config.update({"nas_arch": edits_of(self.model, self.layout, subnet)})
        nas_config = modeling_nas.counterpart(type(config))
        nas_model = modeling_nas.counterpart(self._model_class)
        described = nas_config.from_dict({n: v for n, v in config.to_dict().items() if n != "model_type"})
        described._attn_implementation = _attention_of(self.model.config)
        if self.layout.blueprint(subnet).outside.kinds.get(self.family.embedding):
            described.tie_word_embeddings = False  # no head can share a table of another form
        return nas_model, described


def _attention_of(config: PreTrainedConfig) -> dict[str, str]:
    """The attention implementations of a config and of its parts: a backbone may lack that of the model."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    of_parts = {name: part._attn_implementation for name, part in parts.items() if part is not None}
    return {"": config._attn_implementation, **of_parts}


def _largest_rank(outputs: int, inputs: int) -> int:
    """Returns the largest rank at which two factors are smaller than the full matrix."""
    rank = factor_rank(outputs, inputs, FULL_RANK - 1)
    assert rank is not None
    return rank
