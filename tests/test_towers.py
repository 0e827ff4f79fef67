"""Models with a tower for images and one for texts: each has its own depth, widths and residual stream."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from random import Random
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from test_families import (
    FUSED,
    assert_extracted_equals_active,
    calibrated,
    everything,
    make_space,
    own_inputs,
    subnets,
)
from torch.utils.flop_counter import FlopCounterMode
from toys import CUT_TOWERS, POOLING_TOWERS, TOWERS, TOYS, UNLIKE, Toy, logits

from nas.exports.export import check_equal, outputs_in_subprocess, save_subnet, supernet_outputs
from nas.exports.formats import convert
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.layout_proof import zeroed
from nas.stages.parent import run_parent
from nas.stages.parent_check import check_parent
from nas.stages.supernet import run_supernet
from nas.supernets.importance import order_by_importance
from nas.supernets.load import load_supernet
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from nas.tasks.loading import load_parent_config
from nas.tasks.types.image_text_retrieval import ImageTextRetrieval
from predictors import AnalyticCosts, Workload
from predictors.measurement.image_tower import image_tower
from predictors.measurement.prepare import prepare
from search_spaces import FAMILIES, InputError, Layout, SearchSpace
from search_spaces.families.clip import TOWERS as TABLE
from search_spaces.tasks import RETRIEVAL_TASK, TOWERS_TASK

IMAGES = Workload(sequence_length=None)
OF_BOTH = (TOWERS, POOLING_TOWERS, CUT_TOWERS)


def supernet() -> Supernet:
    return calibrated(TOWERS.model(TOWERS_TASK), TOWERS)


def space_of(net: Supernet, scope: str = "per-layer") -> SearchSpace:
    return make_space(net, everything(net) if scope == "per-layer" else net.family.dimensions, scope)


COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe over a tiny CLIP without weights, and images of three colours."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature
    from PIL import Image
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessor, CLIPProcessor, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[BOS]", "[EOS]", "This", "is", "a", "photo", "of", *COLOURS, "."]
    tokens = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="[UNK]", pad_token="[PAD]", eos_token=".")
    sizes = {"size": {"height": 8, "width": 8}, "do_center_crop": False}
    CLIPProcessor(CLIPImageProcessor(**sizes), fast).save_pretrained(tmp_path / "model")
    model = replace(TOWERS, config={**UNLIKE, "text_config": {**UNLIKE["text_config"], "eos_token_id": 12}})
    model.model(TOWERS_TASK).config.save_pretrained(tmp_path / "model")
    rows = [[*COLOURS][k % 3] for k in range(90)]
    pixels = np.array([COLOURS[name] for name in rows])[:, None, None] + np.random.default_rng(0).normal(
        0, 20, (90, 8, 8, 3)
    )
    pictures = [Image.fromarray(one.clip(0, 255).astype("uint8")) for one in pixels]
    for name, part in {"train": slice(0, 60), "test": slice(60, 90)}.items():
        texts = [f"a photo of {name}." for name in rows[part]]
        columns = {"image": pictures[part], "label": rows[part], "text": texts}
        features = Features({"image": ImageFeature(), "label": Value("string"), "text": Value("string")})
        Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"{name}.parquet")
    quick = {"epochs": 6, "learning_rate": 3e-3, "batch_size": 8}
    source = {"train": "train.parquet", "test": "test.parquet"}
    data = {
        "model": "model",
        "task": {"type": TOWERS_TASK, **source, "search_examples": 24},
        "space": {
            "num_hidden_layers": [2, 4],
            "num_decoder_layers": [1, 4],
            "num_attention_heads": [1, 3, 4],
            "intermediate_size": [32, 96],
            "hidden_size": [24, 48],
            "text_hidden_size": [24, 36],
        },
        "objectives": {"accuracy": "maximize", "latency_ms": "minimize", "num_parameters": "minimize"},
        "parent": quick,
        "supernet": {**quick, "sampled_subnets": 1, "strategy": "sandwich"},
        "profile": {"samples": 12, "precision": 0.5},
        "finish": {"models": 1, "epochs": 1, "learning_rate": 3e-3, "batch_size": 8},
        "baselines": [],
        "search": {"evaluations": 12},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    return tmp_path / "recipe.yaml"


def test_a_parent_learns_texts_of_classes_and_an_export_of_both_towers_reloads(recipe: Path, tmp_path: Path) -> None:
    context = TaskContext(Recipe.load(recipe))
    (batch, *_) = context.splits.test.batches
    assert batch["input_ids"].shape == (3, 7) and len(batch["labels"]) == len(batch["pixel_values"])
    run = Run.open(tmp_path / "run", context.recipe)
    run_parent(run, context)
    assert score(context.load_model(run.parent), context.splits.test, ["accuracy"])["accuracy"].value > 0.9
    run_supernet(run, context)
    net, space = load_supernet(run, context)
    narrow = space.sample(Random(0))
    save_subnet(net, narrow, context, tmp_path / "small")
    inputs, expected = supernet_outputs(net, narrow, context)
    outputs = outputs_in_subprocess("torch", tmp_path / "small", TOWERS_TASK, inputs)
    check_equal(outputs, expected, narrow)
    with pytest.raises(InputError, match="it has two towers"):
        load_parent_config(str(tmp_path / "small"))
    (line,) = [line for line in check_parent(context, tmp_path / "other") if line.startswith("towers")]
    assert "image tower" in line and "saves only" not in line
    quick = TaskContext(Recipe.load(recipe, ["objectives={accuracy: maximize, latency_ms: minimize}"]))
    assert any("saves only num_parameters and size_mb" in line for line in check_parent(quick, tmp_path / "other"))
    with pytest.raises(InputError, match="for the name of a class"):
        Recipe.load(recipe, ["task.hypothesis_template=a photo"])


def of_retrieval(recipe: Path) -> dict[str, Any]:
    """The recipe over images and their texts in place of classes."""
    data: dict[str, Any] = yaml.safe_load(recipe.read_text())
    data["task"] |= {"type": RETRIEVAL_TASK, "text": "text"}
    return data | {"objectives": {"recall10": "maximize", "mrr10": "maximize", "size_mb": "minimize"}}


def test_images_are_found_by_their_texts(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(yaml.safe_dump(of_retrieval(recipe)))
    context = TaskContext(Recipe.load(recipe))
    (batch, *_), test = context.splits.test.batches, context.splits.test
    assert len(batch["input_ids"]) == len(batch["pixel_values"]) and "labels" not in batch
    run = Run.open(tmp_path / "run", context.recipe)
    before = score(context.load_model(), test, ["mrr10"])["mrr10"].value
    run_parent(run, context)
    found = score(context.load_model(run.parent), test, ["mrr10", "recall10"])
    assert found["mrr10"].value > max(before, 0.8) and found["recall10"].value >= found["mrr10"].value
    run_supernet(run, context)
    net, space = load_supernet(run, context)
    save_subnet(net, space.smallest, context, tmp_path / "small")
    inputs, expected = supernet_outputs(net, space.smallest, context)
    check_equal(outputs_in_subprocess("torch", tmp_path / "small", RETRIEVAL_TASK, inputs), expected, space.smallest)


def test_a_text_is_found_where_one_of_its_images_is_among_the_ten_nearest() -> None:
    images = np.eye(12)
    texts = np.stack([images[0], images[1] * 0.1 + images[2], *images[2:]])
    names = np.array(["a", "b", "b", *"cdefghijk"], dtype=object)
    stats = {"images": images, "texts": texts, "text": names}
    task = object.__new__(ImageTextRetrieval)
    found = task.compare_examples(stats, ["mrr10"])
    assert found["mrr10"].tolist() == [1.0] * 12  # the second text is nearest to the other image that has it
    other = task.compare_examples({**stats, "text": np.array([*"abcdefghijkl"], dtype=object)}, ["mrr10"])
    assert other["mrr10"].tolist() == [1.0, 0.5, *[1.0] * 10] and other["recall10"].all()


def over_patches(recipe: Path) -> str:
    """The recipe for a tiny SigLIP 2 for images of any size, in place of its CLIP."""
    from transformers import Siglip2ImageProcessorPil, Siglip2Processor, Siglip2Tokenizer

    folder, data = recipe.parent / "model", yaml.safe_load(recipe.read_text())
    parts = [(name[:end], name[end]) for name in ("green", "blue", "red") for end in range(1, len(name))]
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", ".", *ascii_lowercase, *map("".join, parts)]
    tokenizer = Siglip2Tokenizer({piece: number for number, piece in enumerate(pieces)}, parts)
    Siglip2Processor(Siglip2ImageProcessorPil(patch_size=2, max_num_patches=16), tokenizer).save_pretrained(folder)
    texts = {**CUT_TOWERS.config["text_config"], "vocab_size": len(pieces)}
    model = replace(CUT_TOWERS, config={**CUT_TOWERS.config, "text_config": texts}).model(TOWERS_TASK)
    model.logit_scale.data.fill_(2.0)  # a new one starts at 0, and learns slowly
    model.save_pretrained(folder)
    del data["space"]["hidden_size"]
    return yaml.safe_dump(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "family"),
    [
        (TOWERS_TASK, "clip"),
        pytest.param(RETRIEVAL_TASK, "clip", marks=pytest.mark.full),
        pytest.param(TOWERS_TASK, "siglip2", marks=pytest.mark.full),
    ],
)
def test_a_search_of_both_towers_exports_a_model_for_the_pipeline(
    recipe: Path, task: str, family: str, tmp_path: Path
) -> None:
    from transformers import pipeline

    if family == "siglip2":
        recipe.write_text(over_patches(recipe))
    if task == RETRIEVAL_TASK:
        recipe.write_text(yaml.safe_dump(of_retrieval(recipe)))
    search(Recipe.load(recipe), tmp_path / "run")
    points = Run(tmp_path / "run").verified_points()
    assert {len([k for k in point.subnet.layers if k > 3]) for point in points} > {4}
    export = next((tmp_path / "run" / "exports").iterdir())
    with pytest.raises(InputError, match="as a Hugging Face model only, but got onnx"):
        convert(export, ["onnx"])
    classify = pipeline(TOWERS_TASK, str(export), trust_remote_code=True)
    images = TaskContext(Recipe.load(recipe)).splits.task.test
    found = [classify(row["image"], candidate_labels=[*COLOURS])[0]["label"] for row in images]
    assert np.mean([text.endswith(f"{name}.") for name, text in zip(found, images["text"], strict=True)]) > 0.7


def test_the_table_of_a_task_has_the_towers_that_its_models_have() -> None:
    assert Layout(TOWERS.model(TOWERS_TASK).config, TOWERS_TASK).depths == (4, 4)
    assert Layout(TOWERS.model("image-classification").config, "image-classification").depths == (4,)
    assert TOWERS_TASK in FAMILIES["clip"].all_tasks and TOWERS_TASK not in FAMILIES["vit"].all_tasks


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("toy", OF_BOTH, ids=lambda toy: toy.model_type)
def test_extracted_equals_active_with_every_dimension_of_both_towers_open(toy: Toy, attention: str) -> None:
    net = calibrated(toy.model(TOWERS_TASK, attention), toy)
    for subnet in subnets(net):
        assert_extracted_equals_active(net, subnet, toy.inputs())


@pytest.mark.parametrize("dimension", TABLE.dimensions)
def test_extracted_equals_active_in_each_dimension_of_both_towers(dimension: str) -> None:
    net = supernet()
    space = make_space(net, [dimension])
    assert len({space.sample(Random(k)).key for k in range(20)}) > 1
    for k in range(2):
        assert_extracted_equals_active(net, space.sample(Random(k)), TOWERS.inputs())


@pytest.mark.parametrize("toy", OF_BOTH, ids=lambda toy: toy.model_type)
def test_narrower_towers_equal_the_parent_with_the_rest_of_them_zeroed(toy: Toy) -> None:
    parent = toy.model(TOWERS_TASK)
    net = Supernet(copy.deepcopy(parent))
    space = make_space(net, ["num_attention_heads", "intermediate_size"])
    for k in range(4):
        subnet = space.sample(Random(k))
        net.activate(subnet)
        inputs = toy.inputs()
        expected = logits(zeroed(parent, net.layout, subnet), inputs)
        assert torch.allclose(logits(net.model, inputs), expected, atol=1e-5)


def test_importance_orders_the_channels_of_each_tower_and_leaves_the_model_as_it_was() -> None:
    model, inputs = TOWERS.model(TOWERS_TASK), TOWERS.inputs()
    before, weights = logits(model, inputs), {name: p.clone() for name, p in model.named_parameters()}
    net = Supernet(model)

    class Task:
        keeps_channels = has_vocabulary_logits = False

        def forward(self, model: Any, batch: Any) -> Any:
            outputs = model(**{name: value for name, value in batch.items() if name != "labels"})
            outputs.loss = torch.nn.functional.cross_entropy(outputs.logits_per_image, batch["labels"])
            return outputs

        def importance_loss(self, outputs: Any, batch: Any) -> Any:
            return outputs.loss

    order = order_by_importance(net, [{**inputs, "labels": torch.tensor([0, 2])}], task=Task())  # type: ignore[arg-type]
    assert torch.allclose(logits(model, inputs), before, atol=1e-5)
    assert sorted(order.layers) == list(range(8)) and sorted(order.units["text_hidden"][0]) == list(range(36))
    changed = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, weights[name])]
    axes = {axis for name in changed for axis in net.layout.locate(name).axes}
    assert {"hidden", "text_hidden", "heads", "ffn"} <= axes


@pytest.mark.parametrize("toy", OF_BOTH, ids=lambda toy: toy.model_type)
def test_what_is_counted_of_a_pass_is_the_image_tower_alone(toy: Toy, tmp_path: Path) -> None:
    net = calibrated(toy.model(TOWERS_TASK, "eager"), toy)
    costs = AnalyticCosts.from_model(net.model, net.layout, TOWERS_TASK)
    for number, subnet in enumerate(subnets(net)):
        model = net.extract(subnet.with_values(bits=())).requires_grad_(False)
        assert costs.num_parameters(subnet) == sum(p.numel() for p in model.parameters())
        tower, images = image_tower(model, own_inputs(toy.inputs(), subnet))
        with FlopCounterMode(display=False, custom_mapping=FUSED) as flops, torch.no_grad():
            tower(**{name: tensor[:1] for name, tensor in images.items()})
        assert costs.macs(subnet, None) == pytest.approx(flops.get_total_flops() / 2, rel=0.01), str(subnet)
        if number < 3:
            net.extract(subnet).save_pretrained(tmp_path / str(number))
            size = (tmp_path / str(number) / "model.safetensors").stat().st_size
            assert round(1e6 * costs.count(["size_mb"], [subnet])["size_mb"][0]) == size


def test_what_is_measured_is_the_image_tower_with_the_same_vectors_of_images() -> None:
    model, inputs = TOWERS.model(TOWERS_TASK), TOWERS.inputs()
    outputs: Any = prepare(model, inputs, IMAGES)()
    with torch.no_grad():
        expected = model.get_image_features(inputs["pixel_values"]).pooler_output
    assert torch.allclose(outputs.image_embeds, expected) and "text_model" not in dict(outputs)


@pytest.mark.parametrize("toy", OF_BOTH, ids=lambda toy: toy.model_type)
def test_a_subnetwork_of_towers_of_equal_layers_is_a_stock_model_if_one_computes_it(toy: Toy) -> None:
    net = Supernet(toy.model(TOWERS_TASK))
    depths = {"scope": "uniform", "num_hidden_layers": [2, 4], "num_decoder_layers": [1, 4]}
    shallow, narrow = (net.layout.search_space({**depths, "intermediate_size": [n, 96]}).smallest for n in (96, 40))
    assert not type(net.extract(shallow)).__name__.startswith("Nas")
    assert type(net.extract(narrow)).__name__.startswith("Nas") == (toy is not TOWERS)
    for subnet in (shallow, narrow):
        assert_extracted_equals_active(net, subnet, toy.inputs())


@pytest.mark.parametrize("scope", ["per-layer", "uniform"])
def test_the_narrower_tower_has_the_choices_that_it_can_have(scope: str) -> None:
    space = space_of(supernet(), scope)
    parameters = space.parameters
    for k in range(8):
        subnet = space.sample(Random(k))
        assert subnet in space and parameters.to_subnet(parameters.from_subnet(subnet)) == subnet
        text = [position for position, layer in enumerate(subnet.layers) if layer > 3]
        assert all(subnet.num_attention_heads[p] <= 3 and subnet.intermediate_size[p] <= 64 for p in text)
        assert all(other in space for other in space.neighbours(subnet)[:5])
    assert max(space.largest.num_attention_heads) == 4 and space.largest in space and space.smallest in space
    assert space.parent.with_values(intermediate_size=(96,) * 8) not in space


@pytest.mark.parametrize("scope", ["per-layer", "uniform"])
def test_the_size_of_a_space_counts_what_the_narrower_tower_can_have(scope: str) -> None:
    net = supernet()
    choices = {"num_hidden_layers": [1], "num_decoder_layers": [1], "num_attention_heads": [3, 4], "scope": scope}
    space = net.layout.search_space({**choices, "intermediate_size": [40, 64, 96]})
    found = {space.sample(Random(k)).key for k in range(3000)}
    assert space.size == len(found) == (4 * 4 * 6 * 2 if scope == "per-layer" else 6)


def test_a_text_tower_has_at_least_one_channel_and_none_is_wider_than_the_parent() -> None:
    net = supernet()
    for size in (0, 40):
        with pytest.raises(InputError, match=r"at least 1|fit into its parent"):
            net.activate(net.parent.with_values(text_hidden_size=size))
    with pytest.raises(InputError, match=r"`space.text_hidden_size` must lie between 1 and the parent's 36"):
        net.layout.search_space({"text_hidden_size": [12, 48]})
    with pytest.raises(InputError, match="does not vary in `vit`"):
        Layout(TOYS["vit"].model().config).search_space({"text_hidden_size": [12]})
