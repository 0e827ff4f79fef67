"""Metrics: computes a metric from statistics of each example; built-in ones by name, others from any function."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nas.recipe.text import split_source
from nas.tasks.data import python_function
from search_spaces import InputError
from search_spaces.errors import short_error

ExampleStats = Mapping[str, np.ndarray]
"""Name -> a statistic of each example, array (examples, ...): ``labels``, ``predictions``, ``loss`` and others."""

Metric = Callable[[ExampleStats], float]


def ratio_of_sums(total: str, count: str) -> Metric:
    """Returns a metric that divides the sum of one statistic by the sum of another, such as loss by tokens."""
    return lambda stats: float(stats[total].sum() / max(stats[count].sum(), 1))


def mean_of(name: str) -> Metric:
    """Returns a metric that is the mean of a statistic over the examples."""
    return lambda stats: float(stats[name].mean())


def perplexity(stats: ExampleStats) -> float:
    """Exponential of the mean loss per token."""
    return math.exp(min(ratio_of_sums("loss", "n_scored")(stats), 700.0))


def micro_f1(stats: ExampleStats) -> float:
    """F1 over all decisions: ``true_positives``, ``predicted_positives``, ``actual_positives`` of each example."""
    total = stats["predicted_positives"].sum() + stats["actual_positives"].sum()
    return float(2 * stats["true_positives"].sum() / total) if total else 1.0


def accuracy(stats: ExampleStats) -> float:
    """Share of examples of which all labels are correct."""
    same = stats["labels"] == stats["predictions"]
    return float(same.reshape(len(same), -1).all(1).mean())


def f1(stats: ExampleStats) -> float:
    """F1 of the second of two classes, or the macro F1 of several classes."""
    from sklearn.metrics import f1_score

    return float(f1_score(stats["labels"], stats["predictions"], average="binary" if is_binary(stats) else "macro"))


def is_binary(stats: ExampleStats) -> bool:
    """Whether there are two classes."""
    return bool(stats["logits"].shape[1] == 2)


def matthews_correlation(stats: ExampleStats) -> float:
    """Matthews correlation coefficient of classes."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(stats["labels"], stats["predictions"]))


def pearsonr(stats: ExampleStats) -> float:
    """Pearson correlation of numbers; 0 if all predictions are equal."""
    x, y = stats["labels"] - stats["labels"].mean(), stats["predictions"] - stats["predictions"].mean()
    scale = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / scale) if scale else 0.0


def spearmanr(stats: ExampleStats) -> float:
    """Spearman rank correlation of numbers; 0 if all predictions are equal."""
    from scipy.stats import rankdata

    return pearsonr({name: rankdata(stats[name]) for name in ("labels", "predictions")})


def mean_absolute_error(stats: ExampleStats) -> float:
    """Mean absolute difference between predictions and labels."""
    return float(np.abs(stats["labels"] - stats["predictions"]).mean())


def r2(stats: ExampleStats) -> float:
    """Coefficient of determination: the share of the variance that the predictions explain."""
    from sklearn.metrics import r2_score

    return float(r2_score(stats["labels"], stats["predictions"]))


@cache
def load_metric(source: str) -> Metric:
    """Loads a metric that is not built in.

    Args:
        source: ``file.py:function`` or ``package.module:function`` such as ``sklearn.metrics:f1_score``, called with
            labels and predictions like a metric of scikit-learn; or ``evaluate:name`` for a metric of the library
            `evaluate`, of which the score of that name is used, or the first if none has that name.

    Raises:
        InputError: If it does not exist; when called, if it fails or returns no finite number.
    """
    module, name = split_source(source)
    if source.startswith("evaluate:"):
        function = _from_evaluate(source.removeprefix("evaluate:"))
    elif module.endswith(".py"):
        function = python_function(Path(module), name, "metric")
    else:
        function = _from_module(module, name)
    return lambda stats: _finite_value(function, stats, source)


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


def _finite_value(function: Callable[..., Any], stats: ExampleStats, source: str) -> float:
    try:
        value = float(function(_flatten_tokens(stats["labels"]), _flatten_tokens(stats["predictions"])))
    except Exception as error:
        raise InputError(f"metric `{source}` fails: {type(error).__name__}: {short_error(error)}") from error
    if not math.isfinite(value):
        raise InputError(f"a metric must return a finite number, but `{source}` returned {value}.")
    return value


def _flatten_tokens(values: np.ndarray) -> np.ndarray:
    """Joins the labels of all tokens to one array if each example has several."""
    has_tokens = values.dtype == object and len(values) and isinstance(values[0], np.ndarray)
    return np.concatenate(values) if has_tokens else values


def object_array(values: list[Any]) -> np.ndarray:
    """Returns an object array (examples,) of texts, lists or arrays."""
    out = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        out[index] = value
    return out
