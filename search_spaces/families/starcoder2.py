"""StarCoder2 (Lozhkov et al. 2024, arXiv 2402.19173): Llama with a plain feed-forward block and layer norms."""

from dataclasses import replace

from search_spaces.families.llama import LLAMA, LLAMA_LAYERS
from search_spaces.tasks import DECODER_TASKS, without

STARCODER2 = replace(
    LLAMA,
    model_type="starcoder2",
    tasks=without(DECODER_TASKS, "question-answering"),
    stacks=(
        replace(
            LLAMA_LAYERS,
            modules={
                **{path: axes for path, axes in LLAMA_LAYERS.modules.items() if not path.startswith("mlp")},
                "mlp.c_fc": ("ffn", "hidden"),
                "mlp.c_proj": ("hidden", "ffn"),
            },
        ),
    ),
)
