"""What subnetworks change: the loss on examples, and the outputs, by their divergence from another's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from nas.supernets.supernet import Supernet
from nas.tasks.batches import Batch
from nas.tasks.evaluation import EvaluationSet, evaluation_mode, on_model
from nas.tasks.losses import LogitsAndLabels
from search_spaces import SubnetConfig

GROUP = 8
"""Subnetworks for which the outputs of the reference are computed once: they are kept of one batch at a time."""

Change = tuple[float, float]
"""Loss minus that of the reference, and divergence from its outputs (see `nas.tasks.losses.divergence`)."""


def changes(
    supernet: Supernet,
    reference: SubnetConfig,
    subnets: Sequence[SubnetConfig],
    examples: EvaluationSet,
    report: Callable[[int], None] = lambda done: None,
) -> list[Change]:
    """What each subnetwork changes, as means over examples.

    Args:
        supernet: The reference is active afterwards.
        reference: What they are compared with.
        subnets: The subnetworks.
        examples: Labelled; outputs of one batch are in memory at a time.
        report: Told how many are done.
    """
    found: list[Change] = []
    for start in range(0, len(subnets), GROUP):
        group = subnets[start : start + GROUP]
        sums, count = torch.zeros(len(group), 2, dtype=torch.float64), 0
        for batch, rows in zip(examples.batches, examples.rows, strict=True):
            sums += len(rows) * torch.tensor(_changes_on(supernet, reference, group, examples, batch))
            count += len(rows)
        found += [(float(loss), float(distance)) for loss, distance in sums / count]
        report(len(found))
    supernet.activate(reference)
    return found


def _changes_on(
    supernet: Supernet, reference: SubnetConfig, subnets: Sequence[SubnetConfig], examples: EvaluationSet, batch: Batch
) -> list[Change]:
    """What subnetworks change on one batch."""
    task, expected = examples.task, _outputs(supernet, reference, examples, batch)
    found = []
    for subnet in subnets:
        loss, logits = _outputs(supernet, subnet, examples, batch)
        distance = task.divergence(logits, expected[1], 1.0).item()
        found.append((loss - expected[0], distance))
    return found


def _outputs(
    supernet: Supernet, subnet: SubnetConfig, examples: EvaluationSet, batch: Batch
) -> tuple[float, list[LogitsAndLabels]]:
    """Loss and logits of a subnetwork on one batch."""
    supernet.activate(subnet)
    with evaluation_mode(supernet.model, in_float32=not examples.task.has_vocabulary_logits):
        inputs = on_model(batch, supernet.model)
        outputs = examples.task.forward(supernet.model, inputs)
        return outputs.loss.item(), examples.task.logits_and_labels(outputs, inputs)
