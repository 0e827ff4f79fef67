"""A linear map from an export's vectors to the width of the parent's, so that a stored index stays valid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from nas.tasks.batches import model_inputs
from nas.tasks.evaluation import EvaluationSet, evaluation_mode
from nas.tasks.losses import cosine_similarity
from nas.tasks.sentence_modules import add_dense
from nas.tasks.types.feature_extraction import FeatureExtraction
from search_spaces import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from nas.tasks.context import TaskContext

MAX_TEXTS = 10_000
"""Training texts that a map is fitted on."""
RIDGE = 1e-4
"""Weight of the penalty, relative to the mean variance of a component; it matters where there are few texts."""


@dataclass(frozen=True)
class VectorMap:
    """A linear map of vectors.

    Attributes:
        weight: (components of the parent's vectors, components).
        bias: (components of the parent's vectors,).
    """

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def fit(cls, vectors: torch.Tensor, targets: torch.Tensor) -> VectorMap:
        """The map with the least squared error, with a small penalty on its weights.

        Args:
            vectors: (texts, components).
            targets: Vectors of the parent (texts, their components).
        """
        vectors, targets = vectors.double(), targets.double()
        centres = vectors.mean(0), targets.mean(0)
        inputs, outputs = vectors - centres[0], targets - centres[1]
        moment = inputs.T @ inputs
        penalty = RIDGE * moment.trace() / len(moment) * torch.eye(len(moment), dtype=moment.dtype)
        weight = torch.linalg.solve(moment + penalty, inputs.T @ outputs).T
        return cls(weight.float(), (centres[1] - weight @ centres[0]).float())

    def __call__(self, vectors: torch.Tensor) -> torch.Tensor:
        """The mapped vectors (texts, components of the parent's)."""
        return vectors @ self.weight.T + self.bias

    def write(self, folder: Path) -> None:
        """Adds the map to a SentenceTransformer, as a Dense module after the pooling."""
        outputs, inputs = self.weight.shape
        path = add_dense(folder, inputs, outputs)
        save_file({"linear.weight": self.weight.contiguous(), "linear.bias": self.bias}, path / "model.safetensors")


def add_vector_map(folder: Path, model: PreTrainedModel, context: TaskContext) -> dict[str, Any]:
    """Fits the map of an export on the training texts and adds it to the folder.

    Args:
        folder: The model folder, a SentenceTransformer.
        model: Its model.
        context: The context of the recipe.

    Returns:
        For ``subnet.json``: the width, the number of texts, and the mean cosine similarity of the mapped vectors to
        the parent's on the held-out split.

    Raises:
        InputError: If the task has no vectors, or they are as wide as the parent's already.
    """
    task, settings = context.splits.task, context.recipe.task
    if not isinstance(task, FeatureExtraction):
        raise InputError(
            f"`--parent-width` is for vectors of texts, but the task is {settings.type}; leave the option out."
        )
    train = context.splits.train
    texts = EvaluationSet.from_dataset(train.select(range(min(MAX_TEXTS, len(train)))), task)
    vectors, targets = pooled_vectors(model, texts, task)
    if vectors.shape[1] == targets.shape[1]:
        raise InputError(
            f"`--parent-width` is for narrower vectors, but these have all {targets.shape[1]} components of the "
            "parent's; leave the option out."
        )
    fitted = VectorMap.fit(vectors, targets)
    fitted.write(folder)
    vectors, targets = pooled_vectors(model, context.splits.test, task)
    similarity = cosine_similarity(fitted(vectors), targets).mean().item()
    return {"width": targets.shape[1], "texts": len(texts), "cosine_similarity": similarity}


def pooled_vectors(
    model: PreTrainedModel, examples: EvaluationSet, task: FeatureExtraction
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pooled vectors of all texts before they are normalized, and the vectors of the parent."""
    vectors, targets = [], []
    with evaluation_mode(model):
        for batch in examples.batches:
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            vectors.append(task.pooled(model(**model_inputs(inputs)), inputs).cpu())
            targets.append(batch["labels"])
    return torch.cat(vectors), torch.cat(targets)
