"""The size of images as a dimension: positions are interpolated, inputs resized, costs counted, exports carry it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toys import TOYS, context_of, image_inputs, logits, variant

from nas.exports.export import export_subnet
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.supernets.distillation_trainer import OTHER_SIZES, of_input_size
from nas.supernets.space import input_sizes, propose_space, search_space
from nas.supernets.supernet import Supernet
from nas.supernets.training import model_trainer
from nas.tasks.context import TaskContext
from predictors import AnalyticCosts, Workload
from search_spaces import InputError

PIXELS = 12


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A tiny ViT for images of 12 pixels with patches of 2, and images of two classes: their bright half."""
    from datasets import Dataset, Features, Image, Value
    from transformers import ViTImageProcessor

    variant("vit", image_size=PIXELS, num_labels=2, num_hidden_layers=2).model().save_pretrained(tmp_path / "model")
    size = {"height": PIXELS, "width": PIXELS}
    ViTImageProcessor(size=size).save_pretrained(tmp_path / "model")
    rng, rows = np.random.default_rng(0), list[dict[str, Any]]()
    for k in range(96):
        pixels = rng.integers(0, 60, (16, 16, 3), dtype=np.uint8)
        pixels[:8] += np.uint8(150 * (k % 2))
        rows.append({"image": pixels, "label": k % 2})
    features = Features({"image": Image(), "label": Value("int64")})
    data = Dataset.from_list(rows, features=features)
    data.to_parquet(tmp_path / "train.parquet")
    data.select(range(0, 96, 3)).to_parquet(tmp_path / "test.parquet")
    quick = {"epochs": 4, "learning_rate": 2e-3, "batch_size": 8}
    return Recipe.parse(
        {
            "model": str(tmp_path / "model"),
            "task": {
                "type": "image-classification",
                "train": str(tmp_path / "train.parquet"),
                "test": str(tmp_path / "test.parquet"),
                "search_examples": 32,
            },
            "space": {"num_hidden_layers": [1, 2], "intermediate_size": [24, 96], "image_size": [4, 8, "full"]},
            "parent": quick,
            "supernet": {**quick, "epochs": 2, "sampled_subnets": 1, "strategy": "sandwich"},
            "profile": {"minutes": 0.2},
            "finish": {"models": 1, "epochs": 1},
            "baselines": [],
            "search": {"evaluations": 6},
        }
    )


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "clip", "siglip"])
def test_positions_are_those_that_transformers_interpolates(family: str) -> None:
    stock = TOYS[family].model()
    pixels = torch.randn(2, 3, 4, 4)
    more = {} if family == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        expected = stock(pixel_values=pixels, **more).logits
    supernet = Supernet(stock)
    supernet.activate(supernet.parent.with_values(image_size=4))
    with torch.inference_mode():
        assert torch.allclose(supernet.model(pixel_values=pixels).logits, expected, atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "clip", "dinov3_vit"])
def test_a_model_of_smaller_images_is_a_stock_model(family: str) -> None:
    supernet = Supernet(TOYS[family].model())
    model = supernet.extract(supernet.parent.with_values(image_size=6))
    assert type(model) is type(TOYS[family].model())
    assert getattr(model.config, "vision_config", model.config).image_size == 6
    supernet.activate(supernet.parent.with_values(image_size=4))
    supernet.activate(supernet.parent)
    inputs = image_inputs()
    torch.manual_seed(0)
    assert torch.equal(logits(supernet.model, inputs), logits(supernet.extract(supernet.parent), inputs))


def test_gradients_reach_the_positions() -> None:
    supernet = Supernet(TOYS["vit"].model())
    supernet.activate(supernet.parent.with_values(image_size=4))
    supernet.model(pixel_values=torch.randn(2, 3, 4, 4)).logits.sum().backward()
    gradient = dict(supernet.model.named_parameters())["vit.embeddings.position_embeddings"].grad
    assert gradient is not None and (gradient.abs().sum(-1) > 0).all()


def test_latency_counts_follow() -> None:
    supernet = Supernet(TOYS["vit"].model())
    costs = AnalyticCosts.from_model(supernet.model, supernet.layout)
    sizes = [supernet.parent.with_values(image_size=size) for size in ("4", "6", "full")]
    found = costs.count(["macs", "num_parameters", "peak_activation_mb"], sizes, Workload())
    assert all((np.diff(values) > 0).all() for values in found.values())
    assert found["num_parameters"][2] - found["num_parameters"][0] == 12 * 48  # four patches in the place of sixteen
    assert 3 < found["macs"][2] / found["macs"][0] < 4


# -- choices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 8, 10])
def test_sizes_are_whole_patches_below_the_parents(size: int) -> None:
    supernet = Supernet(TOYS["vit"].model())
    with pytest.raises(InputError, match="must be a multiple of the patches' 2 pixels below the parent's 8, but got"):
        supernet.activate(supernet.parent.with_values(image_size=size))


def test_images_that_are_not_square_keep_their_size() -> None:
    layout = Supernet(variant("vit", image_size=(8, 4)).model()).layout
    with pytest.raises(InputError, match="varies only where images and patches are square"):
        layout.search_space({"image_size": [4, "full"]})


def test_models_of_texts_have_no_images() -> None:
    layout = Supernet(TOYS["bert"].model()).layout
    with pytest.raises(InputError, match=r"`space\.image_size` does not vary in `bert`"):
        layout.search_space({"image_size": [4, "full"]})


def test_half_the_side_is_proposed_where_there_are_enough_patches(recipe: Recipe) -> None:
    context = TaskContext(recipe)
    assert "an image has only 6 patches a side" in propose_space(context).left_out["image_size"]
    large = Supernet(variant("vit", image_size=32).model()).layout
    proposed = propose_space(context_of(recipe, large))
    assert proposed.choices["image_size"] == [16, 24, "full"]


# -- data -------------------------------------------------------------------------------------------------------------


def test_images_are_resized_by_the_image_processor(recipe: Recipe, tmp_path: Path) -> None:
    context = TaskContext(recipe)
    small = context.of_size("8")
    assert small is context.of(context.layout.parent.with_values(image_size=8))
    assert small.config.image_size == 8 and context.config.image_size == PIXELS
    batch, whole = small.splits.test.batches[0], context.splits.test.batches[0]
    assert batch["pixel_values"].shape[1:] == (3, 8, 8) and whole["pixel_values"].shape[1:] == (3, PIXELS, PIXELS)
    assert torch.equal(batch["labels"], whole["labels"])
    assert abs(batch["pixel_values"].mean() - whole["pixel_values"].mean()) < 0.05
    assert small.dummy_inputs(Workload(batch_size=2))["pixel_values"].shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [({"shortest_edge": 256}, 224, (112, 128)), ({"height": 224, "width": 224}, None, (112, 112))],
)
def test_a_crop_shrinks_with_the_image(size: dict[str, int], crop: int | None, expected: tuple[int, int]) -> None:
    from transformers import BitImageProcessor, ViTImageProcessor

    from nas.tasks.images import resized_processor

    cropped = BitImageProcessor(size=size, crop_size={"height": crop, "width": crop}) if crop else None
    processor = cropped or ViTImageProcessor(size=size)
    resized = resized_processor(processor, 0.5)
    found = resized(np.zeros((300, 400, 3), np.uint8), return_tensors="pt")["pixel_values"]
    assert found.shape[-2:] == (112, 112)
    assert max(dict(resized.size).values()) == expected[1] and max(dict(processor.size).values()) in (224, 256)


def test_a_batch_has_the_same_rows_in_every_size(recipe: Recipe, tmp_path: Path) -> None:
    context = TaskContext(recipe)
    sizes = input_sizes(search_space(context))
    assert sizes == ["4", "8"]
    settings, model = recipe.supernet, context.load_model()
    trainer = model_trainer(
        model,
        settings,
        tmp_path / "work",
        context.training_set(settings),
        context.splits.task,
        0,
        teacher=context.load_model(),
        other_sizes=context.of_sizes(sizes, settings),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch[OTHER_SIZES].keys() == {"4", "8"}
    for size in ("4", "8"):
        own = of_input_size(batch, size)
        assert own["pixel_values"].shape[-1] == int(size) and torch.equal(own["labels"], batch["labels"])
    inputs, rows = trainer.pop_row_index(batch)
    assert len(rows) == len(batch["labels"])
    trainer.teacher_outputs(inputs, rows)
    ((cached, _),), _ = trainer.teacher_outputs(inputs, rows)
    trainer.kept = None
    ((computed, _),), _ = trainer.teacher_outputs(inputs, rows)
    assert torch.allclose(cached, computed, atol=1e-5)


# -- a run ------------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_search_over_image_sizes_end_to_end(recipe: Recipe, tmp_path: Path) -> None:
    from transformers import pipeline

    run = search(recipe, tmp_path / "run")
    verified = run.verified_points()
    assert {"full"} < {point.subnet.image_size for point in verified}
    small = next(point for point in verified if point.subnet.image_size != "full")
    folder = export_subnet(run, small, tmp_path / "small", ("onnx",))
    classify: Any = pipeline("image-classification", str(folder), trust_remote_code=True)
    side = int(small.subnet.image_size)
    assert classify.model.config.image_size == side and classify.image_processor.size["height"] == side
    context = TaskContext(recipe)
    images = [row["image"] for row in context.splits.task.test.select(range(8))]
    scores = [found[0]["score"] for found in classify(images)]
    assert all(0.5 <= score <= 1 for score in scores)
    assert small.values["accuracy"] > 0.7
