"""Own code: the classes of a model whose type transformers lacks become those of one of its types, in this process.

They are named by ``auto_map`` in the config.json, and are what ``trust_remote_code=True`` would run. Exports carry
their files, those of `MODELING_FILES`, and `ENTRY`, which has the class of an export for each of them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

from nas.modeling.registration import TYPE_PREFIX
from search_spaces import InputError
from search_spaces.errors import short_error

MODELING_FILES = ("modeling_nas.py", "quantized.py", "compressed_table.py", "sparse_attention.py")
"""Files of `nas.modeling` that travel with exports."""
ENTRY = "nas_own"
"""Module, in an export of a model with code of its own, of the classes of exports."""
ENTRY_TEXT = '''"""The models of this folder: those of its own code, with the edits of `modeling_nas`."""

{imports}
from .modeling_nas import counterparts

globals().update(counterparts(__name__, {names}))
'''
Classes = Mapping[str, Any]
"""Name of an auto class -> the class of a model's own code."""

_registered: dict[str, Classes] = {}


def register_own_code(model: str, trust: bool) -> None:
    """Registers the classes of a model's own code with transformers' auto classes; does nothing if it needs none.

    Args:
        model: Hub id or folder: a model, or an export of one.
        trust: Whether its code may run.

    Raises:
        InputError: If the code may not run, fails, or is of another model than that of the same type before.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = _config_of(model)
    references, model_type = config.get("auto_map"), str(config.get("model_type", "")).removeprefix(TYPE_PREFIX)
    if not isinstance(references, dict) or "AutoConfig" not in references:
        return
    if model_type in _registered:
        return _require_same_code(model, model_type) if trust else None
    if model_type in CONFIG_MAPPING:
        return
    if not trust:
        raise InputError(
            f"`{model}` has a model type that transformers lacks, `{model_type}`, whose code would run "
            f"({_file_of(references['AutoConfig'])}); read it, and set `trust_remote_code=true` (--trust-remote-code) "
            "if you trust who made it."
        )
    try:
        _registered[model_type] = _register(model_type, _classes(model, references))
    except InputError:
        raise
    except Exception as error:  # whatever someone's code does
        raise InputError(f"the code of `{model}` cannot be used: {short_error(error)}") from None


def require_no_rival(model: str) -> None:
    """Raises InputError if a model has code for a type that transformers has too, which would not run."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = _config_of(model)
    model_type, has_code = str(config.get("model_type", "")), "AutoConfig" in (config.get("auto_map") or {})
    is_ours = model_type in _registered or model_type.startswith(TYPE_PREFIX)
    if has_code and model_type in CONFIG_MAPPING and not is_ours:
        raise InputError(
            f"`trust_remote_code` is for types that transformers lacks, but `{model}` is a `{model_type}`, which "
            "transformers has; leave it out, or give its config.json and its code another `model_type`."
        )


def _config_of(model: str) -> dict[str, Any]:
    """The content of a config.json; empty if there is none."""
    from transformers import PreTrainedConfig

    try:
        return dict(PreTrainedConfig.get_config_dict(model)[0])
    except Exception:  # whoever loads it says so
        return {}


def _file_of(reference: Any) -> str:
    """The file of a class in ``auto_map``: ``module.Class``, or ``repository--module.Class``."""
    return f"{str(reference).rpartition('--')[2].partition('.')[0]}.py"


def _require_same_code(model: str, model_type: str) -> None:
    """Raises InputError if a model has other code than that of this type whose code is registered."""
    from transformers.utils import cached_file

    for file in {_source(cls) for cls in _registered[model_type].values()}:
        other = cached_file(model, file.name, _raise_exceptions_for_missing_entries=False)
        if other is not None and Path(other).read_bytes() != file.read_bytes():
            raise InputError(
                f"two models of the type `{model_type}` in one process must have the same code, but `{file.name}` of "
                f"`{model}` differs; use them one after the other."
            )


def _source(cls: Any) -> Path:
    return Path(str(sys.modules[cls.__module__].__file__))


def _classes(model: str, references: Mapping[str, Any]) -> dict[str, Any]:
    """The classes of the models, and of their config: each file is loaded with its own copy of what it imports."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.models.auto import modeling_auto

    found = {}
    for auto, reference in references.items():
        if hasattr(getattr(modeling_auto, auto, None), "register"):
            cls: Any = get_class_from_dynamic_module(reference, model)
            found[auto] = cls.__mro__[1] if reference.startswith(f"{ENTRY}.") else cls
    if not found:
        raise InputError(f"`auto_map` in the config.json of `{model}` must name a class of models, but names none.")
    head_class = next(iter(found.values()))
    return {"AutoModel": _base_class(head_class), **found, "AutoConfig": head_class.config_class}


def _base_class(head_class: Any) -> Any:
    """The class of the model below a head."""
    import torch

    with torch.device("meta"):
        return type(head_class(head_class.config_class()).base_model)


def _register(model_type: str, classes: Classes) -> Classes:
    """Makes the classes those of a type of transformers, and adds the classes of its exports beside them."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import AutoConfig

    from nas.modeling.known_layouts import adopt

    config_class = classes["AutoConfig"]
    if len({cls.__module__.rpartition(".")[0] for cls in classes.values()}) > 1:
        raise InputError("the classes in `auto_map` must be in one file of one folder, but are in several; join them.")
    _add_entry(list(dict.fromkeys([config_class, *classes.values()])))
    AutoConfig.register(model_type, config_class, exist_ok=True)
    config_class.register_for_auto_class()
    for auto, cls in classes.items():  # `AutoModel` first, so that a class with a head is saved as that head's
        if auto != "AutoConfig":
            getattr(modeling_auto, auto).register(config_class, cls, exist_ok=True)
            cls.register_for_auto_class(auto)
    adopt.cache_clear()
    return classes


def _add_entry(classes: Sequence[Any]) -> None:
    """Puts `ENTRY` and `MODELING_FILES` beside the code, where ``save_pretrained`` finds what an export needs.

    In this process the classes of exports are made of `nas.modeling.modeling_nas`, as those of all types are.
    """
    from nas.modeling import modeling_nas

    package, folder = classes[0].__module__.rpartition(".")[0], _source(classes[0]).parent
    imports = "\n".join(sorted(f"from .{cls.__module__.rpartition('.')[2]} import {cls.__name__}" for cls in classes))
    text = ENTRY_TEXT.format(imports=imports, names=", ".join(cls.__name__ for cls in classes))
    for name in MODELING_FILES:
        _write(folder / name, (files("nas.modeling") / name).read_bytes())
    _write(folder / f"{ENTRY}.py", text.encode())
    module: Any = ModuleType(f"{package}.{ENTRY}")
    module.__file__ = str(folder / f"{ENTRY}.py")
    vars(module).update(modeling_nas.counterparts(module.__name__, *classes))
    sys.modules[module.__name__] = module


def _write(file: Path, content: bytes) -> None:
    """Writes a file at once, as other processes may read it."""
    if file.is_file() and file.read_bytes() == content:
        return
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as work:
        work.write(content)
    os.replace(work.name, file)
