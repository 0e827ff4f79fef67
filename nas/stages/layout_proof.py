"""Proof of a layout: the laws of slicing, tested on random subnetworks of a model whose table was another type's."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from nas.exports.reload import scored_outputs
from nas.modeling.known_layouts import small_model
from nas.supernets.calibration import calibrate
from nas.supernets.supernet import Supernet
from nas.tasks.dummy_inputs import dummy_inputs
from nas.tasks.types import TASK_TYPES
from predictors import Workload
from search_spaces import TASKS, Family, InputError, Layout, SearchSpace, SubnetConfig
from search_spaces.dimension import Facts
from search_spaces.dimensions import DEPTHS, DIMENSIONS
from search_spaces.errors import short_error
from search_spaces.proposal import propose_choices

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = 1e-4
"""Largest difference of outputs relative to the largest output, or to one if that is smaller."""
ATTENTIONS = ("sdpa", "eager")
UNITS = {"heads", "cross_heads", "ffn"}
"""Axes: a subnetwork with fewer such units is the stock model that reads zeros from the others."""

BATCH = Workload(batch_size=3, sequence_length=12)

Batch = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Proof:
    """What was tested.

    Attributes:
        dimensions: Dimensions that vary.
        attentions: Attention implementations of transformers.
        subnets: Subnetworks that were compared.
        cached: Whether decoding with a cache was compared too.
    """

    dimensions: tuple[str, ...]
    attentions: tuple[str, ...]
    subnets: int
    cached: bool

    def __str__(self) -> str:
        """What was tested, in words."""
        cached = ", and with a cache" if self.cached else ""
        return (
            f"{self.subnets} random subnetworks of {', '.join(self.dimensions)} compute what they should: with "
            f"padding, in {' and '.join(self.attentions)} attention{cached}"
        )


def alike_text(family: Family) -> str:
    """That a type has no table of its own, and whose it has."""
    return f"no table for `{family.model_type}`; its modules are laid out as those of `{family.alike}`"


def proposed_space(model: PreTrainedModel) -> SearchSpace:
    """The space of a model in which every dimension is open that a recipe without a space would open."""
    layout = Layout(model.config)
    return layout.search_space(propose_choices(layout, Facts(tokens=BATCH.sequence_length or 1)).choices)


def prove_layout(model: PreTrainedModel, task: str, space: SearchSpace) -> Proof:
    """Tests the laws of slicing on random subnetworks of each dimension that is open in a space, and of all together.

    The extracted model has the outputs of the supernet; narrower layers have those of the stock model with the other
    heads and neurons set to zero; a decoder has the same outputs with a cache; the parent is as it was.

    Args:
        model: A stock model of a type in `ADOPTED`; a copy of it is changed.
        task: Its task.
        space: What will vary.

    Raises:
        InputError: If a law does not hold; names the dimension.
    """
    names = [name for name, choices in space.choices.items() if len(choices) > 1]
    tested, n_subnets, cached = list[str](), 0, False
    for attention in ATTENTIONS:
        stock = copy.deepcopy(model).eval()
        try:
            stock.set_attn_implementation(attention)
        except (ValueError, ImportError):
            continue
        tested.append(attention)
        prover = _prover(stock, task)
        for name in [*names, "all together"]:
            part = space if name == "all together" else _only(space, name)
            for subnet in (part.smallest, part.sample(Random(0))):
                prover.check(subnet, name)
                n_subnets += 1
        prover.require_use(space.smallest)
        cached = prover.decodes
    return Proof(tuple(names), tuple(tested), n_subnets, cached)


def _prover(stock: PreTrainedModel, task: str) -> _Prover:
    """What compares subnetworks of a stock model on random inputs of a task.

    Raises:
        LayoutFailure: If the model does not run on them.
    """
    try:
        return _Prover(stock, TASKS[task].outputs, _padded_batch(stock, task))
    except Exception as error:  # whatever an untried model does with inputs that may be those of another
        raise LayoutFailure(
            f"{alike_text(Layout(stock.config).family)}, but it does not run on inputs of the task `{task}` "
            f"({short_error(error).rstrip('.')}); add a table (CONTRIBUTING.md).",
            "",
        ) from error


def _padded_batch(model: PreTrainedModel, task: str) -> Batch:
    """Random inputs; texts are padded to different lengths."""
    inputs = dummy_inputs(task if task in TASK_TYPES else "image-classification", model.config, BATCH)
    for name in (name for name in inputs if name.endswith("attention_mask")):
        for row, padding in enumerate((0, 3, 5)):
            inputs[name][row, inputs[name].shape[1] - padding :] = 0
    return inputs


def _only(space: SearchSpace, name: str) -> SearchSpace:
    """The space in which only one dimension varies."""
    arguments = space.arguments()
    return SearchSpace(**{key: v for key, v in arguments.items() if key not in space.choices or key == name})


class LayoutFailure(InputError):
    """A law of slicing does not hold.

    Attributes:
        dimension: The dimension that varied; empty if all did.
        what: What is wrong with it.
    """

    def __init__(self, message: str, dimension: str, what: str = "") -> None:
        super().__init__(message)
        self.dimension, self.what = dimension, what


def prove_what_holds(model: PreTrainedModel, task: str) -> tuple[Proof, dict[str, LayoutFailure]]:
    """Tests the laws of slicing in the space that a recipe without one would get, without dimensions that break them.

    Args:
        model: As in `prove_layout`.
        task: Its task.

    Returns:
        What was tested, and dimension -> what is wrong with it.

    Raises:
        InputError: If no dimension is left, or a law does not hold in all of those that are left together.
    """
    space, broken = proposed_space(model), dict[str, LayoutFailure]()
    while True:
        try:
            return prove_layout(model, task, space), broken
        except LayoutFailure as failure:
            if not failure.dimension or failure.dimension in DEPTHS:
                raise
            broken[failure.dimension] = failure
            space = _without(space, failure.dimension)


def broken_dimensions(family: Family, task: str) -> dict[str, str]:
    """Dimensions that break a law in a type without a table of its own -> what is wrong; on a tiny random model."""
    if not family.alike:
        return {}
    try:
        model = small_model(family, task)
    except InputError:  # the model itself is proved later
        return {}
    return {name: failure.what for name, failure in prove_what_holds(model, task)[1].items()}


def _without(space: SearchSpace, name: str) -> SearchSpace:
    """The space in which a dimension, and what follows it, stays as in the parent."""
    closed = {name, *(key for key, dimension in DIMENSIONS.items() if dimension.depends_on == name)}
    return SearchSpace(**{key: v for key, v in space.arguments().items() if key not in closed})


class _Prover:
    """Compares subnetworks of one stock model.

    Args:
        stock: The model; it is not changed.
        outputs: Names of its outputs.
        batch: Its inputs.
    """

    def __init__(self, stock: PreTrainedModel, outputs: tuple[str, ...], batch: Batch) -> None:
        self.stock, self.outputs, self.batch = stock, outputs, batch
        self.supernet = Supernet(copy.deepcopy(stock))
        self.supernet.calibration = calibrate(self.supernet, [batch])
        self.decodes = stock.can_generate() and len(self.supernet.layout.depths) == 1

    def check(self, subnet: SubnetConfig, dimension: str) -> None:
        """Raises InputError if a law does not hold for a subnetwork."""
        family, what = self.supernet.family, ""
        try:
            for law, actual, expected in self._laws(subnet, dimension):
                difference = _difference(actual, expected)
                if not difference <= TOLERANCE:
                    what = f"{law} differs by {difference:.2g}"
                    break
        except Exception as error:  # whatever an untried model does with other shapes
            what = f"it does not run ({short_error(error)})"
        if what:
            together = dimension not in DIMENSIONS
            raise LayoutFailure(
                f"{alike_text(family)}, but with {dimension} of {subnet} {what}; leave "
                f"{'a dimension' if together else f'`{dimension}`'} out of `space`, or add a table (CONTRIBUTING.md).",
                "" if together else dimension,
                f"with {subnet} {what}",
            )

    def require_use(self, subnet: SubnetConfig) -> None:
        """Raises InputError if the smallest layers compute what those of the whole model do: they are not run."""
        parent = self.supernet.parent
        self.supernet.activate(subnet.with_values(hidden_size=parent.hidden_size, image_size=parent.image_size))
        if _difference(self._run(self.supernet.model), self._run(self.stock)) <= TOLERANCE:
            why = "but the layers that the table describes do not run on such inputs; add a table (CONTRIBUTING.md)."
            raise LayoutFailure(f"{alike_text(self.supernet.family)}, {why}", "")

    def _laws(self, subnet: SubnetConfig, dimension: str) -> Iterator[tuple[str, Batch, Batch]]:
        supernet, side = self.supernet, int(subnet.image_size) if subnet.changes("image_size") else None
        supernet.activate(supernet.parent)
        yield "the whole model", self._run(supernet.model), self._run(self.stock)
        extracted = supernet.extract(subnet)
        supernet.activate(subnet)
        active = self._run(supernet.model, side)
        yield "what is extracted", self._run(extracted, side), active
        if dimension in DIMENSIONS and UNITS & {*DIMENSIONS[dimension].axes}:
            yield "what is narrower", active, self._run(zeroed(self.stock, supernet.layout, subnet))
        if self.decodes:
            yield "what is cached", self._decoded(extracted), self._at_once(extracted)

    def _run(self, model: PreTrainedModel, side: int | None = None) -> Batch:
        """Outputs; of images, those of a corner with so many pixels a side."""
        batch = {n: value[..., :side, :side] if n == "pixel_values" else value for n, value in self.batch.items()}
        with torch.inference_mode():
            return scored_outputs(model(**batch), self.outputs, batch)

    def _at_once(self, model: PreTrainedModel) -> Batch:
        """Outputs at the last token of complete sequences."""
        with torch.inference_mode():
            outputs = model(input_ids=self.batch["input_ids"])
        return {name: outputs[name][:, -1] for name in self.outputs}

    def _decoded(self, model: PreTrainedModel) -> Batch:
        """The same from a cache of all tokens but the last."""
        ids = self.batch["input_ids"]
        with torch.inference_mode():
            cache: Any = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
            outputs = model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        return {name: outputs[name][:, -1] for name in self.outputs}


def zeroed(stock: PreTrainedModel, layout: Layout, subnet: SubnetConfig) -> PreTrainedModel:
    """A copy of a stock model whose layers do not read the heads and neurons that a subnetwork lacks."""
    model = copy.deepcopy(stock)
    for name, parameter in model.named_parameters():
        location, dim = layout.locate(name), 0 if layout.family.conv1d else parameter.dim() - 1
        if location.stack is None or location.layer is None or not 2 <= parameter.dim() == len(location.axes):
            continue
        if (axis := location.axes[dim]) in UNITS:
            sizes, full = layout.blueprint(subnet).layers[location.layer].sizes, layout.full_sizes[location.stack]
            mask = torch.zeros(parameter.shape[dim])
            mask[layout.shapes.active_rows(axis, sizes, full)] = 1
            parameter.data *= mask[:, None] if dim == 0 else mask
    return model


def _difference(actual: Batch, expected: Batch) -> float:
    """The largest difference relative to the largest output, or to one; NaN where an output is NaN."""
    ratios = [(actual[n] - expected[n]).abs().max() / expected[n].abs().max().clamp(min=1.0) for n in expected]
    return float(torch.stack(ratios).max())
