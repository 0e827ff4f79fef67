"""The int8 twin of a model: the same weights with every float32 layer quantized (`nas.modeling.quantized`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nas.recipe.objectives import reduced_costs
from nas.runs.run import Run
from nas.supernets.rounded_training import with_stored_weights
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors.measurement.precision import unsupported_reason
from search_spaces import SubnetConfig
from search_spaces.dimensions.bits import FULL_PRECISION, QUANTIZED_FROM_HIDDEN

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INT8 = "int8"


def int8_pays(run: Run, context: TaskContext) -> bool:
    """Whether every workload runs int8 layers on this device, and the model is large enough for them to be faster.

    Not for families whose stock models fold constants into weights: their twins would need them unfolded.
    """
    recipe, family = context.recipe, context.layout.family
    names = reduced_costs(recipe.value_names)
    runs = not any(target.is_remote or unsupported_reason(INT8, target.workload, names) for target in run.targets)
    wide = context.layout.parent.hidden_size >= QUANTIZED_FROM_HIDDEN
    return runs and wide and family.rescale_constants is None


def with_int8(subnet: SubnetConfig) -> SubnetConfig:
    """The subnetwork with int8 in the place of float32."""
    return subnet.with_values(bits=tuple(INT8 if dtype == FULL_PRECISION else dtype for dtype in subnet.bits))


def int8_twin(model: PreTrainedModel, subnet: SubnetConfig, supernet: Supernet) -> PreTrainedModel:
    """A copy of a model with int8 in the place of its float32 layers.

    Args:
        model: A model of this architecture, with weights of its own.
        subnet: Its architecture.
        supernet: A supernet that has it; gives the modules, not the weights.
    """
    return with_stored_weights(model, supernet, with_int8(subnet))
