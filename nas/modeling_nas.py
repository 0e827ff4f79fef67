"""Hugging Face models whose layers differ: a stock model plus the list of edits in ``config.nas_arch``.

This file is copied beside the weights of an exported subnetwork and needs torch and transformers only. Any stock
class has its counterpart here by name: ``NasBertForSequenceClassification`` is ``BertForSequenceClassification`` with
the edits applied before the weights are loaded.
"""

from typing import Any

import transformers
from torch import nn

PREFIX = "Nas"


def apply_arch(model: nn.Module, arch: dict[str, Any]) -> None:
    """Edits a stock model in place; paths are relative to its base model, so that every head shares one list.

    Args:
        model: A stock model, on any device (``from_pretrained`` builds it on ``meta``).
        arch: ``linear``: path -> [in_features, out_features] of the linear layer that takes its place.
            ``attributes``: path -> {attribute: value}.
    """
    root: Any = model.base_model
    for path, (in_features, out_features) in arch["linear"].items():
        parent, _, name = path.rpartition(".")
        stock = root.get_submodule(path)
        new = nn.Linear(in_features, out_features, bias=stock.bias is not None, dtype=stock.weight.dtype)
        setattr(root.get_submodule(parent), name, new.to(stock.weight.device))
    for path, attributes in arch["attributes"].items():
        for name, value in attributes.items():
            setattr(root.get_submodule(path), name, value)


def _nas_config(stock: Any) -> type:
    return type(PREFIX + stock.__name__, (stock,), {"model_type": f"nas_{stock.model_type}", "__module__": __name__})


def _nas_model(stock: Any) -> type:
    config_class = globals_getattr(PREFIX + stock.config_class.__name__)

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)
        if getattr(config, "nas_arch", None):
            apply_arch(self, config.nas_arch)
            self.post_init()

    return type(
        PREFIX + stock.__name__,
        (stock,),
        {"__init__": __init__, "config_class": config_class, "__module__": __name__, "__doc__": stock.__doc__},
    )


def globals_getattr(name: str) -> Any:
    """A class of this module by name, made on first use."""
    stock = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if stock is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in globals():
        globals()[name] = _nas_config(stock) if hasattr(stock, "model_type") else _nas_model(stock)
    return globals()[name]


__getattr__ = globals_getattr
