"""What the parent predicts on examples, for scores of how far subnetworks are from it."""

from __future__ import annotations

from dataclasses import replace

from nas.supernets.supernet import Supernet
from nas.tasks.batches import model_inputs
from nas.tasks.evaluation import EvaluationSet, evaluation_mode, on_model
from nas.tasks.top_classes import TopClasses


def with_parent_predictions(supernet: Supernet, examples: EvaluationSet) -> EvaluationSet:
    """The same examples, whose batches also have the likeliest next tokens of the parent, not its logits.

    Args:
        supernet: One that is not trained; its parent is active afterwards.
        examples: Blocks of text.
    """
    supernet.activate(supernet.parent)
    found = []
    with evaluation_mode(supernet.model, in_float32=False):
        for batch in examples.batches:
            inputs = on_model(batch, supernet.model)
            outputs = supernet.model(**model_inputs(inputs))
            ((logits, _),) = examples.task.logits_and_labels(outputs, inputs)
            found.append({**batch, **TopClasses.of(logits).to("cpu").as_entries()})
    return replace(examples, collated=tuple(found))
