"""Mistral (Jiang et al. 2023, arXiv 2310.06825): Llama with a sliding window in every layer."""

from dataclasses import replace

from search_spaces.families.llama import LLAMA

MISTRAL = replace(LLAMA, model_type="mistral")
