"""Cost of sparse attention compared with dense SDPA: of the attention only, and of exported layers of MiniLM's shapes.

    python experiments/bench/attention.py {attention,layer} {torch,onnxruntime} [--tokens 512 1024] [--rounds 7]

One thread, float32, batch 1, no padding; ratios to the time of dense attention, medians over interleaved rounds.
Below 1 sparse is faster. The first column is the time of dense attention.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from nas.modeling.sparse_attention import sparse_attention_forward
from nas.supernets.supernet import Supernet
from predictors import Workload, measure
from predictors.measurement.onnx_export import quiet_export, write_onnx
from predictors.measurement.prepare import prepare
from predictors.measurement.runtimes import RUNTIMES
from predictors.measurement.timing import REFERENCE
from search_spaces import SubnetConfig
from search_spaces.dimensions.attention import FULL, AttentionPattern

TOKENS = (512, 1024, 2048, 4096)
PATTERNS = ("local:64", "local:128", "local:256", "bigbird:64,1,2")
TRACED = 1024
"""Tokens that ONNX files are traced with: more than one block of every pattern, else the number of blocks is fixed."""
HEADS, CHANNELS, FFN = 12, 32, 1536


class Attention(nn.Module):
    """Attention on separate queries, keys and values of the shape (batch, tokens, heads, channels)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        pattern = AttentionPattern.parse(text)
        self.config = type("Config", (), {"nas_pattern": list(pattern.kind.graph)}) if pattern is not None else None
        self.is_causal = False

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        states = (x.transpose(1, 2) for x in (query, key, value))
        if self.config is None:
            return scaled_dot_product_attention(*states).transpose(1, 2).contiguous()
        return sparse_attention_forward(self, *states, None)[0]


def attentions() -> dict[str, Any]:
    """Pattern -> attention module."""
    return {text: Attention(text).eval() for text in (FULL, *PATTERNS)}


def states(tokens: int) -> dict[str, Tensor]:
    """Random queries, keys and values."""
    return {name: torch.randn(1, tokens, HEADS, CHANNELS) for name in ("query", "key", "value")}


def layers() -> dict[str, Any]:
    """Pattern -> a BERT of one layer, extracted as for export."""
    hidden = HEADS * CHANNELS
    sizes = {"hidden_size": hidden, "num_hidden_layers": 1, "num_attention_heads": HEADS, "intermediate_size": FFN}
    config = transformers.BertConfig(**sizes, vocab_size=1000, max_position_embeddings=max(TOKENS))
    supernet = Supernet(transformers.BertForTokenClassification(config).eval())
    widths = {name: sizes[name] for name in ("num_attention_heads", "intermediate_size", "hidden_size")}
    return {t: supernet.extract(SubnetConfig.uniform((0,), **widths, attention=t)) for t in (FULL, *PATTERNS)}


def texts(tokens: int) -> dict[str, Tensor]:
    """A text without padding."""
    ids = torch.randint(5, 1000, (1, tokens))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def write_attention(model: Attention, file: Path) -> None:
    """Writes an attention module as an ONNX file for any number of tokens."""
    tokens = torch.export.Dim("tokens")
    shapes = {name: {1: tokens} for name in ("query", "key", "value")}
    names = {"input_names": list(shapes), "verbose": False}
    with quiet_export(model, "ONNX"):  # type: ignore[arg-type]
        program = torch.onnx.export(model, kwargs=states(TRACED), dynamo=True, dynamic_shapes=shapes, **names)  # type: ignore[call-overload]
    assert program is not None
    program.save(str(file))


def make_calls(models: dict[str, Any], inputs: dict[str, Tensor], workload: Workload, folder: Path) -> dict[str, Any]:
    """Pattern -> call that runs its model once."""
    calls: dict[str, Any] = {}
    for text, model in models.items():
        file = folder / f"{text.replace(':', '-')}.onnx"
        if workload.runtime == "torch":
            calls[text] = lambda m=model: m(**inputs)
            if not isinstance(model, Attention):
                calls[text] = prepare(model, inputs, workload)
            continue
        if not file.exists():
            write_attention(model, file) if isinstance(model, Attention) else write_onnx(model, texts(TRACED), file)
        calls[text] = RUNTIMES["onnxruntime"].call(
            file, {name: tensor.numpy() for name, tensor in inputs.items()}, workload
        )
    return calls


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["attention", "layer"])
    parser.add_argument("runtime", choices=["torch", "onnxruntime"])
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    models, inputs = (attentions(), states) if arguments.what == "attention" else (layers(), texts)
    table = Table(
        "tokens", "dense ms", *PATTERNS, title=f"{arguments.what} · {arguments.runtime} · {HEADS} x {CHANNELS}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for tokens in arguments.tokens:
            workload = Workload(runtime=arguments.runtime, sequence_length=tokens)
            candidates = make_calls(models, inputs(tokens), workload, Path(folder))
            timings = measure(candidates, candidates.pop(FULL), workload, rounds=arguments.rounds)
            ratios = [f"{timings[text].ratio:.3f}" for text in PATTERNS]
            table.add_row(str(tokens), f"{timings[REFERENCE].latency_ms:.1f}", *ratios)
    Console().print(table)


if __name__ == "__main__":
    main()
