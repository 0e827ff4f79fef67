"""Own metrics: any function of labels and predictions; the names of its parameters say what it takes."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from nas.recipe.text import split_source
from nas.tasks.data import python_function
from nas.tasks.metrics import ExampleStats, Metric, MetricError, NotFiniteError
from search_spaces import InputError
from search_spaces.errors import short_error

Names = tuple[str, ...]
"""Class names by id."""


def _probabilities(stats: ExampleStats, names: Names) -> np.ndarray:
    """Probabilities (examples, classes)."""
    if "probabilities" not in stats:
        raise InputError("only classification of texts and images has probabilities; take `predictions`.")
    return stats["probabilities"]


def _scores(stats: ExampleStats, names: Names) -> np.ndarray:
    """Probabilities as scikit-learn takes them: of two classes, only those of the second."""
    probabilities = _probabilities(stats, names)
    return probabilities[:, 1] if probabilities.shape[1] == 2 else probabilities


def _flat(what: str, stats: ExampleStats, names: Names) -> np.ndarray:
    """Labels or predictions; those of all tokens joined to one array if each example has several."""
    values = stats[what]
    has_tokens = values.dtype == object and len(values) and isinstance(values[0], np.ndarray)
    return np.concatenate(values) if has_tokens else values


def _tags(what: str, stats: ExampleStats, names: Names) -> list[list[str]]:
    """The tags of each text, by name."""
    return [[names[tag] for tag in tags] for tags in stats[what]]


Argument = Callable[[ExampleStats, Names], Any]
ARGUMENTS: dict[str, Argument] = {
    "probabilities": _probabilities,
    **dict.fromkeys(("y_score", "y_prob", "y_proba"), _scores),
    "true_tags": partial(_tags, "labels"),
    "predicted_tags": partial(_tags, "predictions"),
}
"""Name of a parameter -> what it takes; with another name the first takes the labels, the second the predictions."""

TAGS = (ARGUMENTS["true_tags"], ARGUMENTS["predicted_tags"])
PLAIN: tuple[Argument, Argument] = (partial(_flat, "labels"), partial(_flat, "predictions"))


@cache
def load_metric(source: str, names: Names = ()) -> Metric:
    """Loads a metric that is not built in.

    Args:
        source: ``file.py:function`` or ``package.module:function`` such as ``sklearn.metrics:f1_score``, called with
            labels and predictions, or with what the names of its parameters ask for (see `ARGUMENTS`); functions of
            ``seqeval`` get lists of tags. Or ``evaluate:name`` for a metric of the library `evaluate`, of which the
            score of that name is used, or the first if none has that name.
        names: Class names by id.

    Raises:
        InputError: If it does not exist; when called, if it fails or returns no finite number.
    """
    module, name = split_source(source)
    if source.startswith("evaluate:"):
        return partial(_finite_value, _from_evaluate(source.removeprefix("evaluate:")), PLAIN, names, source)
    function = python_function(Path(module), name, "metric") if module.endswith(".py") else _from_module(module, name)
    arguments = TAGS if module.split(".")[0] == "seqeval" else _arguments(function)
    return partial(_finite_value, function, arguments, names, source)


def _arguments(function: Callable[..., Any]) -> tuple[Argument, ...]:
    """What the parameters of a function take: the first two, and others that ask by their name."""
    try:
        parameters = list(inspect.signature(function).parameters)
    except ValueError:  # a function in C
        return PLAIN
    found = [ARGUMENTS.get(name, plain) for name, plain in zip(parameters, PLAIN, strict=False)]
    more = [ARGUMENTS[name] for name in parameters[2:3] if name in ARGUMENTS]
    return (*found, *more) if len(found) == 2 else PLAIN


def _from_module(module: str, name: str) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"a metric must be `file.py:function`, `package.module:function` such as `sklearn.metrics:f1_score`, or "
            f"`evaluate:name`, but got `{module}:{name}` ({short_error(error)})."
        ) from None


def _from_evaluate(name: str) -> Callable[..., Any]:
    try:
        import evaluate
    except ImportError:
        raise InputError(f"metric `evaluate:{name}` needs the library `evaluate`: pip install evaluate.") from None
    try:
        metric = evaluate.load(name)
    except Exception as error:
        raise InputError(
            f"metric `evaluate:{name}` cannot be loaded ({short_error(error)}); metrics are scripts on the hub: check "
            "the spelling and the connection, or name a local folder."
        ) from None

    def compute(labels: Any, predictions: Any) -> Any:
        scores = metric.compute(references=labels, predictions=predictions)
        return scores.get(Path(name).name, next(iter(scores.values())))

    return compute


def _finite_value(
    function: Callable[..., Any], arguments: tuple[Argument, ...], names: Names, source: str, stats: ExampleStats
) -> float:
    try:
        value = float(function(*(argument(stats, names) for argument in arguments)))
    except Exception as error:
        raise MetricError(f"metric `{source}` fails: {type(error).__name__}: {short_error(error)}") from error
    if not math.isfinite(value):
        raise NotFiniteError(f"a metric must return a finite number, but `{source}` returned {value}.")
    return value
