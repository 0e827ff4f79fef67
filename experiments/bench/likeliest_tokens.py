"""How well the likeliest next tokens of a teacher stand for all: gradients of the divergence, and the share they miss.

python experiments/bench/likeliest_tokens.py MODEL TEXT.txt

The student is the model itself with three quarters of the neurons of every layer. Beside the rest as one class, as in
training, stand two that are simpler: shares renormalised over the likeliest, against the student's over all, and
against the student's over the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM, AutoTokenizer

from nas.supernets.supernet import Supernet
from nas.tasks import top_classes
from nas.tasks.losses import divergence
from nas.tasks.top_classes import TopClasses
from search_spaces import SubnetConfig

TOKENS, LENGTH = 256, 128


def main() -> None:
    """Prints a line for each number of tokens that are kept."""
    model, text = sys.argv[1:]
    ids = AutoTokenizer.from_pretrained(model)(Path(text).read_text()[: 8 * TOKENS], return_tensors="pt").input_ids
    ids = ids[0, :TOKENS].view(-1, LENGTH)
    supernet = Supernet(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval())
    full = supernet.parent
    narrow = full.with_values(intermediate_size=tuple(3 * size // 4 for size in full.intermediate_size))
    with torch.no_grad():
        teacher, student = (logits_of(supernet, subnet, ids) for subnet in (full, narrow))
    labels = torch.zeros(len(teacher), dtype=torch.long)
    student.requires_grad_(True)
    whole = gradient(divergence([(student, labels)], [(teacher, labels)], "softmax", 1.0), student)
    print("kept  missed  rest as one  renormalised  both renormalised: error of the gradient")
    for top_classes.TOP in (16, 64, 128, 256, 1024):
        top = TopClasses.of(teacher)
        chosen, target = top.classes.long(), top.log_shares[:, :-1].log_softmax(-1)
        losses = [
            divergence([(student, labels)], [(top, labels)], "softmax", 1.0),
            kl_div(student.log_softmax(-1).gather(-1, chosen), target, reduction="batchmean", log_target=True),
            kl_div(student.gather(-1, chosen).log_softmax(-1), target, reduction="batchmean", log_target=True),
        ]
        errors = [float((gradient(loss, student) - whole).norm() / whole.norm()) for loss in losses]
        missed = float(top.log_shares[:, -1].exp().mean())
        print(f"{top_classes.TOP:<5} {missed:6.3f}", *(f"{error:12.3f}" for error in errors), flush=True)


def logits_of(supernet: Supernet, subnet: SubnetConfig, ids: torch.Tensor) -> torch.Tensor:
    """Of the next tokens (tokens, vocabulary)."""
    supernet.activate(subnet)
    logits: torch.Tensor = supernet.model(input_ids=ids).logits
    return logits.flatten(0, 1)


def gradient(loss: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """Of the student's logits."""
    return torch.autograd.grad(loss, student)[0]


if __name__ == "__main__":
    main()
