"""Generation in every generative family: a cache changes no output of any subnetwork."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from samples import DAILY_FAMILIES, sampled
from toy_tasks import causal
from toys import TOYS, as_fixed

import nas  # noqa: F401  exports load without the trust flag
from nas.commands.bench import bench_rows
from nas.recipe.schema import Recipe
from nas.supernets.supernet import Supernet
from search_spaces import FAMILIES, TASKS, SubnetConfig

GENERATING = ("text-generation", "text2text-generation")
MODELS = [(name, task) for name, family in FAMILIES.items() for task in family.tasks if task in GENERATING]
NEW_TOKENS = 6
NO_CACHE, DYNAMIC, STATIC = {"use_cache": False}, {}, {"cache_implementation": "static"}
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]] = {
    "the parent": ((0, 1, 2, 3), (4, 4, 4, 4), (2, 2, 2, 2), (96, 96, 96, 96), 48),
    "uniform": ((0, 2), (2, 2), (2, 2), (40, 40), 24),
    "layer 0 dropped": ((1, 2, 3), (4, 4, 4), (2, 2, 2), (96, 96, 96), 48),
    "first attention skipped": ((1, 2, 3), (0, 4, 4), (0, 2, 2), (96, 96, 40), 48),
    "per layer": ((0, 1, 3), (4, 1, 2), (1, 2, 1), (16, 0, 96), 36),
    "sparse": ((0, 1, 2, 3), (4, 4, 2, 4), (2, 1, 2, 2), (96, 96, 40, 96), 48),
}
"""Kept layers of each stack, their groups, heads a group (where heads are grouped), neurons, hidden size."""
SAMPLED = sampled(
    ((case, *model) for case in CASES for model in MODELS),
    lambda case, family, task: case == "per layer" or family in DAILY_FAMILIES,
)
"""Each case on one family of each kind, and what differs from layer to layer on every family."""
PATTERNS = {"sparse": ("local:3", "bigbird:2,1,1", "full", "local:2")}
"""Attention of each kept layer, in cases where it is sparse."""


def toy(family: str, task: str) -> Any:
    """A model with weights so large that each layer, head and earlier token counts for the next one.

    Embeddings stay small: tied ones would only repeat the last token.
    """
    model = TOYS[family].model(task)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter is not model.get_input_embeddings().weight:
                parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() > 1 else 0.1))
    model.generation_config.eos_token_id = None
    return model


def subnet(supernet: Supernet, case: str) -> SubnetConfig:
    """A case of the table, the same in each stack; what a family cannot vary stays as in the parent."""
    layout, (kept, groups, per_group, neurons, hidden) = supernet.layout, CASES[case]
    layers, stacks = [], len(layout.depths)
    for number, depth in enumerate(layout.depths):
        layers += [sum(layout.depths[:number]) + layer for layer in kept]
        assert depth == 4
    heads = [g * p for g, p in zip(groups, per_group, strict=True)] if "kv_heads" in layout.family.axes else groups
    subnet = SubnetConfig(
        tuple(layers),
        tuple(heads) * stacks,
        neurons * stacks,
        supernet.parent.hidden_size if "hidden_size" in supernet.family.fixed_reasons else hidden,
        num_key_value_heads=groups * stacks,
        attention=patterns(supernet, case) * stacks,
    )
    return as_fixed(layout, subnet)


def patterns(supernet: Supernet, case: str) -> tuple[str, ...]:
    """Attention of each layer of a stack; a sliding window caches no keys for global tokens and random blocks."""
    texts = PATTERNS.get(case, ()) if "attention" in supernet.family.dimensions else ()
    slides = getattr(supernet.layout.sizes, "sliding_window", None) is not None
    return tuple("local:4" if slides and text.startswith("bigbird") else text for text in texts)


def active_and_extracted(supernet: Supernet, case: str) -> tuple[Any, Any]:
    """The supernet with the subnetwork of a case active, and the extracted model."""
    case_subnet = subnet(supernet, case)
    supernet.activate(case_subnet)
    return supernet.model, supernet.extract(case_subnet)


def prompts(family: str, rows: slice = slice(None)) -> dict[str, torch.Tensor]:
    """Prompts of different lengths, padded as generation needs it: left for a decoder, right for an encoder."""
    torch.manual_seed(1)
    inputs = {name: value[rows] for name, value in TOYS[family].inputs().items() if not name.startswith("decoder")}
    if "decoder_input_ids" in TOYS[family].inputs():
        return inputs
    return {name: value.flip(1) for name, value in inputs.items()}


def generated(model: Any, inputs: dict[str, torch.Tensor], how: dict[str, Any] = DYNAMIC) -> torch.Tensor:
    """Greedily generated tokens."""
    tokens = model.generate(**inputs, **how, do_sample=False, max_new_tokens=NEW_TOKENS, pad_token_id=0)
    return tokens[:, -NEW_TOKENS:]


def in_chunks(model: Any, inputs: dict[str, torch.Tensor], sizes: list[int]) -> torch.Tensor:
    """Logits of a text that is read in chunks through a cache."""
    name = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    logits, start, cache = [], 0, None
    for size in sizes:
        chunk = {**inputs, name: inputs[name][:, start : start + size]}
        if name == "input_ids":
            chunk["attention_mask"] = inputs["attention_mask"][:, : start + size]
        outputs = model(**chunk, past_key_values=cache, use_cache=True)
        logits, start, cache = [*logits, outputs.logits], start + size, outputs.past_key_values
    return torch.cat(logits, 1)


@pytest.mark.parametrize(("case", "family", "task"), SAMPLED)
def test_no_cache_and_each_cache_give_the_same_tokens(family: str, task: str, case: str) -> None:
    active, extracted = active_and_extracted(Supernet(toy(family, task)), case)
    expected = generated(active, prompts(family), NO_CACHE)
    for how in (DYNAMIC, STATIC):
        assert torch.equal(generated(active, prompts(family), how), expected), how
    in_chunks = [{**STATIC, "prefill_chunk_size": 4}] if task == "text-generation" else []
    for how in (NO_CACHE, DYNAMIC, STATIC, *in_chunks):
        assert torch.equal(generated(extracted, prompts(family), how), expected), how


@pytest.mark.parametrize(("case", "family", "task"), SAMPLED)
def test_a_padded_batch_equals_each_single_prompt(family: str, task: str, case: str) -> None:
    supernet, inputs = Supernet(toy(family, task)), prompts(family)
    for model in active_and_extracted(supernet, case):
        batched = generated(model, inputs)
        for row, mask in enumerate(inputs["attention_mask"].bool()):
            single = {name: value[row : row + 1, mask] for name, value in inputs.items()}
            assert torch.equal(generated(model, single)[0], batched[row]), type(model).__name__


@torch.inference_mode()
@pytest.mark.parametrize(("case", "family", "task"), SAMPLED)
def test_reading_in_chunks_equals_reading_at_once(family: str, task: str, case: str) -> None:
    supernet, inputs = Supernet(toy(family, task)), {**TOYS[family].inputs(), **prompts(family)}
    real = inputs["attention_mask"].bool() if "decoder_input_ids" not in inputs else ...
    for model in active_and_extracted(supernet, case):
        at_once, chunks = model(**inputs).logits, in_chunks(model, inputs, [5, 3, 1, 1, 2])
        scale = max(1, at_once.abs().max().item())
        assert torch.allclose(chunks[real], at_once[real], atol=1e-5 * scale), (chunks - at_once)[real].abs().max()


@pytest.mark.parametrize(
    ("family", "task", "dtype"),
    sampled(
        ((*model, dtype) for model in MODELS for dtype in (torch.float16, torch.bfloat16)),
        lambda family, task, dtype: family in DAILY_FAMILIES,
    ),
)
def test_an_export_reloads_and_generates_in_half_precision(
    family: str, task: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    auto = getattr(transformers, TASKS[task].auto_class)
    toy(family, task).save_pretrained(tmp_path / "parent")
    supernet = Supernet(auto.from_pretrained(tmp_path / "parent", dtype=dtype).eval())
    inputs = prompts(family)
    full = {**TOYS[family].inputs(), **inputs}
    for case in ("uniform", "per layer"):
        active, model = active_and_extracted(supernet, case)
        model.save_pretrained(tmp_path / case)
        reloaded = auto.from_pretrained(tmp_path / case, dtype="auto").eval()
        assert reloaded.dtype == dtype
        with torch.inference_mode():
            assert torch.equal(reloaded(**full).logits, model(**full).logits), case
            assert torch.allclose(active(**full).logits, model(**full).logits, rtol=0.05, atol=0.05), case
        for how in (DYNAMIC, STATIC):
            assert torch.equal(generated(reloaded, inputs, how), generated(model, inputs, how)), (case, how)


@pytest.mark.slow
def test_nas_bench_of_decoding_runs_in_onnx_runtime(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    causal(tmp_path / "model")
    (tmp_path / "text.txt").write_text("the film is good")
    task = {"type": "text-generation", "train": str(tmp_path / "text.txt"), "test": str(tmp_path / "text.txt")}
    workload = {"runtime": "onnxruntime", "phase": "decode", "sequence_length": 16}
    recipe = Recipe.parse({"model": str(tmp_path / "model"), "task": task, "space": {}, "workload": workload})
    (row,) = bench_rows([recipe.model], recipe, 0.5)
    assert row.timing.latency_ms > 0 and row.workload == recipe.workload


@pytest.mark.parametrize(("family", "task"), MODELS)
def test_fewer_layers_are_a_stock_export(family: str, task: str, tmp_path: Path) -> None:
    supernet = Supernet(toy(family, task))
    model = supernet.extract(subnet(supernet, "layer 0 dropped"))
    model.save_pretrained(tmp_path)
    reloaded = getattr(transformers, TASKS[task].auto_class).from_pretrained(tmp_path).eval()
    assert type(reloaded).__module__.startswith("transformers.models")
    assert torch.equal(generated(reloaded, prompts(family)), generated(model, prompts(family)))


@pytest.mark.parametrize(("family", "is_stock"), [("llama", False), ("mistral", True), ("gemma2", False)])
def test_a_stock_export_has_a_config_that_its_class_accepts(family: str, is_stock: bool, tmp_path: Path) -> None:
    """Some config classes refuse 4 heads at a hidden size of 30, for any head_dim."""
    supernet = Supernet(toy(family, "text-generation"))
    odd = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40, "hidden_size": 30}
    model = supernet.extract(SubnetConfig.uniform((0, 2), **odd))
    model.save_pretrained(tmp_path)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(reloaded).__module__.startswith("transformers.models") == is_stock
    assert torch.equal(generated(reloaded, prompts(family)), generated(model, prompts(family)))
