"""paretoformer: hardware-aware neural architecture search that turns a Hugging Face transformer into a Pareto front.

Names load on first use, so that importing `nas` is quick. Models exported by `nas` load through the auto classes of
transformers without ``trust_remote_code`` once `nas` is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import wrapt

_PUBLIC = {
    "FAMILIES": "search_spaces",
    "Family": "search_spaces",
    "InputError": "search_spaces",
    "SearchSpace": "search_spaces",
    "SubnetConfig": "search_spaces",
    "AnalyticCosts": "predictors",
    "LatencyPredictor": "predictors",
    "MeasurementStore": "predictors",
    "Workload": "predictors",
    "measure": "predictors",
    "Recipe": "nas.recipe.schema",
    "Bound": "nas.recipe.objectives",
    "ParetoFront": "nas.fronts.front",
    "Point": "nas.fronts.point",
    "Supernet": "nas.supernets.supernet",
    "order_by_importance": "nas.supernets.importance",
    "SupernetTrainer": "nas.supernets.supernet_trainer",
    "SurrogateSampler": "nas.samplers.surrogate_sampler",
    "Run": "nas.runs.run",
    "search": "nas.pipeline",
    "profile": "nas.pipeline",
    "export_subnet": "nas.exports.export",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__


@wrapt.when_imported("transformers.models.auto.configuration_auto")
def _register_before_loading(module: Any) -> None:
    """Registers on the first load, not on import, when modules of transformers may still be half-made."""

    @wrapt.patch_function_wrapper(module, "AutoConfig.from_pretrained")
    def from_pretrained(load: Any, _: Any, args: Any, kwargs: Any) -> Any:
        from nas.modeling.known_layouts import adopt_export
        from nas.modeling.registration import register

        register()
        adopt_export(next(iter(args), kwargs.get("pretrained_model_name_or_path")))
        return load(*args, **kwargs)
