"""Time and error of low-rank factors against the full matrix they replace.

    python experiments/bench/lowrank.py times [--rounds 21]
    python experiments/bench/lowrank.py errors MODEL TEXTS.parquet [--column sentence]
    python experiments/bench/lowrank.py embedding RUN

`times` runs extracted linear layers and an extracted encoder layer of MiniLM's and BERT base's shapes, against dense
ones: one thread, process CPU time, interleaved rounds, median ratio; below 1 the factors are faster. `errors`
truncates matrices of a BERT on its activations on real texts, and compares with the optimum (in float64, the tail of
the singular values of the outputs) and with a singular value decomposition of the weight. `embedding` truncates the
table of token embeddings of a run's parent: calibrated on training data, scored without further training on the
held-out split, whose tokens define the optimum.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from elastic import ratio
from rich.console import Console
from rich.table import Table
from torch import nn

from nas.modeling.modeling_nas import LowRank
from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.supernets.calibration import calibrate
from nas.supernets.load import calibration_set
from nas.supernets.low_rank import output_basis, top_eigenvectors
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from search_spaces import SubnetConfig
from search_spaces.dimensions.ranks import RANK_STEP, factor_rank

FRACTIONS = (25, 50, 75, 100)
TOKENS = (128, 1024)
SHAPES = ((384, 384), (1536, 384), (384, 1536), (768, 768), (3072, 768), (768, 3072))
"""Outputs and inputs of the linear layers of MiniLM and BERT base."""
SIZES = {
    "MiniLM": {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536},
    "BERT base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
VISIT_S = 0.01
"""CPU seconds of calls in a row that are timed as one."""
MATRICES = ("attention.self.value", "intermediate.dense", "output.dense")


def ratios(candidates: Sequence[nn.Module], dense: nn.Module, x: torch.Tensor, rounds: int) -> list[str]:
    """CPU time of each module over that of the dense one."""

    def seconds(calls: int) -> float:
        start = time.process_time()
        for _ in range(calls):
            dense(x)
        return time.process_time() - start

    with torch.inference_mode():
        seconds(3)
        calls = max(1, round(VISIT_S / (seconds(5) / 5)))

        def run(module: nn.Module) -> None:
            for _ in range(calls):
                module(x)

        return [f"{ratio(partial(run, low.eval()), partial(run, dense), rounds):.2f}" for low in candidates]


def linear_layers(rounds: int) -> Table:
    """One linear layer of each shape at each fraction of break-even, up to 100 %."""
    table = Table("outputs x inputs", "tokens", *(f"{percent} %" for percent in FRACTIONS), title="linear layer")
    for outputs, inputs in SHAPES:
        dense = nn.Linear(inputs, outputs)
        even = outputs * inputs // (outputs + inputs)
        ranks = {p: factor_rank(outputs, inputs, p) or even - even % RANK_STEP for p in FRACTIONS}
        low = [LowRank(dense, inputs, outputs, rank) for rank in ranks.values()]
        for tokens in TOKENS:
            cells = ratios(low, dense, torch.randn(1, tokens, inputs), rounds)
            table.add_row(f"{outputs} x {inputs}", str(tokens), *cells)
    return table


def encoder_layers(rounds: int) -> Table:
    """A layer of an extracted BERT, attention scores, norms and activations included."""
    table = Table("layer", "tokens", *(f"{percent} %" for percent in FRACTIONS[:-1]), title="extracted encoder layer")
    for name, sizes in SIZES.items():
        config = transformers.BertConfig(num_hidden_layers=1, vocab_size=1000, **sizes)
        supernet = Supernet(transformers.BertForSequenceClassification(config).eval())
        supernet.calibration = calibrate(supernet, [{"input_ids": torch.randint(5, 1000, (8, 128))}])
        layers = {p: supernet.extract(with_rank(supernet.parent, p)).bert.encoder.layer[0] for p in FRACTIONS}
        for tokens in TOKENS:
            x = torch.randn(1, tokens, sizes["hidden_size"])
            low = [layers[percent] for percent in FRACTIONS[:-1]]
            table.add_row(name, str(tokens), *ratios(low, layers[100], x, rounds))
    return table


def with_rank(parent: SubnetConfig, percent: int) -> SubnetConfig:
    """The full model with all linear layers of its layers at one rank."""
    ranks = (percent,) * parent.num_hidden_layers
    return parent.with_values(attention_rank=ranks, mlp_rank=ranks)


def errors(model: str, texts: list[str]) -> Table:
    """Relative squared error of the outputs of three matrices of the middle layer, on the texts' real tokens."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    bert = transformers.AutoModel.from_pretrained(model).eval()
    batches = [
        dict(tokenizer(texts[start : start + 32], padding=True, truncation=True, max_length=128, return_tensors="pt"))
        for start in range(0, len(texts), 32)
    ]
    supernet = Supernet(bert)
    activations = calibrate(supernet, batches)
    layer = f"encoder.layer.{len(bert.encoder.layer) // 2}"
    title = f"squared error over squared output, {layer}, {len(texts)} texts"
    table = Table("matrix", "rank", "of break-even", "ours", "optimum", "ours / optimum - 1", "plain SVD", title=title)
    for path in MATRICES:
        x = real_inputs(bert, bert.get_submodule(f"{layer}.{path}"), batches)
        name = f"{layer}.{path}.weight"
        weight = activations.weights[name].double()
        for percent in FRACTIONS[:-1]:
            rank = factor_rank(weight.shape[0], weight.shape[1], percent)
            assert rank is not None
            table.add_row(path, str(rank), f"{percent} %", *compared(x, weight, activations.moments[name], rank))
    return table


def embeddings(run: Run) -> Table:
    """Relative squared error of the embeddings of held-out tokens, and held-out quality, with tables of low rank."""
    context, quality = TaskContext(run.recipe), run.recipe.primary_metric
    supernet = Supernet(context.load_model(run.parent).eval())
    activations = calibrate(supernet, calibration_set(context).batches)
    assert activations.embedding is not None and supernet.embedding is not None
    table = supernet.embedding.weight.detach().double()
    rows = torch.cat(
        [table[batch["input_ids"][batch["attention_mask"].bool()]] for batch in context.splits.test.batches]
    )
    moments = {"ours": activations.embedding, "optimum": rows.T @ rows, "plain SVD": table.T @ table}
    kinds = (*(f"error {name}" for name in moments), f"{quality} ours", f"{quality} plain SVD")
    results = Table("rank", "of break-even", "numbers", *kinds, title=f"{len(rows)} held-out tokens")
    for percent in reversed(FRACTIONS):
        subnet = supernet.parent.with_values(embedding_rank=percent)
        tokens, channels = table.shape
        rank = factor_rank(channels, tokens, percent)
        numbers = table.numel() if rank is None else rank * (tokens + channels)
        cells = [f"{rank or 'full'}", f"{percent} %" if rank else "–", f"{numbers / 1e6:.2f}M"]
        for moment in moments.values():
            u = top_eigenvectors(moment, rank or channels)
            cells.append(f"{(((rows - rows @ u @ u.T) ** 2).sum() / (rows**2).sum()).item():.5f}")
        for name in ("ours", "plain SVD"):
            supernet.calibration = replace(activations, embedding=moments[name])
            supernet.activate(supernet.parent)
            supernet.activate(subnet)
            scored = score(supernet.model, context.splits.test, [quality])[quality]
            cells.append(f"{scored.value:.4f} ± {scored.standard_error:.4f}")
        results.add_row(*cells)
    return results


def real_inputs(model: Any, module: nn.Module, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Inputs of a module for all tokens that are no padding (tokens, inputs), float64."""
    collected: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: collected.append(inputs[0].double()))
    with torch.inference_mode():
        for batch in batches:
            model(**batch)
    handle.remove()
    masks = [batch["attention_mask"].bool() for batch in batches]
    return torch.cat([x[mask] for x, mask in zip(collected, masks, strict=True)])


def compared(x: torch.Tensor, weight: torch.Tensor, moment: torch.Tensor, rank: int) -> tuple[str, str, str, str]:
    """Our error, the least possible error, how much ours is above it, and the error of a plain SVD."""
    outputs = x @ weight.T
    total = (outputs**2).sum()
    basis = output_basis(weight, moment, rank)
    ours = (((outputs - outputs @ basis @ basis.T) ** 2).sum() / total).item()
    optimum = ((torch.linalg.svdvals(outputs)[rank:] ** 2).sum() / total).item()
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    plain = (((outputs - x @ ((u[:, :rank] * s[:rank]) @ vt[:rank]).T) ** 2).sum() / total).item()
    return f"{ours:.5f}", f"{optimum:.5f}", f"{ours / optimum - 1:.1e}", f"{plain:.5f}"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("times").add_argument("--rounds", type=int, default=21)
    of_errors = kinds.add_parser("errors")
    of_errors.add_argument("model")
    of_errors.add_argument("texts")
    of_errors.add_argument("--column", default="sentence")
    of_errors.add_argument("--examples", type=int, default=256)
    kinds.add_parser("embedding").add_argument("run", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if arguments.kind == "times":
        Console().print(linear_layers(arguments.rounds), encoder_layers(arguments.rounds))
    elif arguments.kind == "embedding":
        quiet_libraries()
        Console(width=140).print(embeddings(Run(arguments.run)))
    else:
        import pandas as pd

        texts = pd.read_parquet(arguments.texts)[arguments.column].sample(arguments.examples, random_state=0).tolist()
        Console(width=120).print(errors(arguments.model, texts))


if __name__ == "__main__":
    main()
