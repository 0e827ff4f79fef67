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


def _count_word_errors(labels: Sequence[str], predictions: Sequence[str]) -> ExampleStats:
    from jiwer import process_words

    alignments = [process_words(a, b) for a, b in zip(labels, predictions, strict=True)]
    words = [alignment.hits + alignment.substitutions + alignment.deletions for alignment in alignments]
    return {
        "word_errors": np.array(
            [alignment.substitutions + alignment.deletions + alignment.insertions for alignment in alignments]
        ),
        "n_words": np.array(words),
    }


GENERATION_METRICS: dict[str, GenerationMetric] = {
    "exact_match": GenerationMetric(_count_exact, ratio_of_sums("exact", "n_examples")),
    "rougeL": GenerationMetric(_count_rouge, ratio_of_sums("rougeL", "n_examples"), "rouge-score", "rouge_score"),
    "sacrebleu": GenerationMetric(_count_ngrams, _bleu, "sacrebleu", "sacrebleu"),
    "wer": GenerationMetric(_count_word_errors, ratio_of_sums("word_errors", "n_words"), "jiwer", "jiwer"),
}
"""Name -> metric of generated texts: share of exact matches, ROUGE-L (Lin 2004), corpus BLEU from 0 to 100 (Papineni
et al. 2002, as sacreBLEU computes it), word error rate."""
