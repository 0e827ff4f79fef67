"""RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT's layers, positions counted from 2, a head of two layers."""

from dataclasses import replace

from search_spaces.families.bert import BERT

ROBERTA = replace(
    BERT,
    model_type="roberta",
    positions={"classifier.dense": "once", "classifier.out_proj": "once"},
    position_offset=2,
)
