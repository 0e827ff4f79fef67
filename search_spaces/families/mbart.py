"""mBART (Liu et al. 2020, arXiv 2001.08210): BART with the norms before each block and after the last layer."""

from dataclasses import replace

from search_spaces.families.bart import BART

MBART = replace(
    BART,
    model_type="mbart",
    outside_layers={**BART.outside_layers, "encoder.layer_norm": ("hidden",), "decoder.layer_norm": ("hidden",)},
)
