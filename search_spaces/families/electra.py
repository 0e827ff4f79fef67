"""ELECTRA (Clark et al. 2020, arXiv 2003.10555): BERT's layers on embeddings that are projected to the hidden size."""

from dataclasses import replace

from search_spaces.families.bert import BERT

ELECTRA = replace(
    BERT,
    model_type="electra",
    positions={"embeddings_project": "token", "classifier.dense": "once", "classifier.out_proj": "once"},
)
