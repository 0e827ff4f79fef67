"""Metrics of generated texts: what is counted of each pair of texts, and the figure of many.

Counting once and adding up makes hundreds of bootstrap resamples cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from nas.tasks.metrics import Found, Metric, mean_of
from search_spaces import InputError

Count = Callable[[Sequence[str], Sequence[str]], Found]
"""Takes the right texts and the generated ones; gives arrays (texts, ...)."""


@dataclass(frozen=True)
class TextMetric:
    """A figure of generated texts.

    Attributes:
        count: What it needs of each pair.
        metric: The figure of what was counted.
        package: The package on the index that counts, None if that is us.
        module: What it is imported as.
    """

    count: Count
    metric: Metric
    package: str | None = None
    module: str | None = None

    def require(self, name: str) -> None:
        """Raises InputError if its package is missing."""
        if self.module is not None and find_spec(self.module) is None:
            raise InputError(f"quality `{name}` needs the package `{self.package}`: pip install {self.package}.")


def _exact(labels: Sequence[str], predictions: Sequence[str]) -> Found:
    return {"exact": np.array([a.strip() == b.strip() for a, b in zip(labels, predictions, strict=True)], float)}


def _rouge(labels: Sequence[str], predictions: Sequence[str]) -> Found:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(labels, predictions, strict=True)
    return {"rougeL": np.array([scorer.score(a, b)["rougeL"].fmeasure for a, b in pairs])}


def _ngrams(labels: Sequence[str], predictions: Sequence[str]) -> Found:
    from sacrebleu.metrics import BLEU

    scorer = BLEU(effective_order=True)
    scores = [scorer.sentence_score(b, [a]) for a, b in zip(labels, predictions, strict=True)]
    return {"ngrams": np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in scores])}


def _bleu(found: Found) -> float:
    from sacrebleu.metrics import BLEU

    *ngrams, written, right = found["ngrams"].sum(0).tolist()
    return float(BLEU.compute_bleu(ngrams[:4], ngrams[4:], written, right, smooth_method="exp").score)


def _word_errors(labels: Sequence[str], predictions: Sequence[str]) -> Found:
    from jiwer import process_words

    found = [process_words(a, b) for a, b in zip(labels, predictions, strict=True)]
    words = [one.hits + one.substitutions + one.deletions for one in found]
    return {
        "word_errors": np.array([one.substitutions + one.deletions + one.insertions for one in found]),
        "words": np.array(words),
    }


TEXT_METRICS: dict[str, TextMetric] = {
    "exact_match": TextMetric(_exact, mean_of("exact", "examples")),
    "rougeL": TextMetric(_rouge, mean_of("rougeL", "examples"), "rouge-score", "rouge_score"),
    "sacrebleu": TextMetric(_ngrams, _bleu, "sacrebleu", "sacrebleu"),
    "wer": TextMetric(_word_errors, mean_of("word_errors", "words"), "jiwer", "jiwer"),
}
"""Name -> a figure of generated texts: share of equal ones, ROUGE-L (Lin 2004), corpus BLEU (Papineni et al. 2002, as
sacreBLEU computes it, 0 to 100), word error rate."""
