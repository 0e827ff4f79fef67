"""XLM-RoBERTa (Conneau et al. 2020, arXiv 1911.02116): RoBERTa on text of a hundred languages."""

from dataclasses import replace

from search_spaces.families.roberta import ROBERTA

XLM_ROBERTA = replace(ROBERTA, model_type="xlm-roberta")
