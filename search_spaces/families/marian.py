"""Marian (Junczys-Dowmunt et al. 2018, arXiv 1804.00344): BART's layers, sinusoidal positions, no norm before them."""

from dataclasses import replace

from search_spaces.families.bart import BART

MARIAN = replace(
    BART,
    model_type="marian",
    learned_positions="",
    outside_layers={"shared": (None, "hidden"), "embed_tokens": (None, "hidden"), "lm_head": (None, "hidden")},
    fixed_reasons={
        "hidden_size": "its sinusoidal positions are not stored but computed for each channel when a model is loaded"
    },
    has_stock_config=None,
)
