"""A pretrained decoder made smaller without training: slices that compensate, beside published methods.

Rivals at the same number of parameters: dropping the layers of least block influence (ShortGPT, Men et al. 2024,
arXiv 2403.03853), and FLAP (An et al. 2023, arXiv 2312.11983), whose heads and neurons are chosen over all layers by
how much they fluctuate, and whose means go into a bias. Ours: replacements of one block scored on calibration text,
combined by the integer program of `BlockSearch`, in slices that compensate.

    python -m experiments.bench.training_free MODEL CALIBRATION.txt TEST.txt
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

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
    parser.add_argument("--skip-rivals", action="store_true")
    args = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    calibration = blocks_of(tokenizer, args.calibration, args.blocks, args.length)
    scored, test = calibration[: -(-args.scored // 4)], blocks_of(tokenizer, args.test, args.tested, args.length)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    supernet, started = Supernet(model), time.perf_counter()

    def line(*values: object) -> None:
        print(f"{time.perf_counter() - started:7.0f} s ", *values, flush=True)

    parent = supernet.parent
    counts = AnalyticCosts.from_model(model, supernet.layout, "text-generation")
    size = float(counts.count(["num_parameters"], [parent])["num_parameters"][0])
    line(f"parent: {size / 1e6:.1f} M parameters, perplexity {perplexity(supernet, parent, test):.2f}")
    if not args.skip_rivals:
        stock = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
        rivals(supernet, stock, calibration, test, size, line)
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
    losses = {subnet.key: mean_loss(supernet, subnet, scored) for subnet in candidates}
    line(f"{len(candidates)} replacements scored")

    def cost(name: str, subnets: Sequence[SubnetConfig]) -> Any:
        return counts.count([name], subnets)[name]

    found = block_solutions(space, losses, cost, objectives=["num_parameters"], bounds={}, limit=200)
    for share in SHARES:
        subnet = max(
            (each for each in found if cost("num_parameters", [each])[0] <= (1 - share) * size),
            key=lambda each: cost("num_parameters", [each])[0],
        )
        parameters = cost("num_parameters", [subnet])[0] / 1e6
        line(f"-{share:.0%} ours: {parameters:.1f} M, perplexity {perplexity(supernet, subnet, test):.2f}; {subnet}")
        statistics, supernet.calibration = supernet.calibration, None
        line(f"-{share:.0%} ours without compensation: perplexity {perplexity(supernet, subnet, test):.2f}")
        supernet.calibration = statistics


def rivals(
    supernet: Supernet, stock: Any, calibration: Batches, test: Batches, size: float, line: Callable[..., None]
) -> None:
    """Prints the rows of the published methods."""
    influence = block_influence(supernet, calibration[:4])
    layer_size = sum(p.numel() for p in supernet.layer(0).parameters())
    flap = Flap(stock, calibration)
    for share in SHARES:
        subnet = supernet.parent
        for layer in influence[: math.ceil(share * size / layer_size)]:
            subnet = drop_layer(subnet, layer)
        line(
            f"-{share:.0%} ShortGPT: {len(subnet.layers)} layers, perplexity {perplexity(supernet, subnet, test):.2f}"
        )
        with flap.pruned(share * size), torch.inference_mode():
            losses = [float(stock(**batch).loss) for batch in test]
        line(f"-{share:.0%} FLAP: perplexity {math.exp(sum(losses) / len(losses)):.2f}")


if __name__ == "__main__":
    main()
