"""Stories that the model tells itself: data for a model whose own is not at hand (as in LLM-QAT, arXiv 2305.17888)."""

import os

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = os.environ.get("STORIES260K", "stories260K")
TOKENS = 256


def _told(seed: int, count: int) -> Dataset:
    """Samples so many stories at temperature 1."""
    torch.manual_seed(seed)
    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModelForCausalLM.from_pretrained(MODEL).eval()
    start = torch.full((50, 1), model.config.bos_token_id)
    texts: list[str] = []
    while len(texts) < count:
        tokens = model.generate(
            start, do_sample=True, top_k=0, max_new_tokens=TOKENS, pad_token_id=tokenizer.eos_token_id
        )
        texts += tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return Dataset.from_dict({"text": texts[:count]})


def train() -> Dataset:
    """1,500 stories of up to 256 tokens."""
    return _told(0, 1500)


def test() -> Dataset:
    """400 others."""
    return _told(1, 400)
