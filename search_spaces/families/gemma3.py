"""Gemma 3, its language model (Gemma Team 2025, arXiv 2503.19786): Gemma 2 with norms on the query and key of a head,
and rotary frequencies of their own where a layer has a sliding window."""

from dataclasses import replace

from search_spaces.families.gemma2 import GEMMA2
from search_spaces.tasks import DECODER_TASKS, without

GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    tasks=without(DECODER_TASKS, "token-classification", "question-answering"),
    stacks=(replace(GEMMA2.stacks[0], attention_module="self_attn"),),
)
