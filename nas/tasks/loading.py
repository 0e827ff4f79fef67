"""Config and processor by hub id or folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.tasks.types import TaskType
from search_spaces import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def load_config(model: str) -> PreTrainedConfig:
    """The config of a hub id or folder.

    Raises:
        InputError: If there is no such model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if Path(model, "config.json").is_file() or "model type" in str(error):
            raise InputError(
                f"the config.json of model `{model}` cannot be used: {' '.join(str(error).split())[:200]}"
            ) from None
        raise InputError(
            f"there is no model `{model}`: it is not a folder with a config.json, nor found on the hub; check the "
            "spelling and the connection."
        ) from None


def load_processor(task_type: type[TaskType], model: str) -> Any:
    """What makes model inputs: a tokenizer, an image processor or both of a speech model.

    A tokenizer without a padding token pads with its end of text.

    Raises:
        InputError: If there is none, a tokenizer knows no words, or it has nothing to pad with.
    """
    import transformers

    auto = getattr(transformers, task_type.processor_class)
    try:
        processor = auto.from_pretrained(model, **task_type.processor_kwargs)
    except Exception as error:
        raise InputError(f"model `{model}` has no {auto.__name__[4:]}: {' '.join(str(error).split())[:160]}") from None
    tokenizer = processor if task_type.processor_class == "AutoTokenizer" else getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return processor
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise InputError(f"model `{model}` must come with its Tokenizer, but there are no words in its vocabulary.")
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise InputError(
            f"the tokenizer of `{model}` must have a padding or an end token; set `pad_token` in its "
            "tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor
