"""Supernet: a Hugging Face model made elastic in place, with one subnetwork of it active at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from transformers.initialization import no_init_weights

from nas import modeling_nas
from nas.elastic import ElasticLinear, ElasticModuleList, make_elastic
from search_spaces import InputError, SubnetConfig, family_of
from search_spaces.family import widths

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class Supernet:
    """The parent model and all subnetworks that share its weights.

    The model stays an ordinary Hugging Face model: same class, same parameter names, same ``save_pretrained``. Only
    the classes of its linear layers and of its layer list are swapped, so that ``forward`` computes the active
    subnetwork on prefix views of the weights.

    Args:
        model: A model of a supported family; it is changed in place.

    Raises:
        InputError: If the model type is not supported or its linear layers are not plain ones.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.config = model.config
        self.family = family_of(model.config.model_type)
        self.parent = self.family.parent(model.config)
        layer_list = model.base_model.get_submodule(self.family.layers)
        make_elastic(layer_list)
        self.layers = cast(ElasticModuleList, layer_list)
        for index in self.parent.layers:
            for path, axes in self.family.modules.items():
                module = self.layers.parent_layer(index).get_submodule(path)
                make_elastic(module)
                if len(axes) == 2 and not isinstance(module, ElasticLinear):
                    raise InputError(
                        f"`{path}` must be a plain linear layer to be elastic, but it is a {type(module).__name__}; "
                        "load the model without quantization or adapters."
                    )
        self.active = self.parent

    def activate(self, subnet: SubnetConfig) -> None:
        """Makes ``subnet`` the network that ``self.model`` computes. Costs attribute assignments only.

        Raises:
            InputError: If the parent does not contain it.
        """
        self._check(subnet)
        self.layers.active = subnet.layers
        for position, index in enumerate(subnet.layers):
            layer = self.layers.parent_layer(index)
            width = widths(subnet, position)
            for path, axes in self.family.modules.items():
                module = layer.get_submodule(path)
                if isinstance(module, ElasticLinear):
                    module.active_out, module.active_in = (
                        self.family.active_size(axis, width, self.config) for axis in axes
                    )
            for path, attributes in self.family.attributes.items():
                for name, formula in attributes.items():
                    value = self.family.attribute_value(formula, width, self.config)
                    setattr(layer.get_submodule(path), name, value)
        self.active = subnet

    def extract(self, subnet: SubnetConfig) -> PreTrainedModel:
        """A model of its own that computes what the supernet computes with ``subnet`` active.

        It is a stock model where a stock config can describe the subnetwork, and otherwise one of
        `nas.modeling_nas`. Weights are copies; device, dtype and train/eval mode follow the supernet.

        Raises:
            InputError: If the parent does not contain the subnetwork.
        """
        self._check(subnet)
        model_class, config = self._describe(subnet)
        with torch.random.fork_rng(devices=[]), no_init_weights():
            model = model_class(config)
        model.to(device=self.model.device, dtype=self.model.dtype)
        model.load_state_dict(self.state_dict(subnet))
        return cast("PreTrainedModel", model.train(self.model.training))

    def state_dict(self, subnet: SubnetConfig) -> dict[str, torch.Tensor]:
        """Weights of a subnetwork under the names they have in the extracted model; views where nothing is cut."""
        position_of = {layer: position for position, layer in enumerate(subnet.layers)}
        state = {}
        for name, tensor in self.model.state_dict().items():
            layer, axes = self.family.locate(name)
            if layer is None:
                state[name] = tensor
            elif layer in position_of:
                width = widths(subnet, position_of[layer])
                active = [slice(self.family.active_size(axis, width, self.config)) for axis in axes]
                state[self.family.renumber(name, position_of[layer])] = tensor[tuple(active)]
        return state

    def _describe(self, subnet: SubnetConfig) -> tuple[type[PreTrainedModel], PreTrainedConfig]:
        """Class and config of the extracted model."""
        config = copy.deepcopy(self.config)
        update = self.family.stock_config_update(self.config, subnet)
        if update is not None:
            config.update(update)
            return type(self.model), config
        config.update({"num_hidden_layers": subnet.num_hidden_layers, "nas_arch": self._arch(subnet)})
        nas_config = getattr(modeling_nas, modeling_nas.PREFIX + type(config).__name__)
        nas_model = getattr(modeling_nas, modeling_nas.PREFIX + type(self.model).__name__)
        fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
        described = nas_config.from_dict(fields)
        described._attn_implementation = self.config._attn_implementation
        return nas_model, described

    def _arch(self, subnet: SubnetConfig) -> dict[str, dict[str, object]]:
        """The edits that turn a stock model of the right depth into the subnetwork (see `modeling_nas.apply_arch`)."""
        linear: dict[str, object] = {}
        attributes: dict[str, object] = {}
        for position in range(subnet.num_hidden_layers):
            width, prefix = widths(subnet, position), f"{self.family.layers}.{position}"
            for path, axes in self.family.modules.items():
                if len(axes) == 2:
                    out_features, in_features = (self.family.active_size(axis, width, self.config) for axis in axes)
                    linear[f"{prefix}.{path}"] = [in_features, out_features]
            for path, formulas in self.family.attributes.items():
                values = {name: self.family.attribute_value(f, width, self.config) for name, f in formulas.items()}
                attributes[f"{prefix}.{path}"] = values
        return {"linear": linear, "attributes": attributes}

    def _check(self, subnet: SubnetConfig) -> None:
        largest = {field: max(getattr(self.parent, field)) for field in ("num_attention_heads", "intermediate_size")}
        too_wide = [f for f, limit in largest.items() if max(getattr(subnet, f)) > limit]
        if too_wide or subnet.layers[-1] >= self.parent.num_hidden_layers:
            raise InputError(f"a subnetwork must fit into its parent ({self.parent}), but got {subnet}.")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients for the duration, then the mode it had."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)
