"""GPT-2 (Radford et al. 2019): pre-norm decoder; query, key and value are one matrix, stored input first."""

from search_spaces.family import Family, Stack
from search_spaces.tasks import DECODER_TASKS

GPT2 = Family(
    model_type="gpt2",
    tasks=DECODER_TASKS,
    stacks=(
        Stack(
            layers="h",
            attention_module="attn",
            modules={
                "attn.c_attn": (("heads", "heads", "heads"), "hidden"),
                "attn.c_proj": ("hidden", "heads"),
                "mlp.c_fc": ("ffn", "hidden"),
                "mlp.c_proj": ("hidden", "ffn"),
                "ln_1": ("hidden",),
                "ln_2": ("hidden",),
            },
            attributes={"attn": {"num_heads": "heads", "split_size": "heads*head_dim"}},
            skips={
                "attention": {"ln_1": "identity", "attn": "zeros, None"},
                "mlp": {"ln_2": "identity", "mlp": "zeros"},
            },
        ),
    ),
    outside_layers={
        "wte": ("vocab", "hidden"),
        "wpe": (None, "hidden"),
        "ln_f": ("hidden",),
        "lm_head": ("vocab", "hidden"),
        "score": (None, "hidden"),
        "classifier": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
    },
    runs_on={"lm_head": "token", "score": "token", "classifier": "token", "qa_outputs": "token"},
    learned_positions="wpe",
    embedding="wte",
    head_dim_in_config=False,
    config_names={"intermediate_size": ("n_inner",)},
    required_values={"add_cross_attention": False, "scale_attn_by_inverse_layer_idx": False},
    conv1d=True,
)
