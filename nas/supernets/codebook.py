"""Codebooks of a product quantization: k-means on the parts of a table's rows (Lloyd 1982)."""

from __future__ import annotations

import torch

from nas.modeling.quantized import in_groups

ROWS_PER_VECTOR = 64
"""Rows of the table, drawn at random, that k-means sees for each vector of a codebook."""

STEPS = 15
"""Steps of k-means; later ones move the vectors little."""


def fit_codebook(table: torch.Tensor, part: int, vectors: int) -> torch.Tensor:
    """Fits a codebook for each part of the rows of a table.

    Args:
        table: (rows, channels); with fewer rows than vectors, some vectors are equal.
        part: Channels of a part; the last one is filled up with zeros.
        vectors: Vectors of each codebook.

    Returns:
        (parts, vectors, part) in the dtype of the table. The same table gives the same codebook.
    """
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    rows = table[order[: ROWS_PER_VECTOR * vectors].to(table.device)].float()
    points = in_groups(rows, part).transpose(0, 1)
    return torch.stack([_k_means(some, vectors) for some in points]).to(table.dtype)


def _k_means(points: torch.Tensor, vectors: int) -> torch.Tensor:
    """Means (vectors, channels) of points (n, channels) in random order; one without points stays where it is."""
    means = points[torch.arange(vectors, device=points.device) % len(points)]
    for _ in range(STEPS):
        nearest = (means.square().sum(1) - 2 * points @ means.T).argmin(1)
        counts = torch.bincount(nearest, minlength=vectors)[:, None]
        sums = torch.zeros_like(means).index_add_(0, nearest, points)
        means = torch.where(counts > 0, sums / counts.clamp(min=1), means)
    return means
