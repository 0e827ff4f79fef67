"""Analytic costs: many subnetworks at once equal single ones and real files, caches and allocations, without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from samples import DAILY_FAMILIES, LAYOUTS, sampled
from toys import TOYS, Toy

from nas import Supernet
from nas.supernets.calibration import calibrate
from nas.tasks.images import random_images
from predictors import AnalyticCosts, Workload
from predictors.costs.analytic import COST_NAMES
from predictors.costs.cost_table import unique_rows
from predictors.costs.roofline import DevicePeak, roofline_ms
from search_spaces import FAMILIES, Layout, SearchSpace

EVERY = sampled(TOYS, lambda family: family in (*DAILY_FAMILIES, "modernbert", "whisper"))
GENERATING = ("text-generation", "text2text-generation", "automatic-speech-recognition")
WIDE = {"hidden": 192, "ffn": 768, "heads": 6, "layers": 2, "tokens": 128}
LOOSE = {"t5": 0.35, "gemma2": 0.3, "dinov3_vit": 0.25, "umt5": 0.6, "bloom": 0.45}
LOOSE |= dict.fromkeys(("gptj", "mt5", "mbart", "m2m_100", "pegasus", "falcon", "olmo2"), 0.35)
"""Relative tolerance of the activation count for families with unusual implementations of attention."""

SIZE_OF_FIELD = {
    **dict.fromkeys(("hidden_size", "dim", "d_model"), WIDE["hidden"]),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "ffn_dim", "n_inner"), WIDE["ffn"]),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), WIDE["ffn"]),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "num_layers"), WIDE["layers"]),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), WIDE["layers"]),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_heads"), WIDE["heads"]),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), WIDE["heads"]),
    "num_key_value_heads": 3,
    "head_dim": 32,
    "d_kv": 32,
    "vocab_size": 400,
    "max_position_embeddings": 256,
    "max_source_positions": 64,
    "max_target_positions": 256,
    "image_size": 32,
    "num_patches": 256,
    "mlp_ratio": 4,
}
"""Sizes at which the terms that a formula omits are negligible."""


def wide(toy: Toy) -> Toy:
    """A toy with realistic proportions."""

    def enlarged(config: dict[str, Any]) -> dict[str, Any]:
        sizes = {name: SIZE_OF_FIELD.get(name, value) for name, value in config.items()}
        nested = {name: enlarged(value) for name, value in sizes.items() if isinstance(value, dict)}
        lists = {name: sizes[name][:2] for name in ("layer_types", "no_rope_layers") if name in sizes}
        return sizes | nested | lists

    config = enlarged(toy.config)
    return replace(toy, config=config | ({"n_inner": WIDE["ffn"]} if toy.model_type == "gpt2" else {}))


def inputs_of(toy: Toy, batch: int) -> dict[str, torch.Tensor]:
    """Inputs of 128 tokens each, or an image or sound of the size in the config."""
    if FAMILIES[toy.model_type].cuts_patches:
        return random_images(toy.model().config, Workload(sequence_length=None, batch_size=batch), torch.Generator())
    shapes = {"pixel_values": (batch, 3, 32, 32), "input_features": (batch, 8, 128)}
    arrays = {name: torch.randn(shapes[name]) for name in toy.inputs() if name in shapes}
    texts = [name for name in toy.inputs() if name not in shapes]
    return arrays | {name: torch.ones(batch, WIDE["tokens"], dtype=torch.long) for name in texts}


def open_space(layout: Layout, *, fixed: tuple[str, ...] = ()) -> SearchSpace:
    """A space with some choices of every dimension of a family, except the fixed ones."""
    parent, family = layout.parent, layout.family
    heads, groups = max(parent.num_attention_heads), max(parent.num_key_value_heads)
    choices: dict[str, Any] = {"num_hidden_layers": [2, parent.num_hidden_layers // len(layout.depths)]}
    choices |= {"num_attention_heads": [heads // groups, heads], "intermediate_size": [24, 96]}
    choices |= {
        "attention_rank": [50, 100],
        "mlp_rank": [25, 100],
        "hidden_size": [24, 48],
        "embedding_rank": [50, 100],
    }
    choices |= {"attention": ["local:4", "full"], "num_decoder_layers": [1, 2]}
    fixed = (*fixed, *["embedding_rank"] * layout.ties_embedding(family.tasks[0]))
    supported = {name: values for name, values in choices.items() if name in family.dimensions and name not in fixed}
    scope = "uniform" if family.shared_layers else "per-layer"
    for block, field in (("attention", "num_attention_heads"), ("mlp", "intermediate_size")):
        if block in family.skippable and scope == "per-layer":
            supported[field] = [0, *supported[field]]
    return layout.search_space({**supported, "scope": scope})


@pytest.mark.parametrize("family", EVERY)
def test_many_subnetworks_have_the_costs_of_single_ones(family: str) -> None:
    supernet = Supernet(TOYS[family].model())
    costs, space, rng = (
        AnalyticCosts.from_model(supernet.model, supernet.layout),
        open_space(supernet.layout),
        Random(0),
    )
    subnets = [space.sample(rng) for _ in range(40)]
    counted = costs.count(COST_NAMES, subnets, Workload(sequence_length=12, batch_size=2))
    assert counted["num_parameters"].tolist() == [costs.num_parameters(s) for s in subnets]
    assert counted["macs"].tolist() == [costs.macs(s, 12) for s in subnets]
    assert counted["size_mb"].tolist() == [
        round(1e6 * costs.count(["size_mb"], [s])["size_mb"][0]) / 1e6 for s in subnets
    ]
    for name in ("peak_activation_mb", "kv_cache_mb"):
        single = [costs.count([name], [s], Workload(sequence_length=12, batch_size=2))[name][0] for s in subnets]
        assert counted[name].tolist() == single


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "vit"])
def test_file_sizes_are_those_of_real_files(family: str, tmp_path: Path) -> None:
    toy = TOYS[family]
    supernet = Supernet(toy.model())
    supernet.calibration = calibrate(supernet, [toy.inputs()])
    bits = ["int4-weight", "int8", "float32"]
    space = SearchSpace(**{**open_space(supernet.layout).arguments(), "bits": bits})
    rng, sizes = Random(2), []
    subnets = [space.sample(rng) for _ in range(12)]
    for number, subnet in enumerate(subnets):
        supernet.extract(subnet).save_pretrained(tmp_path / str(number))
        sizes.append((tmp_path / str(number) / "model.safetensors").stat().st_size)
    counted = AnalyticCosts.from_model(supernet.model, supernet.layout).count(["size_mb"], subnets)["size_mb"]
    assert len({len(str(size)) for size in sizes}) > 1 and (counted * 1e6).round().tolist() == sizes


@pytest.mark.parametrize("family", [n for n, family in FAMILIES.items() if family.tasks[0] in GENERATING])
def test_the_cache_size_is_that_of_a_real_cache(family: str) -> None:
    toy = TOYS[family]
    supernet = Supernet(toy.model())
    costs, rng = AnalyticCosts.from_model(supernet.model, supernet.layout), Random(1)
    space = open_space(supernet.layout, fixed=("attention_rank", "mlp_rank", "embedding_rank"))
    for subnet in [space.largest, *(space.sample(rng) for _ in range(6))]:
        model = supernet.extract(subnet)
        with torch.inference_mode():
            cache = model(**toy.inputs(), use_cache=True).past_key_values
        halves = [getattr(cache, n) for n in ("self_attention_cache", "cross_attention_cache") if hasattr(cache, n)]
        layers = [layer for half in halves or [cache] for layer in half.layers]
        cached = [t for layer in layers for t in (layer.keys, layer.values) if t is not None]
        real = sum(tensor.numel() * tensor.element_size() for tensor in cached)
        counted = costs.count(["kv_cache_mb"], [subnet], Workload(sequence_length=12, batch_size=3))["kv_cache_mb"]
        assert counted[0] * 1e6 == pytest.approx(real), str(subnet)


@pytest.mark.parametrize("family", sampled(TOYS, lambda name: name in LAYOUTS))
def test_only_models_with_a_cache_have_its_cost(family: str) -> None:
    supernet = Supernet(TOYS[family].model())
    costs = AnalyticCosts.from_model(supernet.model, supernet.layout)
    cache_mb = costs.count(["kv_cache_mb"], [supernet.parent], Workload(sequence_length=8))["kv_cache_mb"][0]
    assert ("kv_cache_mb" in costs.cost_names) == (cache_mb > 0)


def allocated(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    """Peak bytes that PyTorch allocates during a forward pass, without weights and inputs."""
    from torch.profiler import ProfilerActivity, profile

    with torch.inference_mode():
        model(**inputs)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            model(**inputs)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max())


@pytest.mark.parametrize("family", [each for each in EVERY if FAMILIES[each.values[0]].stages is None])
def test_peak_activation_memory_is_what_pytorch_allocates(family: str) -> None:
    toy = wide(TOYS[family])
    supernet = Supernet(toy.model())
    costs, parent = AnalyticCosts.from_model(supernet.model, supernet.layout), supernet.layout.parent
    narrow = parent.with_values(intermediate_size=tuple(w // 6 for w in parent.intermediate_size))
    step = {"use_cache": False} if supernet.model.can_generate() else {}
    for subnet in (parent, narrow):
        real = allocated(supernet.extract(subnet), {**inputs_of(toy, 2), **step})
        workload = Workload(sequence_length=WIDE["tokens"], batch_size=2)
        counted = costs.count(["peak_activation_mb"], [subnet], workload)["peak_activation_mb"][0] * 1e6
        assert counted == pytest.approx(real, rel=LOOSE.get(family, 0.17)), str(subnet)


def test_decoding_a_token_needs_little_memory_and_reads_the_cache() -> None:
    supernet = Supernet(TOYS["llama"].model())
    costs, parent = AnalyticCosts.from_model(supernet.model, supernet.layout), [supernet.layout.parent]
    prefill, decode = (Workload(sequence_length=128, phase=phase) for phase in ("prefill", "decode"))
    names = ["peak_activation_mb", "kv_cache_mb"]
    full, step = (costs.count(names, parent, workload) for workload in (prefill, decode))
    assert step["peak_activation_mb"][0] < full["peak_activation_mb"][0] / 50
    assert step["kv_cache_mb"] == full["kv_cache_mb"]
    slow_memory, slow_arithmetic = DevicePeak(1e15, 1e6), DevicePeak(1e6, 1e15)
    cache = 1e3 * 1e6 * step["kv_cache_mb"] / 1e6
    weights = sum(cost.weights for cost in costs.block_costs(parent[0], 128))
    assert roofline_ms(costs, parent, decode, slow_memory)[0] > cache[0] + 1e3 * 4 * weights / 1e6
    macs = costs.macs(parent[0], 128)
    assert roofline_ms(costs, parent, prefill, slow_arithmetic)[0] == pytest.approx(1e3 * macs / 1e6)


def test_the_device_peak_is_measured() -> None:
    peak = DevicePeak.measure(Workload())
    assert peak.macs_per_second > 1e8 and peak.bytes_per_second > 1e8


def test_unique_rows_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    columns = [rng.integers(0, high, 500) for high in (2, 3, 2**60, 1)]
    columns[2] = columns[2][rng.integers(0, 4, 500)]
    index, rows = unique_rows(columns)
    table = np.stack(columns, axis=1)
    assert (table[np.array(rows)[index]] == table).all()
    assert len(rows) == len(np.unique(table, axis=0))


def test_no_subnetworks_have_empty_costs() -> None:
    supernet = Supernet(TOYS["bert"].model())
    counted = AnalyticCosts.from_model(supernet.model, supernet.layout).count(COST_NAMES, [])
    assert all(values.shape == (0,) for values in counted.values())


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import math
from transformers import BertConfig
from predictors import AnalyticCosts, Workload
from search_spaces import Layout, SubnetConfig
layout = Layout(BertConfig(hidden_size=48, num_attention_heads=4, num_hidden_layers=4, intermediate_size=96))
shapes = {f"bert.encoder.layer.{k}.attention.self.query.weight": (48, 48) for k in range(4)}
costs = AnalyticCosts(layout, {}, shapes, shapes, "text-classification")
half = SubnetConfig((0, 2), (2, 4), (96, 96), 48)
counted = costs.count(["num_parameters", "macs"], [layout.parent, half], Workload(sequence_length=1))
assert counted["num_parameters"].tolist() == [4 * 48 * 48, 24 * 48 + 48 * 48]
"""


def test_counting_needs_no_torch() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True, timeout=120)
