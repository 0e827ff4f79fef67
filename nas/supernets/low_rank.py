"""Low-rank bases: the directions of a linear layer's outputs with the largest energy on calibration data.

With the top eigenvectors U_r of the second moment of a layer's outputs, U_r U_r^T W is the matrix of rank r that
changes these outputs least. It equals the truncated SVD of the weight on whitened inputs (Wang et al. 2024, SVD-LLM,
arXiv 2403.07378). The ranks are nested, and gradients reach W. An embedding table is such a layer too: its inputs are
one-hot tokens, so the frequency of a token is the weight of its row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

STATISTICS_FILE = "activations.safetensors"
TOKEN_SMOOTHING = 0.1
"""Count added to every token (additive smoothing): calibration data holds only a part of the vocabulary."""
CHUNK_SIZE = 8192
"""Rows of a table that are converted to float64 at a time."""


@dataclass(frozen=True)
class CalibrationStatistics:
    """Second moments of the inputs of linear layers, with the weights at the time of the calibration.

    Attributes:
        moments: Name of a weight -> mean of x x^T over its inputs x (inputs, inputs), float32 or
            that of a model in float64; `calibrate` and `load` return `SymmetricMatrices`.
        weights: Name of a weight -> a copy of it (outputs, inputs).
        embedding: Mean of e e^T over the embeddings e of tokens (channels, channels), float64; None if the embedding
            has no elastic rank.
        compensates: Whether what remains of a narrower layer takes over what is left out (see `compensation`).
    """

    moments: Mapping[str, torch.Tensor]
    weights: Mapping[str, torch.Tensor]
    embedding: torch.Tensor | None = None
    compensates: bool = False

    def save(self, folder: Path) -> None:
        """Writes `STATISTICS_FILE`: the upper triangle of each symmetric moment in float32; equal moments once.

        Layers with the same inputs, such as query, key and value projections, have equal moments.
        """
        from safetensors.torch import save_file

        moments = self.moments
        if not isinstance(moments, SymmetricMatrices):
            moments = SymmetricMatrices.of((name, upper_triangle(moment)) for name, moment in moments.items())
        tensors = {f"halves:{name}": triangle.float() for name, triangle in moments.triangles.items()}
        tensors |= {f"weights:{name}": weight.contiguous() for name, weight in self.weights.items()}
        if self.embedding is not None:
            tensors["embedding:"] = upper_triangle(self.embedding).float()
        metadata = {"moments": json.dumps(moments.stored_under), "compensates": json.dumps(self.compensates)}
        save_file(tensors, folder / STATISTICS_FILE, metadata=metadata)

    @classmethod
    def load(cls, folder: Path) -> CalibrationStatistics | None:
        """Loads the statistics in a folder; None if it has none."""
        from safetensors import safe_open

        if not (folder / STATISTICS_FILE).exists():
            return None
        file = folder / STATISTICS_FILE
        with safe_open(file, "pt") as stored:
            metadata, names = stored.metadata() or {}, list(stored.keys())
        moments, halves, weights, embedding = (
            _InFile(file, f"{group}:", tuple(name.partition(":")[2] for name in names if name.startswith(f"{group}:")))
            for group in ("moments", "halves", "weights", "embedding")
        )
        stored_under = json.loads(metadata.get("moments", "{}"))
        return cls(
            SymmetricMatrices(halves, stored_under) if stored_under else moments,
            weights,
            next((_from_upper_triangle(triangle.double()) for triangle in embedding.values()), None),
            json.loads(metadata.get("compensates", "false")),
        )


@dataclass(frozen=True)
class _InFile(Mapping[str, torch.Tensor]):
    """Tensors in a file: each is read whenever it is asked for, and none is kept.

    Attributes:
        file: A safetensors file.
        prefix: Start of their names in the file.
        names: Their names without it.
    """

    file: Path
    prefix: str
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        if name not in self.names:
            raise KeyError(name)
        with safe_open(self.file, "pt") as stored:
            tensor: torch.Tensor = stored.get_tensor(self.prefix + name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class SymmetricMatrices(Mapping[str, torch.Tensor]):
    """Symmetric matrices by name, in half of their memory: a whole one is made when it is read.

    Attributes:
        triangles: Name -> upper triangle of a matrix, row by row.
        stored_under: Name of a matrix -> that of its triangle.
    """

    triangles: Mapping[str, torch.Tensor]
    stored_under: Mapping[str, str]

    @classmethod
    def of(cls, named: Iterable[tuple[str, torch.Tensor]]) -> SymmetricMatrices:
        """Collects the triangles of matrices one after another, equal ones that follow each other once."""
        triangles: dict[str, torch.Tensor] = {}
        stored_under: dict[str, str] = {}
        for name, triangle in named:
            first = next((other for other in list(triangles)[-2:] if torch.equal(triangles[other], triangle)), name)
            triangles[first], stored_under[name] = triangle, first
        return cls(triangles, stored_under)

    def __getitem__(self, name: str) -> torch.Tensor:
        return _from_upper_triangle(self.triangles[self.stored_under[name]])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored_under)

    def __len__(self) -> int:
        return len(self.stored_under)


def upper_triangle(rows: Iterable[torch.Tensor]) -> torch.Tensor:
    """Returns the upper triangle of a symmetric matrix, row by row.

    Args:
        rows: Of the matrix, from the diagonal on or from any column before it.
    """
    kept = list(rows)
    return torch.cat([row[len(row) - len(kept) + number :] for number, row in enumerate(kept)])


def _from_upper_triangle(triangle: torch.Tensor) -> torch.Tensor:
    """Restores the symmetric matrix of an upper triangle, in its dtype."""
    size = (math.isqrt(8 * len(triangle) + 1) - 1) // 2
    matrix, start = triangle.new_empty(size, size), 0
    for row in range(size):
        matrix[row, row:] = matrix[row:, row] = triangle[start : start + size - row]
        start += size - row
    return matrix


def embedding_moment(table: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Returns the mean of e e^T over the rows e of a table, weighted by the frequency of their tokens.

    Args:
        table: (vocabulary, channels).
        tokens: Indices of rows (n,), one per occurrence of a token.

    Returns:
        (channels, channels) float64. The weight of a row is the count of its token plus `TOKEN_SMOOTHING`.
    """
    counts = torch.bincount(tokens, minlength=len(table)).double() + TOKEN_SMOOTHING
    total = torch.zeros(table.shape[1], table.shape[1], dtype=torch.float64)
    for rows, count in zip(table.detach().cpu().split(CHUNK_SIZE), counts.split(CHUNK_SIZE), strict=True):
        float64_rows = rows.double()
        total += float64_rows.T @ (float64_rows * count[:, None])
    return total / counts.sum()


def output_basis(weight: torch.Tensor, moment: torch.Tensor, size: int) -> torch.Tensor:
    """Returns the top eigenvectors of the second moment W C W^T of a linear layer's outputs, largest value first.

    Args:
        weight: W (outputs, inputs).
        moment: C, second moment of the inputs (inputs, inputs).
        size: Number of eigenvectors, at most the smaller of outputs and inputs.

    Returns:
        (outputs, size) float64, orthonormal columns.
    """
    weight, moment = weight.double(), moment.double()
    outer_basis = None
    if weight.shape[0] > weight.shape[1]:  # the outputs span no more dimensions than there are inputs
        outer_basis, weight = torch.linalg.qr(weight)
    basis = top_eigenvectors(weight @ moment @ weight.T, size)
    return basis if outer_basis is None else outer_basis @ basis


def top_eigenvectors(moment: torch.Tensor, size: int) -> torch.Tensor:
    """Returns the eigenvectors of a symmetric matrix (n, n) with the largest values, as columns (n, size)."""
    return torch.linalg.eigh(moment)[1].flip(1)[:, :size]
