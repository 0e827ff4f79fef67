"""Marian (Junczys-Dowmunt et al. 2018, arXiv 1804.00344): BART's layers, sinusoidal positions, no norm before them."""

from dataclasses import replace

from search_spaces.families.bart import BART

MARIAN = replace(
    BART,
    model_type="marian",
    learned_positions="",
    outer={"shared": (None, "hidden"), "embed_tokens": (None, "hidden"), "lm_head": (None, "hidden")},
    fixed_hidden="its sinusoidal positions are computed channel by channel when a model is loaded, and not stored",
    stock_if=None,
)
