"""A pretrained decoder made smaller without training: slices that compensate, beside published methods.

Rivals at the same number of parameters: dropping the layers of least block influence (ShortGPT, Men et al. 2024,
arXiv 2403.03853), FLAP (An et al. 2023, arXiv 2312.11983), whose heads and neurons are chosen over all layers by
how much they fluctuate, and whose means go into a bias, and SliceGPT; beside them the parent in fewer bits. Ours:
replacements of one block scored on calibration text, by their loss and by their divergence from the parent's
predictions (as in Puzzle, Bercovich et al. 2024, arXiv 2411.19146), combined by the integer program of `BlockSearch`,
in slices that compensate.

    python -m experiments.bench.training_free MODEL CALIBRATION.txt TEST.txt
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import kl_div, nll_loss

from experiments.bench.slicegpt import SliceGpt
from nas.studies.block_search import block_solutions, replacements
from nas.supernets.calibration import calibrate
from nas.supernets.importance import order_by_importance
from nas.supernets.layer_importance import drop_layer, mean_loss
from nas.supernets.supernet import Supernet
from predictors import AnalyticCosts
from search_spaces import SearchSpace, SubnetConfig

SHARES = (0.1, 0.2, 0.3)
"""Shares of the parameters that are left out."""
Batches = list[dict[str, torch.Tensor]]
Line = Callable[..., None]
"""Prints a row."""


def blocks_of(tokenizer: Any, file: str, count: int, length: int) -> Batches:
    """The first tokens of a text in batches of four blocks."""
    ids = tokenizer(Path(file).read_text()[: count * length * 8], return_tensors="pt").input_ids[0]
    rows = ids[: count * length].view(count, length)
    return [{"input_ids": part, "labels": part} for part in rows.split(4)]


def perplexity(supernet: Supernet, subnet: SubnetConfig, batches: Batches) -> float:
    """Of a subnetwork, as the exponential of its mean loss."""
    return math.exp(mean_loss(supernet, subnet, batches))


def block_influence(supernet: Supernet, batches: Batches) -> list[int]:
    """Layers by block influence, 1 - cos of what goes in and comes out of a layer, least first."""
    model, sums = supernet.model, torch.zeros(len(supernet.parent.layers))
    with torch.inference_mode():
        for batch in batches:
            states = model(input_ids=batch["input_ids"], output_hidden_states=True).hidden_states
            for layer, (before, after) in enumerate(itertools.pairwise(states)):
                sums[layer] += (1 - torch.cosine_similarity(before, after, dim=-1)).mean()
    return sums.argsort().tolist()


class Flap:
    """FLAP on the modules of a Llama: scores of heads and neurons from one pass, pruned weights put in place."""

    def __init__(self, model: Any, batches: Batches) -> None:
        self.model, self.layers = model, model.model.layers
        config = model.config
        self.group = config.hidden_size // config.num_key_value_heads
        self.moments: dict[tuple[int, str], list[torch.Tensor]] = {}
        handles = [
            module.register_forward_pre_hook(self._add(layer, name))
            for layer, each in enumerate(self.layers)
            for name, module in (("heads", each.self_attn.o_proj), ("ffn", each.mlp.down_proj))
        ]
        with torch.inference_mode():
            for batch in batches:
                model.model(input_ids=batch["input_ids"])
        for handle in handles:
            handle.remove()

    def _add(self, layer: int, name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
            new = [rows.sum(0), (rows**2).sum(0), torch.tensor(float(len(rows)))]
            old = self.moments.get((layer, name))
            self.moments[layer, name] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]

        return hook

    def _module(self, layer: int, name: str) -> Any:
        return self.layers[layer].self_attn.o_proj if name == "heads" else self.layers[layer].mlp.down_proj

    def scores(self) -> list[tuple[float, int, str, int, int]]:
        """Standardized fluctuation, layer, kind, unit and its parameters, of every group of heads and neuron."""
        hidden, found = self.model.config.hidden_size, []
        attention = (
            sum(p.numel() for p in self.layers[0].self_attn.parameters()) // self.model.config.num_key_value_heads
        )
        for (layer, name), (total, squares, count) in self.moments.items():
            weight = self._module(layer, name).weight.detach().double()
            variance = squares / count - (total / count) ** 2
            each = variance * (weight**2).sum(0)
            unit = self.group if name == "heads" else 1
            each = each.view(-1, unit).mean(1)
            standard = (each - each.mean()) / each.std()
            size = attention if name == "heads" else 3 * hidden
            found += [(float(s), layer, name, k, size) for k, s in enumerate(standard)]
        return sorted(found)

    @contextmanager
    def pruned(self, parameters: float) -> Iterator[None]:
        """The model without the units of the lowest scores, so many parameters in all; their means are biases."""
        kept = {name: value.clone() for name, value in self.model.state_dict().items() if "_proj" in name}
        left: dict[tuple[int, str], list[int]] = {}
        for _, layer, name, unit, size in self.scores():
            if parameters <= 0:
                break
            left.setdefault((layer, name), []).append(unit)
            parameters -= size
        for (layer, name), units in left.items():
            module, (total, _, count) = self._module(layer, name), self.moments[layer, name]
            size = self.group if name == "heads" else 1
            columns = (torch.tensor(units)[:, None] * size + torch.arange(size)).flatten()
            mean = (total / count).float()
            module.bias = torch.nn.Parameter(module.weight.data[:, columns] @ mean[columns])
            module.weight.data[:, columns] = 0
        yield
        for layer, name in self.moments:
            self._module(layer, name).bias = None
        self.model.load_state_dict(kept, strict=False)


def scores(
    supernet: Supernet, subnets: Sequence[SubnetConfig], batches: Batches
) -> tuple[dict[str, float], dict[str, float]]:
    """Two scores of subnetworks, by key: the mean loss, and the mean divergence from the parent's predictions."""
    losses, divergences = Counter[str](), Counter[str]()
    for batch in batches:
        labels, parents = batch["labels"][:, 1:].flatten(), log_probabilities(supernet, supernet.parent, batch)
        for subnet in subnets:
            own = log_probabilities(supernet, subnet, batch)
            losses[subnet.key] += float(nll_loss(own, labels)) / len(batches)
            divergences[subnet.key] += float(kl_div(own, parents, reduction="batchmean", log_target=True)) / len(
                batches
            )
    return dict(losses), dict(divergences)


@torch.inference_mode()
def log_probabilities(supernet: Supernet, subnet: SubnetConfig, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of the next tokens (tokens, vocabulary)."""
    supernet.activate(subnet)
    return supernet.model(input_ids=batch["input_ids"]).logits[:, :-1].flatten(0, 1).log_softmax(-1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table of perplexities."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("test")
    parser.add_argument("--blocks", type=int, default=32, help="blocks of calibration")
    parser.add_argument("--scored", type=int, default=4, help="blocks on which replacements are scored")
    parser.add_argument("--tested", type=int, default=16, help="blocks of the test text")
    parser.add_argument("--length", type=int, default=256, help="tokens of a block")
    parser.add_argument("--methods", nargs="+", choices=[*RIVALS, "ours"], default=[*RIVALS, "ours"])
    args = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    calibration = blocks_of(tokenizer, args.calibration, args.blocks, args.length)
    scored, test = calibration[: -(-args.scored // 4)], blocks_of(tokenizer, args.test, args.tested, args.length)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    started = time.perf_counter()

    def line(*values: object) -> None:
        print(f"{time.perf_counter() - started:7.0f} s ", *values, flush=True)

    for name in args.methods:
        if name in RIVALS:
            RIVALS[name](copy.deepcopy(model), calibration, test, line)
    if "ours" in args.methods:
        ours(model, calibration, scored, test, line)


def ours(model: Any, calibration: Batches, scored: Batches, test: Batches, line: Line) -> None:
    """Prints the rows of subnetworks that are combined of replacements, scored in two ways."""
    supernet = Supernet(model)
    parent, counts = supernet.parent, AnalyticCosts.from_model(model, supernet.layout, "text-generation")

    def cost(name: str, subnets: Sequence[SubnetConfig]) -> Any:
        return counts.count([name], subnets)[name]

    size = float(cost("num_parameters", [parent])[0])
    line(f"parent: {size / 1e6:.1f} M parameters, perplexity {perplexity(supernet, parent, test):.2f}")
    order = order_by_importance(supernet, calibration, by="activation", fewest=[len(parent.layers)])
    supernet.calibration = calibrate(supernet, calibration, ranks=False, compensates=True)
    line("ordered and calibrated")
    full = parent.intermediate_size[0]
    space = SearchSpace(
        parent,
        scope="per-layer",
        num_hidden_layers=[*range(len(parent.layers) // 2, len(parent.layers) + 1)],
        num_attention_heads=[0, parent.num_attention_heads[0]],
        intermediate_size=[full // 2, 3 * full // 4, full],
        layer_order=order.layers,
        depths=supernet.layout.depths,
    )
    candidates = replacements(space)
    by_score = dict(zip(("loss", "divergence"), scores(supernet, candidates, scored), strict=True))
    line(f"{len(candidates)} replacements scored")
    solved = {
        name: block_solutions(space, values, cost, objectives=["num_parameters"], bounds={}, limit=200)
        for name, values in by_score.items()
    }
    for share, (name, found) in itertools.product(SHARES, solved.items()):
        small = [each for each in found if cost("num_parameters", [each])[0] <= (1 - share) * size]
        subnet = max(small, key=lambda each: cost("num_parameters", [each])[0])
        parameters = cost("num_parameters", [subnet])[0] / 1e6
        quality = f"perplexity {perplexity(supernet, subnet, test):.2f}"
        line(f"-{share:.0%} ours, blocks by {name}: {parameters:.1f} M, {quality}; {subnet}")
        statistics, supernet.calibration = supernet.calibration, None
        line(f"-{share:.0%} without compensation: perplexity {perplexity(supernet, subnet, test):.2f}")
        supernet.calibration = statistics


def dropped_layers(model: Any, calibration: Batches, test: Batches, line: Line) -> None:
    """Prints the rows of ShortGPT."""
    supernet = Supernet(model)
    influence, size = block_influence(supernet, calibration[:4]), model.num_parameters()
    layer_size = sum(p.numel() for p in supernet.layer(0).parameters())
    for share in SHARES:
        subnet = supernet.parent
        for layer in influence[: math.ceil(share * size / layer_size)]:
            subnet = drop_layer(subnet, layer)
        quality = f"perplexity {perplexity(supernet, subnet, test):.2f}"
        line(f"-{share:.0%} ShortGPT: {len(subnet.layers)} layers, {quality}")


def fluctuating_units(model: Any, calibration: Batches, test: Batches, line: Line) -> None:
    """Prints the rows of FLAP."""
    flap = Flap(model, calibration)
    for share in SHARES:
        with flap.pruned(share * model.num_parameters()):
            line(f"-{share:.0%} FLAP: perplexity {perplexity_of(model, test):.2f}")


def principal_channels(model: Any, calibration: Batches, test: Batches, line: Line) -> None:
    """Prints the rows of SliceGPT: with every parameter counted, and with table and head counted once."""
    method = SliceGpt(model, calibration)
    for share, tied in itertools.product(SHARES, (False, True)):
        width = method.width((1 - share) * model.num_parameters(), tied=tied)
        counted = f"{method.parameters(width, tied=tied) / 1e6:.1f} M with {'one table' if tied else 'table and head'}"
        quality = f"perplexity {perplexity_of(method.sliced(width), test):.2f}"
        line(f"-{share:.0%} SliceGPT: {width} channels, {counted}, {quality}")


def fewer_bits(model: Any, calibration: Batches, test: Batches, line: Line) -> None:
    """Prints the rows of the parent with all layers in fewer bits, four bits fitted to calibration text."""
    supernet = Supernet(model)
    supernet.calibration = calibrate(supernet, calibration)
    counts = AnalyticCosts.from_model(model, supernet.layout)
    for bits in ("int8-weight", "int4-weight"):
        subnet = supernet.parent.with_values(bits=(bits,) * len(supernet.parent.layers))
        size = counts.count(["size_mb"], [subnet])["size_mb"][0]
        line(f"parent in {bits}: {size:.1f} MB, perplexity {perplexity(supernet, subnet, test):.2f}")


@torch.inference_mode()
def perplexity_of(model: Any, batches: Batches) -> float:
    """Of a model."""
    return math.exp(sum(float(model(**batch).loss) for batch in batches) / len(batches))


RIVALS: dict[str, Callable[[Any, Batches, Batches, Line], None]] = {
    "shortgpt": dropped_layers,
    "flap": fluctuating_units,
    "slicegpt": principal_channels,
    "bits": fewer_bits,
}
"""Name of a rival -> a function that prints its rows, given a model of its own."""

if __name__ == "__main__":
    main()
