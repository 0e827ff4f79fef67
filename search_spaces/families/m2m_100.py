"""M2M-100 (Fan et al. 2020, arXiv 2010.11125), NLLB-200 among them: mBART with sinusoidal positions."""

from dataclasses import replace

from search_spaces.families.marian import MARIAN
from search_spaces.families.mbart import MBART

M2M_100 = replace(MBART, model_type="m2m_100", learned_positions="", fixed_reasons=MARIAN.fixed_reasons)
