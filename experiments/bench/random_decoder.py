"""A random decoder in bfloat16 with the tokenizer of another model: of 1 billion parameters, or the config of 8.

python -m experiments.bench.random_decoder MODEL FOLDER 1b|8b
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

SIZES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
"""Those of TinyLlama with tied tables, and of Llama 3 8B, whose weights are not written."""


def main() -> None:
    """Writes the folder."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source, folder, size = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 8192, **ids, **SIZES[size]}
    config = LlamaConfig(architectures=["LlamaForCausalLM"], dtype=torch.bfloat16, **sizes)
    tokenizer.save_pretrained(folder)
    if size == "8b":
        config.save_pretrained(folder)
        Path(folder, "model.safetensors.index.json").write_text("{}")
        return
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    main()
