"""Loads the config and the processor of a model from a hub id or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.modeling.known_layouts import adopt
from nas.modeling.own_code import register_own_code, require_no_rival
from nas.modeling.unfolded import is_export, unfolded_config
from nas.tasks.types import TaskType
from nas.tasks.weights import require_known_weights, require_no_adapter, require_no_quantization
from search_spaces import InputError
from search_spaces.dimensions import DIMENSIONS
from search_spaces.errors import short_error

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def load_config(model: str, trust: bool = False) -> PreTrainedConfig:
    """Loads the config of a hub id or folder.

    Args:
        model: Hub id or folder.
        trust: Whether code that comes with the model may run.

    Raises:
        InputError: If the model does not exist, its config cannot be read, or its code may not run.
    """
    from transformers import AutoConfig

    require_no_adapter(model)
    require_known_weights(model)
    register_own_code(model, trust)
    if trust:
        require_no_rival(model)
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        require_no_quantization(config, model)
        _require_sizes(config, model)
        return config
    except InputError:
        raise
    except Exception as error:
        if Path(model, "config.json").is_file() or "model type" in str(error):
            raise InputError(f"the config.json of model `{model}` cannot be used: {short_error(error)}") from None
        raise InputError(
            f"there is no model `{model}`: it is neither a folder with a config.json nor on the hub; check the "
            "spelling and the connection."
        ) from None


def load_parent_config(model: str, trust: bool = False) -> PreTrainedConfig:
    """The config of a model to be searched; of an export whose layers differ, the stock config that it fits into.

    Raises:
        InputError: As `load_config`; or if no stock model has the outputs of the export.
    """
    config = load_config(model, trust)
    return unfolded_config(config, model) if is_export(config) else config


def _require_sizes(config: PreTrainedConfig, model: str) -> None:
    """Raises InputError if the config of a known family gives a size of zero or below."""
    family = adopt(config.model_type)
    sizes = getattr(config, family.sub_config) if family is not None and family.sub_config else config
    for field in (
        (field for name in DIMENSIONS for field in family.names_in_config(name)) if family is not None else ()
    ):
        value = getattr(sizes, field, None)
        if isinstance(value, int | float) and value < 1:
            raise InputError(
                f"`{field}` must be at least 1, but the config.json of `{model}` has {value}; correct it."
            )


def is_filled_up(model: str) -> bool:
    """Whether a model is an export of ours whose layers differ, so that its parent has zeros in them."""
    from transformers import AutoConfig

    return is_export(AutoConfig.from_pretrained(model, trust_remote_code=False))


def load_processor(task_type: type[TaskType], model: str, trust: bool = False) -> Any:
    """Loads the tokenizer, the image processor or, for speech, the processor of a model.

    A tokenizer without a padding token pads with its end-of-text token.

    Args:
        task_type: What the model reads.
        model: Hub id or folder.
        trust: Whether code that comes with the model may run.

    Raises:
        InputError: If the model has none, or its tokenizer has no vocabulary or no token to pad with.
    """
    import transformers

    auto = getattr(transformers, task_type.processor_class)
    try:
        processor = auto.from_pretrained(model, trust_remote_code=trust, **task_type.processor_kwargs)
    except Exception as error:
        raise InputError(f"model `{model}` has no {auto.__name__[4:]}: {short_error(error)}") from None
    tokenizer = processor if task_type.processor_class == "AutoTokenizer" else getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return processor
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"model `{model}` must have a Tokenizer with a vocabulary, but its vocabulary is empty.")
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise InputError(
            f"the tokenizer of `{model}` must have a padding or an end-of-text token; set `pad_token` in its "
            "tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor
