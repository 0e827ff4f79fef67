"""Evaluation sets and metrics, compared with scikit-learn, scipy and custom metrics."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_tasks import CASES, Make
from toys import variant

from nas.recipe.objectives import Direction
from nas.recipe.schema import Recipe
from nas.studies.racing import EarlyStopping, stopping_width
from nas.tasks.bootstrap import SAMPLES, standard_error
from nas.tasks.context import TaskContext
from nas.tasks.entities import entities, entity_counts
from nas.tasks.evaluation import EvaluationSet, evaluation_mode, score, score_in_slices
from nas.tasks.metrics import OfClasses, binary_f1, entity_f1, macro_f1, matthews_correlation, roc_auc, top5_accuracy
from nas.tasks.own_metrics import load_metric
from nas.tasks.slices import SHARES, fair_batches, slice_ends, van_der_corput_order
from nas.tasks.types.classification import METRICS, PREDICTIONS
from search_spaces import InputError


def test_a_model_that_keeps_positions_for_the_process_can_be_trained_after_it_was_scored() -> None:
    model, images = variant("beit", image_size=12).model(), torch.randn(2, 3, 12, 12)
    with evaluation_mode(model):
        model(images)
    model(images, labels=torch.tensor([0, 1])).loss.backward()  # BEiT's indices are cached by whoever runs it first


def test_the_first_batches_of_an_evaluation_set_cover_the_lengths(make: Make) -> None:
    context = make("single label")
    splits = context.splits
    examples = EvaluationSet.from_dataset(splits.task.process(splits.task.train, "toy"), splits.task, 4)
    assert len(examples) == 108 and [len(examples.take(n)) for n in (1, 8, 9, 1000)] == [4, 8, 8, 108]
    small, large = examples.take(16), examples.take(40)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(small.batches, large.batches, strict=False))
    lengths = [batch["input_ids"].shape[1] for batch in small.batches]
    assert min(lengths) < max(lengths)
    assert sorted(van_der_corput_order(27)) == list(range(27)) and van_der_corput_order(8) == [0, 4, 2, 6, 1, 5, 3, 7]


def test_rows_that_are_computed_when_read_lie_in_memory_for_one_batch(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make("speech").splits.task
    dataset, read, most = task.process(task.train, "toy"), list[int](), list[int]()

    def collate(rows: list[Any]) -> dict[str, torch.Tensor]:
        most.append(len(read) - sum(most))
        return {"x": torch.zeros(len(rows))}

    class Watched:
        format = dataset.format

        def __len__(self) -> int:
            return len(dataset)

        def __getitem__(self, number: int) -> Any:
            read.append(number)
            return dataset[number]

    monkeypatch.setattr(task, "evaluation_collator", lambda: collate)
    examples = EvaluationSet.from_dataset(Watched(), task, 4)  # type: ignore[arg-type]
    assert sorted(read) == list(range(len(dataset))) and max(most) == 4 and len(examples) == len(dataset)
    assert all(row.keys() == {*task.reference_columns} for group in examples.rows for (row,) in group)


def test_a_set_too_large_for_memory_is_read_anew_in_every_pass(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make("speech")
    model, task = context.load_model(), context.splits.task
    dataset = task.process(task.test, "toy")
    kept = EvaluationSet.from_dataset(dataset, task, 4)
    monkeypatch.setattr("nas.tasks.evaluation.KEPT_BYTES", 0)
    read = EvaluationSet.from_dataset(dataset, task, 4)
    assert isinstance(kept.collated, tuple) and read.collated[0] is not read.collated[0], "a batch stays in memory"
    assert len(read.batches) == len(kept.batches) and len(read.take(4).batches) == 1
    assert score(model, read, ["loss"]) == score(model, kept, ["loss"])
    assert [s for _, s in score_in_slices(model, read, ["loss"], SHARES)] == [
        s for _, s in score_in_slices(model, kept, ["loss"], SHARES)
    ]
    texts = make("single label").splits
    assert isinstance(EvaluationSet.from_dataset(texts.train, texts.task).collated, tuple), "as long as its rows"


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("examples", [1, 5, 64, 1000])
def test_batches_hold_each_example_once_and_lengths_that_are_similar(examples: int, size: int) -> None:
    lengths = np.random.default_rng(1).integers(1, 100, examples)
    batches = fair_batches(lengths.tolist(), size)
    assert sorted(number for batch in batches for number in batch) == list(range(examples))
    assert len(batches) == -(-examples // size) and max(map(len, batches)) <= size
    begin = slice_ends(len(batches))[-2] if len(batches) > 7 else 0
    padded = sum(max(lengths[batch]) * len(batch) for batch in batches[begin:])
    assert padded <= 1.2 * sum(lengths[batch].sum() for batch in batches[begin:]) or len(batches[begin:]) < 7


@pytest.mark.parametrize(
    "share_right", [lambda q: 0.7 + 0.2 * q, lambda q: 0.95 - 0.35 * q, lambda q: 0.9 - 0.4 * (q < 0.1)]
)
def test_a_candidate_as_good_as_the_front_is_stopped_as_rarely_as_stated(share_right: Callable[..., Any]) -> None:
    """Where short examples are harder or easier than long ones."""
    rng, quantiles = np.random.default_rng(0), np.linspace(0, 1, 1000)
    batches, stopped, trials = fair_batches(list(range(1000)), 64), 0, 400
    width = stopping_width(0.99)
    objectives: dict[str, Direction] = {"accuracy": "maximize", "latency_ms": "minimize"}
    for _ in range(trials):
        right = rng.random(1000) < share_right(quantiles)
        front = np.array([[-right.mean(), 1.0]])
        racing = EarlyStopping(objectives, {}, {"latency_ms": 2.0}, front, width)
        for end in slice_ends(len(batches))[:-1]:
            rows = [number for batch in batches[:end] for number in batch]
            value, n = right[rows].mean(), len(rows)
            if racing.cannot_reach_front({"accuracy": (value, (value * (1 - value) / n) ** 0.5)}, n / 1000):
                stopped += 1
                break
    assert stopped / trials <= 0.02


def test_skewed_values_are_stopped_as_rarely_as_stated() -> None:
    """The mean of few of them is low where their spread is low too, so a standard error of these few is too small."""
    drawn, width, stopped = np.random.default_rng(0).gamma(4, size=(4000, 1000)), stopping_width(0.99), 0
    for values in drawn:
        racing = EarlyStopping({"loss": "maximize"}, {}, {}, np.array([[-values.mean()]]), width)
        slices = (values[: round(share * len(values))] for share in SHARES)
        scores = ((part.mean(), part.std(ddof=1) / len(part) ** 0.5, len(part) / 1000) for part in slices)
        stopped += any(racing.cannot_reach_front({"loss": (value, error)}, share) for value, error, share in scores)
    assert 0 < stopped / len(drawn) <= 0.01


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


# -- classes ----------------------------------------------------------------------------------------------------------


def class_stats(labels: list[int], n_classes: int, noise: float = 1.0) -> dict[str, np.ndarray]:
    """Statistics of a classifier that is right more often than not."""
    ids, rng = np.array(labels), np.random.default_rng(1)
    logits = noise * rng.normal(size=(len(ids), n_classes)) + np.eye(n_classes)[ids]
    return {"labels": ids, **PREDICTIONS["single_label_classification"](ids, logits)}


RANDOM_LABELS = {n: np.random.default_rng(0).integers(0, n, 300).tolist() for n in (2, 3, 12)}


@pytest.mark.parametrize("n_classes", RANDOM_LABELS)
def test_classes_are_scored_as_scikit_learn_scores_them(n_classes: int) -> None:
    scikit = pytest.importorskip("sklearn.metrics")
    stats = class_stats(RANDOM_LABELS[n_classes], n_classes)
    y, predicted, probabilities = (stats[name] for name in ("labels", "predictions", "probabilities"))
    assert macro_f1(stats) == pytest.approx(scikit.f1_score(y, predicted, average="macro"))
    assert matthews_correlation(stats) == pytest.approx(scikit.matthews_corrcoef(y, predicted))
    scores = probabilities[:, 1] if n_classes == 2 else probabilities
    assert roc_auc(stats) == pytest.approx(scikit.roc_auc_score(y, scores, multi_class="ovr"))
    if n_classes == 2:
        assert binary_f1(stats) == pytest.approx(scikit.f1_score(y, predicted))
    if n_classes > 5:
        assert top5_accuracy(stats) == pytest.approx(scikit.top_k_accuracy_score(y, probabilities, k=5))


def test_one_class_has_no_area_under_the_curve() -> None:
    with pytest.raises(InputError, match="must have examples of two classes"):
        roc_auc(class_stats([1] * 20, 2))


@pytest.mark.parametrize("metric", [macro_f1, roc_auc], ids=["f1", "roc_auc"])
def test_resamples_that_lack_a_class_are_left_out(metric: OfClasses) -> None:
    labels = [2] * 3 + [1] * 197 + [0] * 200
    stats = class_stats(labels, 3, noise=0.2)
    stats["predictions"][:3] = 0  # the rare class is never found: without it, a resample has half as much F1 again
    error, left_out = standard_error(metric, stats)
    draws = np.random.default_rng(0).integers(0, 400, (SAMPLES, 400))
    complete = [rows for rows in draws if (rows < 3).any()]
    assert left_out == SAMPLES - len(complete) > 0
    values = [metric.compute({name: values[rows] for name, values in stats.items()}) for rows in complete]
    assert error == pytest.approx(np.std(values, ddof=1))
    if metric is macro_f1:
        everything = [metric.compute({name: values[rows] for name, values in stats.items()}) for rows in draws]
        assert np.std(everything, ddof=1) > 5 * error


def test_many_rare_classes_count_where_they_occur() -> None:
    several = class_stats([0] * 200 + list(range(1, 12)), 12, noise=0.5)
    single = class_stats(list(range(60)), 150, noise=0.5)  # most predictions are classes that no example has
    for stats in (several, single):
        error, left_out = standard_error(macro_f1, stats)
        draws = np.random.default_rng(0).integers(0, len(stats["labels"]), (SAMPLES, len(stats["labels"])))
        values = [macro_f1({name: values[rows] for name, values in stats.items()}) for rows in draws]
        assert left_out == 0 and error == pytest.approx(np.std(values, ddof=1))


class Recorded(dict[str, np.ndarray]):
    """Statistics that remember which of them were read."""

    def __init__(self, stats: dict[str, np.ndarray]) -> None:
        super().__init__(stats)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        self.read.add(name)
        return super().__getitem__(name)


def test_a_bootstrap_reads_only_what_the_metric_needs() -> None:
    stats = Recorded({**class_stats(RANDOM_LABELS[3], 3), "loss": np.ones(300)})
    assert standard_error(macro_f1, stats)[0] > 0
    assert stats.read == {"labels", "predictions"}


def test_an_own_metric_may_be_undefined_on_some_resamples(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    (tmp_path / "own.py").write_text(
        "from sklearn.metrics import roc_auc_score\n"
        "def area(labels, probabilities):\n"
        "    assert len(set(labels)) == 2\n"
        "    return roc_auc_score(labels, probabilities[:, 1])\n"
        "def never(labels, predictions):\n"
        "    return 1.0 if list(labels) == sorted(labels) and len(set(labels)) == 2 else float('nan')\n"
    )
    stats = class_stats([0] * 60 + [1, 1], 2)
    for source in (f"{tmp_path / 'own.py'}:area", "sklearn.metrics:roc_auc_score"):
        own = load_metric(source)
        assert own(stats) == pytest.approx(roc_auc(stats))
        assert standard_error(own, stats)[0] == pytest.approx(standard_error(roc_auc, stats)[0])
    with pytest.raises(InputError, match="must be defined on resamples of the examples"):
        standard_error(load_metric(f"{tmp_path / 'own.py'}:never"), stats)


def test_a_slice_without_a_class_is_no_end_of_the_evaluation(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make("single label")
    model, examples = context.load_model().eval(), context.splits.test
    counts = [count for count, _ in score_in_slices(model, examples, ["accuracy"], [0.2, 0.5])]

    def area(stats: Mapping[str, np.ndarray]) -> float:
        if len(stats["labels"]) < counts[-1]:
            raise InputError("`roc_auc` must have examples of two classes")
        return 0.5

    monkeypatch.setitem(METRICS["single_label_classification"], "roc_auc", area)
    assert [count for count, _ in score_in_slices(model, examples, ["roc_auc"], [0.2, 0.5])] == counts[-1:]


# -- entities ---------------------------------------------------------------------------------------------------------

NER = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("I-PER I-LOC I-LOC B-LOC", {("PER", 0, 0), ("LOC", 1, 2), ("LOC", 3, 3)}),
        ("B-PER B-PER I-LOC", {("PER", 0, 0), ("PER", 1, 1), ("LOC", 2, 2)}),
        ("S-PER B-LOC E-LOC S-LOC I-LOC", {("PER", 0, 0), ("LOC", 1, 2), ("LOC", 3, 3), ("LOC", 4, 4)}),
        ("O O", set()),
    ],
)
def test_entities_are_read_from_tags(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


def test_entities_are_scored_as_seqeval_scores_them() -> None:
    seqeval = pytest.importorskip("seqeval.metrics")
    rng = np.random.default_rng(0)
    labels, predictions = ([rng.integers(0, 5, n) for n in range(1, 60)] for _ in range(2))
    mixed = [np.where(rng.random(len(a)) < 0.3, b, a) for a, b in zip(labels, predictions, strict=True)]
    for predicted in (predictions, mixed):
        named = [[[NER[tag] for tag in text] for text in texts] for texts in (labels, predicted)]
        assert entity_f1(entity_counts(labels, predicted, NER)) == pytest.approx(seqeval.f1_score(*named))


def test_half_of_an_entity_is_no_entity(make: Make) -> None:
    labels = [np.array([1, 2, 2, 2, 0])] * 3
    halves = [np.array([1, 2, 2, 0, 0])] * 3
    assert (
        entity_f1(entity_counts(labels, halves, NER)) == 0.0 and entity_f1(entity_counts(labels, labels, NER)) == 1.0
    )
    context = make("tags")
    scores = score(context.load_model().eval(), context.splits.test, ["entity_f1", "f1"])
    assert 0 <= scores["entity_f1"].value <= 1


def test_an_own_metric_may_take_tags(make: Make, text_folder: Path) -> None:
    (text_folder / "own.py").write_text(
        "def texts(true_tags, predicted_tags):\n"
        "    assert all(isinstance(tag, str) for tags in true_tags for tag in tags)\n"
        "    return sum(len(a) == len(b) for a, b in zip(true_tags, predicted_tags)) / 2\n"
    )
    context = make("tags", metrics={"texts": "own.py:texts"})
    examples = context.splits.test
    assert score(context.load_model().eval(), examples, ["texts"])["texts"].value == len(examples) / 2
