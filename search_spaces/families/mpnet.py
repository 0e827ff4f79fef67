"""MPNet (Song et al. 2020, arXiv 2004.09297): BERT's layers, and relative position biases that all of them share."""

from dataclasses import replace

from search_spaces.families.roberta import ROBERTA
from search_spaces.family import Stack

MPNET = replace(
    ROBERTA,
    model_type="mpnet",
    stacks=(
        Stack(
            layers="encoder.layer",
            modules={
                "attention.attn.q": ("heads", "hidden"),
                "attention.attn.k": ("heads", "hidden"),
                "attention.attn.v": ("heads", "hidden"),
                "attention.attn.o": ("hidden", "heads"),
                "attention.LayerNorm": ("hidden",),
                "intermediate.dense": ("ffn", "hidden"),
                "output.dense": ("hidden", "ffn"),
                "output.LayerNorm": ("hidden",),
            },
            attributes={"attention.attn": {"num_attention_heads": "heads", "all_head_size": "heads*head_dim"}},
            skips={"attention": {"attention": "input, None"}, "mlp": {"intermediate": "input", "output": "residual"}},
            mixins={"attention.attn": "SlicedPositionBias"},
        ),
    ),
    outside_layers={
        **ROBERTA.outside_layers,
        "encoder.relative_attention_bias": (None, "head_biases"),
        "pooler.dense": ("hidden", "hidden"),
    },
    runs_on={**ROBERTA.runs_on, "pooler.dense": "once"},
    shared_heads=True,
)
