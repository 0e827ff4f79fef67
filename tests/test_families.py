"""Law 1 over every family and every dimension: what is extracted equals what is active; counts are exact."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from samples import DAILY_FAMILIES, KINDS, LAYOUTS, sampled
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from toys import TOYS, VARIANTS, WORDS, Toy, logits
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from nas.modeling.elastic import Elastic
from nas.stages.layout_proof import zeroed
from nas.supernets.calibration import calibrate
from nas.supernets.importance import order_by_importance
from nas.supernets.supernet import Supernet
from nas.tasks.vocabulary import Vocabulary
from predictors.costs.analytic import AnalyticCosts
from search_spaces import FAMILIES, Layout, SearchSpace, SubnetConfig, tasks
from search_spaces.dimensions.bits import ROUNDS_ACTIVATIONS
from search_spaces.dimensions.ranks import RANK_FIELDS
from search_spaces.inputs import frames_of
from search_spaces.space import DEPTHS

CHOICES: dict[str, list[Any]] = {
    "num_hidden_layers": [1, 2, 4],
    "num_decoder_layers": [1, 3, 4],
    **{f"num_stage{stage}_layers": [1, 2, 4] for stage in (1, 2, 3, 4)},
    "num_attention_heads": [1, 2, 3, 4],
    "num_key_value_heads": [1, 2, 4],
    "intermediate_size": [16, 40, 96],
    "num_experts": [1, 3, 4, 6],
    "hidden_size": [24, 36, 48],
    "attention_rank": [20, 60, 100],
    "mlp_rank": [20, 60, 100],
    "vocabulary": ["13", "16", "full"],
    "embedding_rank": [40, 80, 100],
    "embedding_bits": ["pq:12", "4", "8", "16", "full"],
    "embedding_dim": [10, 24, 48],
    "image_size": [4, 6, "full"],
    "text_hidden_size": [12, 24, 36],
    "num_queries": [2, 4, 6],
    "attention": ["full", "local:4", "bigbird:2,1,1"],
    "bits": ["float32", "bfloat16", "int8-weight", "int8", "int4-weight"],
}
TABLE = ("embedding_rank", "embedding_bits")
"""Dimensions of a table of token embeddings that no head shares."""
GROUPED_HEADS = [2, 4, 8]
SKIPS = {"attention": ("num_attention_heads", [0, 4]), "mlp": ("intermediate_size", [0, 96])}
DIMENSIONS = [
    *(
        (name, dimension)
        for name, family in FAMILIES.items()
        for dimension in family.dimensions
        if dimension not in TABLE or "text-classification" in family.tasks  # other heads share the table
    ),
    *((name, f"skip {block}") for name, family in FAMILIES.items() for block in family.skippable),
]
FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._grouped_mm: lambda rows, weights, *_, **__: 2 * rows[0] * rows[1] * weights[-1],
}
"""The fused attention of the CPU and the products of experts, which the counter of operations lacks."""
ALL_TASKS = [(name, task) for name, family in FAMILIES.items() for task in family.tasks]
TASKS = sampled(
    ALL_TASKS,
    lambda name, task: name in DAILY_FAMILIES or (name in KINDS and task == FAMILIES[name].tasks[-1]),
)
OTHERS = sampled(
    ((name, task) for name, toy in VARIANTS.items() for task in FAMILIES[toy.model_type].tasks),
    lambda name, task: VARIANTS[name].model_type in KINDS and task == FAMILIES[VARIANTS[name].model_type].tasks[0],
)
TRAINED = sampled(
    ((name, task) for name, task in ALL_TASKS if tasks.TASKS[task].has_labels),
    lambda name, task: name in KINDS and task == FAMILIES[name].tasks[0],
)


def calibrated(model: Any, toy: Toy) -> Supernet:
    """A supernet whose layers may have a rank, and whose vocabulary may have fewer pieces: special tokens stay."""
    order = [*range(5), *Random(2).sample(range(5, len(WORDS)), len(WORDS) - 5)]
    supernet = Supernet(model, vocabulary=Vocabulary(np.array(order), 5))
    supernet.calibration = calibrate(supernet, [toy.inputs()], compensates=True)
    return supernet


def make_space(supernet: Supernet, names: list[str], scope: str = "per-layer") -> SearchSpace:
    """A space with some dimensions open, named as in a recipe or ``skip attention``, ``skip mlp``."""
    scope = "uniform" if supernet.family.shared_layers else scope
    choices: dict[str, Any] = {name: CHOICES[name] for name in names if name in CHOICES}
    if "hidden_size" in choices and "experts" in supernet.family.axes:
        choices["hidden_size"] = [24, 40, 48]
    if "image_size" in choices and supernet.family.patch_size:
        choices["image_size"] = [supernet.family.patch_size, 2 * supernet.family.patch_size, "full"]
    if "attention" in choices:
        choices["attention"] = patterns(supernet.layout)
    grouped = "num_key_value_heads" in supernet.family.dimensions
    if grouped and choices.keys() & {"num_attention_heads", "num_key_value_heads"}:
        choices["num_attention_heads"] = GROUPED_HEADS
    for name in names:
        if name.startswith("skip"):
            field, values = SKIPS[name.removeprefix("skip ")]
            choices[field] = sorted({*values, max(getattr(supernet.parent, field)), *choices.get(field, [])})
    order = Random(1).sample(supernet.parent.layers, len(supernet.parent.layers))
    shared = supernet.family.shared_layers
    return supernet.layout.search_space({**choices, "scope": scope}, supernet.parent.layers if shared else order)


def patterns(layout: Layout) -> list[str]:
    """Attention patterns; layers that slide keep no keys for global tokens and random blocks."""
    slides = layout.family.is_causal(0) and getattr(layout.sizes, "sliding_window", None) is not None
    return CHOICES["attention"][: 2 if slides else 3]


def dimensions(supernet: Supernet) -> list[str]:
    """The dimensions of a model: a table that a head shares keeps full rank, hidden states that it reads are whole."""
    has_head = supernet.model.base_model is not supernet.model
    of_table = TABLE if supernet.embedding is None else ()
    fixed = [*of_table, *["embedding_dim"] * has_head]
    return [name for name in supernet.family.dimensions if name not in fixed]


def everything(supernet: Supernet) -> list[str]:
    """Every dimension of a model, and every block that it may skip."""
    return [*dimensions(supernet), *(f"skip {block}" for block in supernet.family.skippable)]


def subnets(supernet: Supernet) -> Iterator[SubnetConfig]:
    """The largest and smallest, and uniform and per-layer subnetworks in which every dimension varies."""
    uniform = make_space(supernet, dimensions(supernet), "uniform")
    yield from (uniform.largest, uniform.smallest, *(uniform.sample(Random(k)) for k in range(3)))
    if not supernet.family.shared_layers:
        yield from (make_space(supernet, everything(supernet)).sample(Random(k)) for k in range(5))


def unpadded(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same inputs with every token real."""
    return {name: torch.ones_like(value) if "mask" in name else value for name, value in inputs.items()}


def own_inputs(inputs: dict[str, torch.Tensor], subnet: SubnetConfig) -> dict[str, torch.Tensor]:
    """The same inputs with ids that the vocabulary of a subnetwork has, or images of its size."""
    if subnet.input_size == "full":
        return inputs
    size = int(subnet.input_size)
    resize = {
        **dict.fromkeys(("input_ids", "decoder_input_ids", "labels"), lambda ids: ids.clamp(max=size - 1)),
        "pixel_values": lambda pixels: pixels[..., :size, :size],
    }
    tensors = {name for name in resize if torch.is_tensor(inputs.get(name))}
    return {name: resize[name](value) if name in tensors else value for name, value in inputs.items()}


def assert_extracted_equals_active(supernet: Supernet, subnet: SubnetConfig, inputs: dict[str, torch.Tensor]) -> None:
    tolerance = 1e-5
    if subnet.changes("embedding_rank") and {*subnet.bits} & {*ROUNDS_ACTIVATIONS}:
        # the factors of the table are multiplied in another order: 1e-7 apart, activations round to another step
        assert_extracted_equals_active(supernet, subnet.with_values(bits=()), inputs)
        tolerance = 1e-2
    supernet.activate(subnet)
    extracted = supernet.extract(subnet)
    assert not any(isinstance(module, Elastic) for module in extracted.modules())
    own = own_inputs(inputs, subnet)
    for batch in (own, unpadded(own)):
        expected, actual = logits(supernet.model, batch), logits(extracted, batch)
        assert torch.allclose(actual, expected, atol=tolerance), (str(subnet), (actual - expected).abs().max())


def test_every_family_has_a_toy() -> None:
    assert TOYS.keys() == FAMILIES.keys()


@pytest.mark.parametrize(("family", "dimension"), sampled(DIMENSIONS, lambda family, _: family in DAILY_FAMILIES))
def test_extracted_equals_active_in_each_dimension(family: str, dimension: str) -> None:
    tasks = {"embedding_dim": "feature-extraction", **dict.fromkeys(TABLE, "text-classification")}
    task = tasks.get(dimension, "")
    for attention in TOYS[family].attentions:
        supernet = calibrated(TOYS[family].model(task, attention=attention), TOYS[family])
        space, rng = make_space(supernet, [dimension]), Random(0)
        samples = {space.sample(rng).key: None for _ in range(20)}
        assert len(samples) > 1, "the dimension does not vary"
        for k in range(3):
            assert_extracted_equals_active(supernet, space.sample(Random(k)), TOYS[family].inputs())


@pytest.mark.parametrize("family", sampled(TOYS, lambda name: name in LAYOUTS))
def test_extracted_equals_active_with_every_dimension_open(family: str) -> None:
    for attention in TOYS[family].attentions:
        supernet = calibrated(TOYS[family].model(attention=attention), TOYS[family])
        for subnet in subnets(supernet):
            assert_extracted_equals_active(supernet, subnet, TOYS[family].inputs())


@pytest.mark.parametrize("family", sampled(TOYS, lambda name: name in KINDS))
def test_narrower_layers_equal_the_parent_with_the_rest_of_them_zeroed(family: str) -> None:
    """Supernet and extracted model could have the same error; the stock parent cannot."""
    toy = TOYS[family]
    for attention in toy.attentions:
        parent = toy.model(attention=attention)
        supernet = Supernet(copy.deepcopy(parent))
        others = ("hidden_size", "vocabulary", *TABLE, "embedding_dim", "image_size", "attention", "bits")
        others += (*DEPTHS, *RANK_FIELDS, "num_experts", "num_queries")
        space = make_space(supernet, [d for d in supernet.family.dimensions if d not in others])
        for k in range(4):
            subnet = space.sample(Random(k))
            reference = zeroed(parent, supernet.layout, subnet)
            supernet.activate(subnet)
            for batch in (toy.inputs(), unpadded(toy.inputs())):
                expected, actual = logits(reference, batch), logits(supernet.model, batch)
                assert torch.allclose(actual, expected, atol=1e-5), (str(subnet), (actual - expected).abs().max())


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if "attention" in family.dimensions])
def test_sparse_layers_equal_full_ones_under_the_mask_of_their_window(family: str) -> None:
    """The reference computes attention densely, under its padding mask and the window."""
    toy = TOYS[family]
    model = toy.model(attention=toy.attentions[0])
    supernet = Supernet(copy.deepcopy(model))
    layers = supernet.parent.num_hidden_layers
    supernet.activate(supernet.parent.with_values(attention=("local:3",) * layers))
    for batch in (toy.inputs(), unpadded(toy.inputs())):
        with masked_windows(model, 3):
            expected = of_real_tokens(model, batch)
        assert torch.allclose(of_real_tokens(supernet.model, batch), expected, atol=1e-5)


def of_real_tokens(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Outputs of a model for its samples, or for their tokens that are not padding."""
    outputs = logits(model, batch)
    real = batch.get("decoder_attention_mask", batch.get("attention_mask"))
    if real is not None and "input_values" in batch:
        frames = frames_of(model.config, real.sum(1))
        real = (torch.arange(int(frames_of(model.config, real.shape[1]))) < frames[:, None]).long()
    if real is None or outputs.numel() % real.numel():
        return outputs
    return outputs.view(*real.shape, -1) * real[..., None]


@contextmanager
def masked_windows(model: Any, window: int) -> Iterator[None]:
    """Dense self-attention of a stock model, with every key out of the window masked."""

    def masked(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
        if getattr(module, "is_cross_attention", False) or query.shape[2] != key.shape[2] or crosses(module):
            return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
        q, k = torch.arange(query.shape[2])[:, None], torch.arange(key.shape[2])
        in_window = (k <= q) & (q - k < window) if module.is_causal else (q - k).abs() <= window
        return sdpa_attention_forward(
            module, query, key, value, in_window if mask is None else in_window & mask, **kwargs
        )

    def crosses(module: Any) -> bool:
        return any(name.endswith("encoder_attn") and module is other for name, other in model.named_modules())

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", masked)
        yield


@pytest.mark.parametrize(("family", "task"), TASKS)
def test_every_head_follows_the_hidden_size(family: str, task: str) -> None:
    supernet = calibrated(TOYS[family].model(task), TOYS[family])
    for subnet in list(subnets(supernet))[1:]:
        assert_extracted_equals_active(supernet, subnet, TOYS[family].inputs())


@pytest.mark.parametrize(("family", "task"), TRAINED)
def test_importance_order_leaves_the_full_model_as_it_was(family: str, task: str) -> None:
    toy = TOYS[family]
    model, batch = toy.model(task), toy.labelled(task)
    inputs = {name: value for name, value in batch.items() if name in toy.inputs()}
    before, weights = logits(model, inputs), {name: p.clone() for name, p in model.named_parameters()}
    supernet = Supernet(model)
    order = order_by_importance(supernet, [batch], [batch])
    assert torch.allclose(logits(model, inputs), before, atol=1e-5)
    assert sorted(order.layers) == list(supernet.parent.layers)
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, weights[name])]
    moved = [set(supernet.layout.locate(name).axes) - {None} for name in changed]
    assert ("heads" in str(moved), "ffn" in str(moved)) == ("heads" in supernet.family.axes, True)
    assert any({"hidden"} <= axes <= {"hidden", "embedding", "vocab"} for axes in moved) == (
        "hidden_size" not in supernet.family.fixed_reasons
    )


@pytest.mark.parametrize("family", sampled(TOYS, lambda name: name in KINDS))
def test_the_full_model_is_untouched_by_activation(family: str) -> None:
    model, batch = TOYS[family].model(), TOYS[family].inputs()
    before, names, config = logits(model, batch), list(model.state_dict()), model.config.to_dict()
    supernet = calibrated(model, TOYS[family])
    for subnet in subnets(supernet):
        supernet.activate(subnet)
    assert supernet.active != supernet.parent
    supernet.activate(supernet.parent)
    assert torch.equal(logits(model, batch), before)
    assert list(model.state_dict()) == names and model.config.to_dict() == config


@pytest.mark.parametrize("family", [name for name, toy in TOYS.items() if "attention_mask" in toy.inputs()])
def test_padding_does_not_change_a_subnetwork(family: str) -> None:
    batch = TOYS[family].inputs()
    supernet = calibrated(TOYS[family].model(), TOYS[family])
    length = int(batch["attention_mask"][1].sum())
    for subnet in subnets(supernet):
        supernet.activate(subnet.with_values(bits=()))  # activations are rounded by a scale of the full batch
        own = own_inputs(batch, subnet)
        single = {
            name: value[1:2] if name.startswith("decoder") else value[1:2, :length] for name, value in own.items()
        }
        with torch.inference_mode():
            batched, unbatched = supernet.model(**own).logits[1], supernet.model(**single).logits[0]
        assert torch.allclose(batched[: len(unbatched)], unbatched, atol=1e-5)


@pytest.mark.parametrize(("family", "task"), TASKS)
def test_counts_are_exact(family: str, task: str, tmp_path: Path) -> None:
    assert_counts_are_exact(TOYS[family], task, tmp_path)


@pytest.mark.parametrize(("name", "task"), OTHERS)
def test_other_configs_of_a_family(name: str, task: str, tmp_path: Path) -> None:
    toy = VARIANTS[name]
    supernet = calibrated(toy.model(task), toy)
    for subnet in subnets(supernet):
        assert_extracted_equals_active(supernet, subnet, toy.inputs())
    assert_counts_are_exact(toy, task, tmp_path)


def assert_counts_are_exact(toy: Toy, task: str, folder: Path) -> None:
    supernet = calibrated(toy.model(task, attention="eager"), toy)
    costs = AnalyticCosts.from_model(supernet.model, supernet.layout, task)
    sample = {name: tensor[:1] for name, tensor in unpadded(toy.inputs()).items()}
    for number, subnet in enumerate(subnets(supernet)):
        model = supernet.extract(subnet.with_values(bits=(), embedding_bits="full")).requires_grad_(False)
        assert costs.num_parameters(subnet) == sum(p.numel() for p in model.parameters()), str(subnet)
        with FlopCounterMode(display=False, custom_mapping=FUSED) as flops, torch.no_grad():
            model(**own_inputs(sample, subnet))
        assert costs.macs(subnet, 12) == pytest.approx(flops.get_total_flops() / 2, rel=0.01), str(subnet)
        if number in (2, 7, 8):
            supernet.extract(subnet).save_pretrained(folder / str(number))
            assert (
                round(1e6 * costs.count(["size_mb"], [subnet])["size_mb"][0])
                == (folder / str(number) / "model.safetensors").stat().st_size
            )


def test_the_table_of_families_is_printed_from_the_code() -> None:
    import subprocess
    import sys

    process = subprocess.run([sys.executable, "-m", "nas.cli", "families"], capture_output=True, text=True)
    for name, family in FAMILIES.items():
        row = next(line for line in process.stdout.splitlines() if re.match(rf"\s*{re.escape(name)}\s", line))
        assert family.tasks[0] in row and family.dimensions[0] in row
        assert not family.skippable or family.skippable[0] in row
