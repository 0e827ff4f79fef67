"""Losses of vectors on what the data says of their similarities: which pairs belong together, or by how much."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from nas.tasks.losses import SIMILARITY_TEMPERATURE


def ranking_loss(vectors: torch.Tensor) -> torch.Tensor:
    """Returns the cross-entropy of each example's second text among those of all examples, given its first.

    Further texts of an example are wrong answers too. The same as `MultipleNegativesRankingLoss` of
    sentence-transformers, also known as InfoNCE (Henderson et al. 2017, arXiv 1705.00652).

    Args:
        vectors: (examples, texts, channels), at least two texts.
    """
    first, *others = F.normalize(vectors, dim=-1).unbind(1)
    similarities = first @ torch.cat(others).T / SIMILARITY_TEMPERATURE
    return F.cross_entropy(similarities, torch.arange(len(first), device=vectors.device))


def order_loss(vectors: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Returns the log of 1 + the sum of exp(lower - higher) over all two pairs with different scores.

    ``lower`` and ``higher`` are the scaled similarities of the pairs with the lower and the higher score. The same as
    `CoSENTLoss` of sentence-transformers: only the order of the scores matters, as it does for Spearman's.

    Args:
        vectors: (examples, 2, channels).
        scores: Of the pairs (examples,).
    """
    similarities = F.cosine_similarity(vectors[:, 0], vectors[:, 1]) / SIMILARITY_TEMPERATURE
    differences = (similarities[:, None] - similarities[None, :])[scores[:, None] < scores[None, :]]
    return torch.logsumexp(torch.cat([differences.new_zeros(1), differences]), 0)
