"""Evaluation sets and metrics, compared with scikit-learn, scipy and custom metrics."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_tasks import CASES, Make

from nas.recipe.schema import Recipe
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import EvaluationSet, score, van_der_corput_order


def test_the_first_batches_of_an_evaluation_set_cover_the_lengths(make: Make) -> None:
    context = make("single label")
    splits = context.splits
    examples = EvaluationSet.from_dataset(splits.task.process(splits.task.train, "toy"), splits.task, 4)
    assert len(examples) == 108 and [len(examples.take(n)) for n in (1, 8, 9, 1000)] == [4, 8, 8, 108]
    small, large = examples.take(16), examples.take(40)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(small.batches, large.batches, strict=False))
    lengths = [batch["input_ids"].shape[1] for batch in small.batches]
    assert min(lengths) == 6 and max(lengths) == 8
    assert sorted(van_der_corput_order(27)) == list(range(27)) and van_der_corput_order(8) == [0, 4, 2, 6, 1, 5, 3, 7]


def test_token_f1_is_scikit_learns_without_the_outside_tag(make: Make) -> None:
    from nas.tasks.evaluation import collect_stats

    metrics = pytest.importorskip("sklearn.metrics")
    context = make("tags")
    examples, model = context.splits.test, context.load_model().eval()
    stats = collect_stats(model, examples, ["f1"])
    labels, predictions = (np.concatenate(stats[name]) for name in ("labels", "predictions"))
    inside = [k for k, name in enumerate(context.splits.task.names) if name != "O"]
    expected = metrics.f1_score(labels, predictions, labels=inside, average="micro")
    scores = score(model, examples, ["f1", "accuracy"])
    assert scores["f1"].value == pytest.approx(expected) and scores["accuracy"].value == pytest.approx(
        (labels == predictions).mean()
    )


def test_numbers_are_scored_as_scipy_and_scikit_learn_score_them(make: Make) -> None:
    from nas.tasks.evaluation import collect_stats

    scipy_stats, metrics = pytest.importorskip("scipy.stats"), pytest.importorskip("sklearn.metrics")
    context = make("regression")
    model, examples = context.load_model().eval(), context.splits.test
    stats = collect_stats(model, examples, ["r2"])
    x, y = stats["labels"], stats["predictions"]
    expected = {
        "pearsonr": scipy_stats.pearsonr(x, y)[0],
        "spearmanr": scipy_stats.spearmanr(x, y)[0],
        "mean_squared_error": metrics.mean_squared_error(x, y),
        "mean_absolute_error": metrics.mean_absolute_error(x, y),
        "r2": metrics.r2_score(x, y),
        "loss": metrics.mean_squared_error(x, y),
    }
    scores = {name: each.value for name, each in score(model, examples, list(expected)).items()}
    assert scores == pytest.approx(expected, rel=1e-5)


def test_label_sets_are_scored_as_scikit_learn_scores_them(make: Make) -> None:
    from nas.tasks.evaluation import collect_stats

    metrics = pytest.importorskip("sklearn.metrics")
    context = make("multi-label")
    model, examples = context.load_model().eval(), context.splits.test
    stats = collect_stats(model, examples, ["f1"])
    expected = metrics.f1_score(stats["labels"], stats["predictions"], average="micro")
    scores = score(model, examples, ["f1", "accuracy"])
    assert scores["f1"].value == pytest.approx(expected)
    assert scores["accuracy"].value == pytest.approx(metrics.accuracy_score(stats["labels"], stats["predictions"]))


METRIC = "def length(labels, predictions):\n    return float(len(labels)) + (labels == predictions).mean()\n"


def test_a_custom_metric_is_a_metric_like_others(make: Make, text_folder: Path) -> None:
    (text_folder / "own.py").write_text(METRIC)
    sources = {"mine": "own.py:length", "balanced": "sklearn.metrics:balanced_accuracy_score"}
    context = make("single label", metrics=sources)
    data = {**context.recipe.model_dump(mode="json"), "objectives": {"mine": "minimize", "latency_ms": "minimize"}}
    recipe = Recipe.parse(data)
    assert recipe.primary_metric == "mine" and recipe.metric_names == ["mine"]
    model, examples = context.load_model().eval(), TaskContext(recipe).splits.test
    scores = score(model, examples, ["mine", "accuracy", "balanced"])
    assert scores["mine"].value == pytest.approx(36 + scores["accuracy"].value)
    assert scores["mine"].standard_error == pytest.approx(scores["accuracy"].standard_error)
    assert scores["balanced"].value == pytest.approx(0.5, abs=0.4)


def test_a_metric_of_the_evaluate_library_may_be_a_local_folder(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("evaluate")
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "half.py").write_text(
        "import datasets\n"
        "import evaluate\n"
        "class Half(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        number = datasets.Features({k: datasets.Value('int32') for k in ('predictions', 'references')})\n"
        "        return evaluate.MetricInfo(description='', citation='', inputs_description='', features=number)\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'half': sum(p == r for p, r in zip(predictions, references)) / len(references) / 2}\n"
    )
    context = make("single label", metrics={"half": f"evaluate:{folder}"})
    scores = score(context.load_model().eval(), context.splits.test.take(1), ["half", "accuracy"])
    assert scores["half"].value == pytest.approx(scores["accuracy"].value / 2)


@pytest.mark.parametrize("case", ["answers", "pairs", "masks", "tags"])
def test_a_pickled_evaluation_set_has_no_data_and_scores_the_same(case: str, make: Make) -> None:
    context, names = make(case), [CASES[case][3][0], "loss"]
    model, examples = context.load_model().eval(), context.splits.test
    travelled = pickle.loads(pickle.dumps(examples))
    assert not hasattr(travelled.task, "train") and not hasattr(travelled.task, "test")
    assert score(model, travelled, names) == score(model, examples, names)
