"""Metrics: figures of quality from what was found of each example, ours by name or a function from anywhere."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nas.recipe.text import split_source
from nas.tasks.data import one_line, python_function
from search_spaces import InputError

Found = Mapping[str, np.ndarray]
"""Name -> what was found of each example (examples, ...): ``labels``, ``predictions``, ``loss`` and others."""

Metric = Callable[[Found], float]


def mean_of(total: str, count: str) -> Metric:
    """The sum of one thing found over the sum of another, such as the loss of all tokens over their number."""
    return lambda found: float(found[total].sum() / max(found[count].sum(), 1))


def perplexity(found: Found) -> float:
    """Exponential of the mean loss of a token."""
    return math.exp(min(mean_of("loss", "scored")(found), 700.0))


def micro_f1(found: Found) -> float:
    """F1 of all decisions together, from the ``hits``, ``guesses`` and ``truths`` of each example."""
    both = found["guesses"].sum() + found["truths"].sum()
    return float(2 * found["hits"].sum() / both) if both else 1.0


def accuracy(found: Found) -> float:
    """Share of examples whose every label is right."""
    same = found["labels"] == found["predictions"]
    return float(same.reshape(len(same), -1).all(1).mean())


def f1(found: Found) -> float:
    """F1 of the second of two classes, or the mean F1 of more of them."""
    from sklearn.metrics import f1_score

    return float(f1_score(found["labels"], found["predictions"], average="binary" if binary(found) else "macro"))


def binary(found: Found) -> bool:
    """Whether there are two classes."""
    return bool(found["logits"].shape[1] == 2)


def matthews_correlation(found: Found) -> float:
    """Matthews correlation of classes."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(found["labels"], found["predictions"]))


def pearsonr(found: Found) -> float:
    """Pearson correlation of numbers; 0 for predictions that are all the same."""
    x, y = found["labels"] - found["labels"].mean(), found["predictions"] - found["predictions"].mean()
    scale = math.sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / scale) if scale else 0.0


def spearmanr(found: Found) -> float:
    """Spearman rank correlation of numbers; 0 for predictions that are all the same."""
    from scipy.stats import rankdata

    return pearsonr({name: rankdata(found[name]) for name in ("labels", "predictions")})


def mean_absolute_error(found: Found) -> float:
    """Mean distance of a prediction from its number."""
    return float(np.abs(found["labels"] - found["predictions"]).mean())


def r2(found: Found) -> float:
    """Share of the variance that is explained."""
    from sklearn.metrics import r2_score

    return float(r2_score(found["labels"], found["predictions"]))


@cache
def load_metric(source: str) -> Metric:
    """A metric from outside.

    Args:
        source: ``file.py:function`` or ``package.module:function`` such as ``sklearn.metrics:f1_score``, called with
            labels and predictions as scikit-learn's are, or ``evaluate:name`` for one of the library `evaluate`, of
            which the score of that name, or else the first, is taken.

    Raises:
        InputError: If there is none, or, when called, if it fails or gives no number.
    """
    place, name = split_source(source)
    if source.startswith("evaluate:"):
        function = _from_evaluate(source.removeprefix("evaluate:"))
    elif place.endswith(".py"):
        function = python_function(Path(place), name, "metric")
    else:
        function = _from_module(place, name)
    return lambda found: _number(function, found, source)


def _from_module(module: str, name: str) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"a metric must be `file.py:function`, `package.module:function` such as `sklearn.metrics:f1_score`, or "
            f"`evaluate:name`, but got `{module}:{name}` ({one_line(error)})."
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
            f"metric `evaluate:{name}` cannot be loaded ({one_line(error)}); it is a script on the hub: check the "
            "spelling and the connection, or give a local folder."
        ) from None

    def compute(labels: Any, predictions: Any) -> Any:
        scores = metric.compute(references=labels, predictions=predictions)
        return scores.get(Path(name).name, next(iter(scores.values())))

    return compute


def _number(function: Callable[..., Any], found: Found, source: str) -> float:
    try:
        value = float(function(_joined(found["labels"]), _joined(found["predictions"])))
    except Exception as error:
        raise InputError(f"metric `{source}` fails: {type(error).__name__}: {one_line(error)}") from error
    if not math.isfinite(value):
        raise InputError(f"a metric must give a number, but `{source}` gave {value}.")
    return value


def _joined(values: np.ndarray) -> np.ndarray:
    """What a metric is called with: the labels of all tokens one after the other where an example has many."""
    tokens = values.dtype == object and len(values) and isinstance(values[0], np.ndarray)
    return np.concatenate(values) if tokens else values


def objects(values: list[Any]) -> np.ndarray:
    """An array (examples,) of texts, lists or arrays."""
    out = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        out[place] = value
    return out
