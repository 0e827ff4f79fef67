"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): what is trained in place of all weights of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search_spaces import InputError
from search_spaces.errors import short_error

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SCALE = 2
"""What an adapter adds is multiplied by this, whatever its rank (``lora_alpha`` over the rank)."""


def with_adapters(model: PreTrainedModel, rank: int) -> Any:
    """Freezes a model and adds an adapter to every linear layer but those of its head.

    Args:
        model: It is changed in place.
        rank: Of each adapter.

    Returns:
        The model in a wrapper of peft, which trains the adapters and a new head only.

    Raises:
        InputError: If peft is not installed, or the model has no layer that can have an adapter.
    """
    try:
        import peft
    except ImportError:
        raise InputError('`--lora` needs peft, which is not installed: `pip install "paretoformer[lora]"`.') from None
    config = peft.LoraConfig(r=rank, lora_alpha=SCALE * rank, target_modules="all-linear")
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise InputError(
            f"`--lora` needs linear layers in floating point: {short_error(error)}; leave it out."
        ) from None


def merged(adapted: Any) -> PreTrainedModel:
    """The model with the adapters added to its weights, all of which may be trained again."""
    model: PreTrainedModel = adapted.merge_and_unload()
    return model.requires_grad_(True)
