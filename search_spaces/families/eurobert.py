"""EuroBERT (Boizard et al. 2025, arXiv 2503.05500): Llama's layers in an encoder, with heads for classes and masks.

A classifier computes its logits for every token and takes their mean (``classifier_pooling: late``). With another
pooling it computes them once a text; ``macs`` then counts its head for every token, less than 1 % too much.
"""

from dataclasses import replace

from search_spaces.families.llama import LLAMA
from search_spaces.tasks import TEXT_ENCODER_TASKS, without

EUROBERT = replace(
    LLAMA,
    model_type="eurobert",
    tasks=without(TEXT_ENCODER_TASKS, "question-answering"),
    outside_layers={
        "embed_tokens": ("vocab", "hidden"),
        "norm": ("hidden",),
        "lm_head": ("vocab", "hidden"),
        "dense": ("hidden", "hidden"),
        "classifier": (None, "hidden"),
    },
    runs_on={"lm_head": "token", "dense": "token", "classifier": "token"},
)
