"""Importance order: ranks heads, neurons, channels and layers by their importance and permutes the weights.

After the permutation, a prefix of the heads, FFN neurons and channels of the residual stream holds the most important
ones. The outputs of the parent do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, TypeVar, cast

import torch

from nas.supernets.expert_importance import expert_scores
from nas.supernets.layer_importance import forward, layer_order, require_finite
from nas.supernets.supernet import Supernet
from nas.tasks.batches import IGNORE_INDEX, model_inputs
from nas.tasks.evaluation import evaluation_mode, on_model
from nas.tasks.types import TaskType
from search_spaces import InputError
from search_spaces.dimensions import DIMENSIONS
from search_spaces.family import Axes, Axis

Batch = Mapping[str, torch.Tensor]
Key = TypeVar("Key")
Scores = dict[str, list[torch.Tensor]]
"""Axis -> one float64 tensor (units,) per parent layer."""

SCORED_AXES: tuple[Axis, ...] = ("heads", "cross_heads", "ffn")
"""Axes whose units are scored; key and value heads follow the attention heads of their group."""


NEURONS = "neurons of experts"
"""Key of `ImportanceOrder.units`: each expert has an order of its own."""


@dataclass(frozen=True)
class ImportanceOrder:
    """Layers and units by descending importance, in the numbering of the parent.

    Attributes:
        layers: Parent layers, most important first.
        units: Axis -> for each parent layer, its units (heads, neurons, experts), most important first; `NEURONS`: the
            neurons of its experts, expert by expert in their new order.
        hidden: Channels of the residual stream, most important first; empty if they keep their order.
    """

    layers: tuple[int, ...]
    units: dict[str, list[list[int]]]
    hidden: list[int]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain lists for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ImportanceOrder:
        """Restores the result of `to_dict`."""
        return cls(tuple(data["layers"]), data["units"], data["hidden"])


def order_by_importance(
    supernet: Supernet,
    batches: Sequence[Batch],
    layer_batches: Sequence[Batch] | None = None,
    *,
    by: Literal["gradient", "activation", "none"] = "gradient",
    task: TaskType | None = None,
    fewest: Sequence[int] = (),
) -> ImportanceOrder:
    """Measures importance on labelled batches and permutes the supernet's weights in place accordingly.

    Args:
        supernet: The parent must be active.
        batches: Model inputs with ``labels``, a few hundred examples of the training data.
        layer_batches: Batches on which layers are ordered, by default the same; fewer suffice, see `layer_order`.
        by: The scores of heads and neurons: `gradient_scores` or `activation_scores`; ``none`` keeps the order. Those
            of experts and their neurons are `expert_scores`.
        task: Computes the loss of a model; default: the model does.
        fewest: Layers of each stack that stay in any case, see `layer_order`.

    Returns:
        The order, in the numbering of the parent before the permutation.
    """
    if by == "none":
        return ImportanceOrder(supernet.parent.layers, {}, [])
    scores = gradient_scores(supernet, batches, task) if by == "gradient" else activation_scores(supernet, batches)
    units = unit_orders(supernet, scores)
    if "experts" in supernet.family.axes:
        units |= expert_orders(supernet, batches)
    keeps_channels = "hidden_size" in supernet.family.fixed_reasons or (task is not None and task.keeps_channels)
    hidden = [] if keeps_channels else _argsort_descending(hidden_scores(supernet, batches))
    if "text_hidden_size" in supernet.family.dimensions:
        texts = _argsort_descending(hidden_scores(supernet, batches, "text_hidden"))
        units["text_hidden"] = [texts] * len(supernet.parent.layers)
    permute(supernet, units, hidden)
    layers = layer_order(supernet, batches if layer_batches is None else layer_batches, task, fewest)
    return ImportanceOrder(layers, units, hidden)


def gradient_scores(supernet: Supernet, batches: Sequence[Batch], task: TaskType | None = None) -> Scores:
    """First-order importance of each head and neuron: the change of the loss if its output is masked.

    The gradient of the loss with respect to a mask on a unit's output equals the sum of weight x gradient over the
    columns that read it, so one backward pass per batch scores all units (Michel et al. 2019, arXiv 1905.10650;
    Molchanov et al. 2019, arXiv 1906.10771). Absolute values are summed over batches.

    Returns:
        Axis -> scores (units,) of each parent layer.
    """
    model, found = supernet.model, dict[tuple[Axis, int], torch.Tensor]()
    was_training = model.training
    model.eval()
    model.zero_grad()
    with _gradients_of_consumers(supernet, found):
        for batch in batches:
            _importance_loss(model, on_model(batch, model), task).backward()
    model.train(was_training)
    empty = torch.zeros(0, dtype=torch.float64)
    scores = {axis: [found.get((axis, layer), empty) for layer in supernet.parent.layers] for axis in SCORED_AXES}
    return {axis: layers for axis, layers in scores.items() if any(len(layer) for layer in layers)}


@contextmanager
def _gradients_of_consumers(supernet: Supernet, scores: dict[tuple[Axis, int], torch.Tensor]) -> Iterator[None]:
    """Scores units by the gradients of the weights that read them, a third of a decoder's; restores the others.

    A gradient is dropped as soon as its units are scored, so that there is one at a time.
    """
    by_weight: dict[torch.nn.Parameter, list[tuple[Axis, int]]] = {}
    for layer in supernet.parent.layers:
        for axis in SCORED_AXES:
            for module in _consumers(supernet, layer, axis):
                by_weight.setdefault(cast(torch.nn.Parameter, module.weight), []).append((axis, layer))
    others = [p for p in supernet.model.parameters() if p.requires_grad and p not in by_weight]

    def score(weight: torch.Tensor) -> None:
        for axis, layer in by_weight[cast(torch.nn.Parameter, weight)]:
            own = _gradient_score(supernet, weight, axis)
            scores[axis, layer] = scores[axis, layer] + own if (axis, layer) in scores else own
        weight.grad = None

    _require_gradients(by_weight)
    handles = [weight.register_post_accumulate_grad_hook(score) for weight in by_weight]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
        for handle in handles:
            handle.remove()


def _require_gradients(by_weight: Mapping[torch.nn.Parameter, Sequence[tuple[Axis, int]]]) -> None:
    """Raises InputError if a weight that reads units is frozen."""
    for weight, ((_, layer), *_) in by_weight.items():
        if not weight.requires_grad:
            raise InputError(
                f"importance by gradients needs those of layer {layer}, but its weights are frozen; unfreeze them, or "
                "set `supernet.order` to `activation` or `none`."
            )


def _gradient_score(supernet: Supernet, weight: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Returns |sum of weight x gradient| over the columns of each unit of a weight that reads the axis."""
    assert weight.grad is not None
    products = weight.detach() * weight.grad.to(torch.promote_types(weight.dtype, torch.float32))
    columns = products.double().sum(1 if supernet.family.conv1d else 0).cpu()
    return columns.view(-1, supernet.layout.shapes.channels_per_unit(axis)).sum(1).abs()


def activation_scores(supernet: Supernet, batches: Sequence[Batch]) -> Scores:
    """Importance of each head and neuron by the magnitude of its output.

    Absolute outputs, mean over tokens, L2 norm over samples, summed over the channels of a head (Muralidharan et al.
    2024, arXiv 2407.14679, section 2.1).

    Returns:
        Axis -> scores (units,) of each parent layer.
    """
    modules_by_key = {
        (axis, layer): _consumers(supernet, layer, axis) for axis in SCORED_AXES for layer in supernet.parent.layers
    }
    stacks = {key: supernet.layout.stack_of(key[1])[0] for key in modules_by_key}
    norms = _activation_norms(supernet, batches, modules_by_key, stacks, lambda inputs, output: inputs[0])
    empty, scores = torch.zeros(0, dtype=torch.float64), dict[str, list[torch.Tensor]]()
    for axis in SCORED_AXES:
        unit = supernet.layout.shapes.channels_per_unit(axis)
        layer_norms = [norms.get((axis, layer), empty) for layer in supernet.parent.layers]
        scores[axis] = [size.view(-1, unit).sum(1) for size in layer_norms]
    return {axis: layers for axis, layers in scores.items() if any(len(layer) for layer in layers)}


def expert_orders(supernet: Supernet, batches: Sequence[Batch]) -> dict[str, list[list[int]]]:
    """Sorts the experts of each layer, and the neurons of each of them, by descending score."""
    experts, neurons = list[list[int]](), list[list[int]]()
    for of_experts, of_neurons in expert_scores(supernet, batches):
        experts.append(_argsort_descending(of_experts))
        neurons.append([neuron for expert in experts[-1] for neuron in _argsort_descending(of_neurons[expert])])
    return {"experts": experts, NEURONS: neurons}


def hidden_scores(supernet: Supernet, batches: Sequence[Batch], axis: Axis = "hidden") -> torch.Tensor:
    """Importance of each channel of a residual stream by the magnitude of its normalized activations.

    Absolute outputs of every norm in the layers, mean over tokens, L2 norm over samples, summed over norms
    (Muralidharan et al. 2024, arXiv 2407.14679, section 2.1).

    Returns:
        (hidden_size,) float64.
    """
    stacks = _norms(supernet, axis)
    modules_by_key = {norm: [norm] for norm in stacks}
    norms = _activation_norms(supernet, batches, modules_by_key, stacks, lambda inputs, output: output)
    return torch.stack([*norms.values()]).sum(0)


def _activation_norms(
    supernet: Supernet,
    batches: Sequence[Batch],
    modules_by_key: Mapping[Key, Sequence[torch.nn.Module]],
    stacks: Mapping[Key, int],
    activations: Callable[[Any, Any], torch.Tensor],
) -> dict[Key, torch.Tensor]:
    """Norms of activations by channel: absolute values, mean over tokens, L2 norm over samples.

    Args:
        supernet: Runs on the batches in evaluation mode.
        batches: Model inputs.
        modules_by_key: Key -> modules whose activations share one norm.
        stacks: Key -> the stack of layers of its modules; padding of its tokens is left out.
        activations: Selects the activations (samples, ..., channels) from the inputs and the output of a module.

    Returns:
        Key -> (channels,) float64, for every key whose modules ran.
    """
    squares: dict[Key, torch.Tensor] = {}

    def add(key: Key, _: torch.nn.Module, inputs: Any, output: Any) -> None:
        values = activations(inputs, output).detach().double().abs()
        mask = masks[stacks[key]]
        rows = values.reshape(samples if mask is None else len(mask), -1, values.shape[-1])
        per_sample = _mean_over_tokens(rows, mask).cpu()
        squares[key] = squares.get(key, torch.zeros(1)) + (per_sample**2).sum(0)

    handles = [
        module.register_forward_hook(partial(add, key))
        for key, modules in modules_by_key.items()
        for module in modules
    ]
    with evaluation_mode(supernet.model, in_float32=False):
        for batch in batches:
            samples, masks = len(next(iter(batch.values()))), _token_masks(batch, supernet)
            supernet.model(**model_inputs(on_model(batch, supernet.model)))
    for handle in handles:
        handle.remove()
    return {key: total.sqrt() for key, total in squares.items()}


def _token_masks(batch: Batch, supernet: Supernet) -> list[torch.Tensor | None]:
    """Returns for each stack of layers which tokens (samples, tokens) are no padding; None for all."""
    encoder = batch.get("attention_mask")
    if len(supernet.stacks) == 1:
        return [encoder]
    if supernet.family.stages is not None or supernet.family.has_queries:
        return [None for _ in supernet.stacks]
    if supernet.family.has_towers:
        return [None, torch.ones_like(batch["input_ids"]) if encoder is None else encoder]
    decoder, labels = batch.get("decoder_attention_mask"), batch.get("labels")
    return [encoder, (None if labels is None else labels != IGNORE_INDEX) if decoder is None else decoder]


def _mean_over_tokens(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Returns the mean (samples, channels) of values (samples, tokens, channels) over the tokens of a mask."""
    if mask is None or mask.shape != values.shape[:2]:
        return values.mean(1)
    weights = mask.to(values)[..., None]
    return (values * weights).sum(1) / weights.sum(1).clamp(min=1)


def unit_orders(supernet: Supernet, scores: Scores) -> dict[str, list[list[int]]]:
    """Sorts units by descending score. Heads stay in their group; groups are sorted by the sum over their heads.

    Layers that share position biases also share the order of their heads.
    """
    layout, orders = (
        supernet.layout,
        {axis: [_argsort_descending(s) for s in layers] for axis, layers in scores.items()},
    )
    if supernet.family.shared_heads:
        stack_of_layer = [layout.stack_of(layer)[0] for layer in supernet.parent.layers]
        sums = {
            k: sum(s for s, n in zip(scores["heads"], stack_of_layer, strict=True) if n == k)
            for k in set(stack_of_layer)
        }
        orders["heads"] = [_argsort_descending(torch.as_tensor(sums[k])) for k in stack_of_layer]
        orders["head_biases"] = orders["heads"]
    if "kv_heads" in supernet.family.axes:
        grouped = [s.view(layout.full_sizes[0]["kv_heads"], -1) for s in scores["heads"]]
        orders["kv_heads"] = [_argsort_descending(s.sum(1)) for s in grouped]
        orders["heads"] = [
            [group * s.shape[1] + head for group in groups for head in _argsort_descending(s[group])]
            for s, groups in zip(grouped, orders["kv_heads"], strict=True)
        ]
    followers = {"qkv_heads": "heads", "head_biases": "heads", "cross_points": "cross_heads"}
    for axis, heads in {**followers, "cross_offsets": "cross_heads"}.items():
        if any(axis in axes for stack in supernet.family.stacks for axes in stack.modules.values()):
            orders[axis] = orders[heads]
    fixed = {
        axis
        for dimension in DIMENSIONS.values()
        if {dimension.name, dimension.depends_on} & supernet.family.fixed_reasons.keys()
        for axis in dimension.axes
    }
    return {axis: order for axis, order in orders.items() if axis not in fixed}


def _importance_loss(model: Any, batch: Batch, task: TaskType | None) -> torch.Tensor:
    outputs = forward(model, batch, task)
    return outputs.loss if task is None else task.importance_loss(outputs, batch)


@torch.no_grad()
def permute(supernet: Supernet, units: Mapping[str, Sequence[Sequence[int]]], hidden: Sequence[int]) -> None:
    """Permutes units and channels in all weights; the outputs of the parent do not change."""
    for name, parameter in supernet.model.named_parameters():
        location = supernet.layout.locate(name)
        orders = {axis: layers[location.layer or 0] for axis, layers in units.items()}
        for dim, axis in enumerate(location.axes):
            index = _permutation(supernet, axis, {**orders, "hidden": hidden}, location.stack or 0)
            if index is not None:
                parameter.copy_(parameter.index_select(dim, index.to(parameter.device)))
        if NEURONS in orders and supernet.layout.shapes.is_of_experts(location):
            _permute_neurons(parameter, location.axes, orders[NEURONS])
    settings: Any = getattr(supernet.model, "generation_config", None)
    if getattr(settings, "alignment_heads", None) and units.get("cross_heads"):
        heads = units["cross_heads"][-len(supernet.stacks[-1]) :]
        settings.alignment_heads = [[layer, heads[layer].index(head)] for layer, head in settings.alignment_heads]


def _permute_neurons(parameter: torch.Tensor, axes: Axes, order: Sequence[int]) -> None:
    """Permutes the neurons within each expert in a parameter of all of them."""
    dim = 2 if axes[2] == "ffn" else 1
    copies = len(axes[dim]) if isinstance(axes[dim], tuple) else 1  # type: ignore[arg-type]
    neurons = torch.tensor(order, device=parameter.device).view(len(parameter), -1)
    index = torch.cat([neurons + start * neurons.shape[1] for start in range(copies)], 1)
    parameter.copy_(parameter.gather(dim, index.unsqueeze(3 - dim).expand_as(parameter)))


def _permutation(
    supernet: Supernet, axis: Axis | tuple[Axis, ...] | None, orders: Mapping[str, Sequence[int]], stack: int
) -> torch.Tensor | None:
    """Returns the permutation along one dimension of a weight; None for the identity."""
    layout, indices, start, is_permuted = supernet.layout, [], 0, False
    for single_axis in axis if isinstance(axis, tuple) else (axis,):
        if single_axis is None:
            return None
        size = layout.shapes.size(single_axis, layout.full_sizes[stack])
        unit = layout.shapes.channels_per_unit(single_axis)
        is_hidden = single_axis == "embedding" and size == layout.parent.hidden_size
        order = orders.get("hidden" if is_hidden else str(single_axis)) or range(size // unit)
        is_permuted = is_permuted or not isinstance(order, range)
        indices.append((torch.tensor(order)[:, None] * unit + torch.arange(unit)).reshape(-1) + start)
        start += size
    return torch.cat(indices) if is_permuted else None


def _consumers(supernet: Supernet, layer: int, axis: Axis) -> list[torch.nn.Module]:
    """Returns the modules of a layer whose inputs are the units of an axis."""
    stack, modules = supernet.layout.stack_of(layer)[0], dict(supernet.layer(layer).named_modules())
    table = supernet.family.stacks[stack].modules
    return [modules[path] for path, axes in table.items() if len(axes) == 2 and axes[1] == axis and path in modules]


def _norms(supernet: Supernet, axis: Axis) -> dict[torch.nn.Module, int]:
    """Returns the norms on a residual stream of all layers, with the stack of each."""
    norms: dict[torch.nn.Module, int] = {}
    for layer in supernet.parent.layers:
        modules = dict(supernet.layer(layer).named_modules())
        stack, _ = supernet.layout.stack_of(layer)
        table = supernet.family.stacks[stack].modules
        norms |= {modules[path]: stack for path, axes in table.items() if axes == (axis,) and path in modules}
    return norms


def _argsort_descending(scores: torch.Tensor) -> list[int]:
    require_finite(bool(scores.isfinite().all()), "scores of importance")
    return [int(i) for i in torch.argsort(scores, descending=True, stable=True)]
