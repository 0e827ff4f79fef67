"""Metrics of generated texts: counts for each pair of texts, and the metric from their sums.

Each pair is counted once, so that hundreds of bootstrap resamples only add counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from nas.tasks.metrics import ExampleStats, Metric, ratio_of_sums
from search_spaces import InputError

CountFunction = Callable[[Sequence[str], Sequence[str]], ExampleStats]
"""Reference texts, generated texts -> statistics of each pair, arrays (texts, ...)."""


@dataclass(frozen=True)
class GenerationMetric:
    """A metric of generated texts.

    Attributes:
        count: Computes the statistics of each pair of texts.
        metric: Computes the metric from these statistics.
        package: Name of the package that counts, as pip installs it; None if none is needed.
        module: Name under which the package is imported.
    """

    count: CountFunction
    metric: Metric
    package: str | None = None
    module: str | None = None

    def require(self, name: str) -> None:
        """Raises InputError if the package is not installed."""
        if self.module is not None and find_spec(self.module) is None:
            raise InputError(f"metric `{name}` needs the package `{self.package}`: pip install {self.package}.")


def _count_exact(labels: Sequence[str], predictions: Sequence[str]) -> ExampleStats:
    return {"exact": np.array([a.strip() == b.strip() for a, b in zip(labels, predictions, strict=True)], float)}


def _count_rouge(labels: Sequence[str], predictions: Sequence[str]) -> ExampleStats:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(labels, predictions, strict=True)
    return {"rougeL": np.array([scorer.score(a, b)["rougeL"].fmeasure for a, b in pairs])}


def _count_ngrams(labels: Sequence[str], predictions: Sequence[str]) -> ExampleStats:
    from sacrebleu.metrics import BLEU

    scorer = BLEU(effective_order=True)
    scores = [scorer.sentence_score(b, [a]) for a, b in zip(labels, predictions, strict=True)]
    return {"ngrams": np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores])}


def _bleu(stats: ExampleStats) -> float:
    from sacrebleu.metrics import BLEU

    *ngrams, system_length, reference_length = stats["ngrams"].sum(0).tolist()
    return float(BLEU.compute_bleu(ngrams[:4], ngrams[4:], system_length, reference_length, smooth_method="exp").score)


def edits(reference: Sequence[str], other: Sequence[str]) -> int:
    """Fewest substitutions, deletions and insertions that make one sequence of the other (Levenshtein 1966)."""
    columns = np.arange(len(other) + 1)
    distances, items = columns, np.array(other, dtype=object)
    for number, item in enumerate(reference, 1):
        kept = np.minimum(distances[1:] + 1, distances[:-1] + (items != item))
        distances = np.minimum.accumulate(np.concatenate([[number], kept]) - columns) + columns
    return int(distances[-1])


def _error_counter(errors: str, count: str, split: Callable[[str], Sequence[str]]) -> CountFunction:
    """A function that counts the errors in each text, and the items of its reference."""

    def counts(labels: Sequence[str], predictions: Sequence[str]) -> ExampleStats:
        pairs = [(split(a), split(b)) for a, b in zip(labels, predictions, strict=True)]
        return {errors: np.array([edits(a, b) for a, b in pairs]), count: np.array([len(a) for a, _ in pairs])}

    return counts


_count_word_errors = _error_counter("word_errors", "n_words", str.split)
_count_character_errors = _error_counter("character_errors", "n_characters", lambda text: list(text.strip()))


GENERATION_METRICS: dict[str, GenerationMetric] = {
    "exact_match": GenerationMetric(_count_exact, ratio_of_sums("exact", "n_examples")),
    "rougeL": GenerationMetric(_count_rouge, ratio_of_sums("rougeL", "n_examples"), "rouge-score", "rouge_score"),
    "sacrebleu": GenerationMetric(_count_ngrams, _bleu, "sacrebleu", "sacrebleu"),
    "wer": GenerationMetric(_count_word_errors, ratio_of_sums("word_errors", "n_words")),
    "cer": GenerationMetric(_count_character_errors, ratio_of_sums("character_errors", "n_characters")),
}
"""Name -> metric of generated texts: share of exact matches, ROUGE-L (Lin 2004), corpus BLEU from 0 to 100 (Papineni
et al. 2002, as sacreBLEU computes it), word error rate, character error rate."""
