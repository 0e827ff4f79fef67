"""GPT-J (Wang and Komatsuzaki 2021): attention and feed-forward side by side after one norm, rotary positions."""

from search_spaces.family import Family, Stack
from search_spaces.tasks import DECODER_TASKS, without

GPTJ = Family(
    model_type="gptj",
    tasks=without(DECODER_TASKS, "token-classification"),
    stacks=(
        Stack(
            layers="h",
            modules={
                "attn.q_proj": ("heads", "hidden"),
                "attn.k_proj": ("heads", "hidden"),
                "attn.v_proj": ("heads", "hidden"),
                "attn.out_proj": ("hidden", "heads"),
                "mlp.fc_in": ("ffn", "hidden"),
                "mlp.fc_out": ("hidden", "ffn"),
                "ln_1": ("hidden",),
            },
            attributes={"attn": {"num_attention_heads": "heads"}},
            skips={"attention": {"attn": "zeros, None"}, "mlp": {"mlp": "zeros"}},
        ),
    ),
    outside_layers={
        "wte": ("vocab", "hidden"),
        "ln_f": ("hidden",),
        "lm_head": ("vocab", "hidden"),
        "score": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
    },
    runs_on={"lm_head": "token", "score": "token", "qa_outputs": "token"},
    embedding="wte",
    head_dim_in_config=False,
    config_names={"intermediate_size": ("n_inner",)},
)
