"""Object detection: data, mean average precision, distillation, and a search end to end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from toys import TOYS

from nas.commands.sensitivity import sensitivity
from nas.exports.export import export_subnet
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.studies.study import evaluated_points, open_studies
from nas.supernets.supernet import Supernet
from nas.tasks.average_precision import average_precision, matches
from nas.tasks.bootstrap import standard_error
from nas.tasks.boxes import load_coco, objects_of, relative_box, require_boxes
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from nas.tasks.types.object_detection import ObjectDetection
from search_spaces import InputError, Layout
from search_spaces.layer_drop import drop_layers

pytest.importorskip("pycocotools")

SIDE = 16
COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


def example(seed: int) -> dict[str, Any]:
    """An image with one or two squares, each in the middle of its half, and where they are."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    image, boxes, names = Image.new("RGB", (2 * SIDE, SIDE), (255, 255, 255)), [], []
    for half in range(rng.integers(1, 3)):
        name, box = str(rng.choice([*COLOURS])), [SIDE * half + 4, 4, 8, 8]
        image.paste(COLOURS[name], (box[0], box[1], box[0] + 8, box[1] + 8))
        boxes.append(box)
        names.append(name)
    return {"image": image, "objects": {"bbox": boxes, "category": names}}


def recipe(folder: Path, examples: int = 96, **sections: Any) -> Recipe:
    """A recipe over squares, with a tiny YOLOS without weights."""
    from datasets import Dataset, Features, Image, List, Value

    objects = {"bbox": List(List(Value("float64"))), "category": List(Value("string"))}
    data = Dataset.from_list([example(k) for k in range(examples)], Features({"image": Image(), "objects": objects}))
    data.to_parquet(folder / "train.parquet")
    data.select(range(0, examples, 3)).to_parquet(folder / "test.parquet")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    more = {
        "image_size": [SIDE, SIDE],
        "patch_size": 4,
        "num_detection_tokens": 8,
        "use_mid_position_embeddings": False,
    }
    transformers.YolosConfig(**sizes, **more).save_pretrained(folder / "model")
    size = {"height": SIDE, "width": SIDE}
    transformers.YolosImageProcessor(size=size, do_pad=False).save_pretrained(folder / "model")
    training = {"epochs": 2, "learning_rate": 2e-3, "batch_size": 16}
    files = {"train": str(folder / "train.parquet"), "test": str(folder / "test.parquet"), "search_examples": 24}
    return Recipe.parse(
        {
            "model": str(folder / "model"),
            "task": {"type": "object-detection", **files},
            "space": {"num_hidden_layers": [1, 2], "intermediate_size": [16, 64], "num_queries": [2, 4, 8]},
            "parent": training,
            "supernet": {**training, "sampled_subnets": 1, "strategy": "sandwich"},
            "profile": {"minutes": 0.1},
            "finish": {"models": 1, "epochs": 1},
            "baselines": [],
            "search": {"evaluations": 6},
            **sections,
        }
    )


def test_a_detector_learns_and_is_scored_by_its_own_loss(tmp_path: Path) -> None:
    context = TaskContext(recipe(tmp_path, 48))
    task, model = context.splits.task, context.load_model().train()
    assert task.names == ["blue", "red"] and model.config.id2label == {0: "blue", 1: "red"}
    rows = [context.splits.train[k] for k in range(4)]
    batch = task.collate(rows)
    assert batch["labels"].shape[0] == 4 and batch["pixel_values"].shape == (4, 3, SIDE, SIDE)
    outputs = task.forward(model, batch)
    outputs.loss.backward()
    assert model.vit.embeddings.detection_tokens.grad.abs().sum() > 0
    scores = score(model, context.splits.test, ["map", "map50", "loss"])
    assert 0 <= scores["map"].value <= scores["map50"].value <= 1 and scores["loss"].value > 0
    few = [(each[:, :4], labels) for each, labels in task.logits_and_labels(outputs, batch)]
    assert task.divergence(few, task.logits_and_labels(outputs, batch), 1.0) < 1e-6
    other = [(few[0][0], few[0][1]), (few[1][0] + 0.1, few[1][1])]
    assert task.divergence(other, task.logits_and_labels(outputs, batch), 1.0) > 0.1


def bound(model: Any, names: list[str]) -> Any:
    """The task of a model without data."""
    task: Any = SimpleNamespace(config=model.config, names=names)
    for name in ("_loss", "_has_no_object"):
        setattr(task, name, getattr(ObjectDetection, name).__get__(task))
    return task


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("rt_detr_v2", torch.float32), *(("yolos", each) for each in (torch.float32, torch.bfloat16, torch.float16))],
)
def test_the_loss_is_that_of_the_model_and_of_float32_in_16_bits(family: str, dtype: torch.dtype) -> None:
    """On a CPU, PyTorch measures no distances of boxes in 16 bits."""
    toy = TOYS[family]
    model, inputs = toy.model(), toy.labelled()
    (target, *_), names = inputs["labels"], [*model.config.id2label.values()]
    labels = torch.cat([target["class_labels"][:, None], target["boxes"]], 1).expand(len(inputs["labels"]), -1, -1)
    own = model(**inputs).loss.item()
    task = bound(model, names)
    batch = {"pixel_values": inputs["pixel_values"].to(dtype), "labels": labels}
    loss = ObjectDetection.forward(task, model.to(dtype), batch).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(own, rel=0 if dtype == torch.float32 else 0.02)


def test_a_loss_of_earlier_layers_needs_a_decoder_that_has_them() -> None:
    """YOLOS of transformers fails with it."""
    toy = TOYS["yolos"]
    model = replace(toy, config={**toy.config, "auxiliary_loss": True}).model()
    batch = {**toy.inputs(), "labels": torch.tensor([[[0, 0.5, 0.5, 0.2, 0.2]]]).expand(3, -1, -1)}
    assert ObjectDetection.forward(bound(model, ["a", "b", "c"]), model, batch).loss.item() > 0


def test_queries_that_are_places_of_an_image_learn_from_those_that_they_resemble() -> None:
    """The teacher has the same queries in another order, and more of them."""
    model = TOYS["rt_detr_v2"].model()
    task, outputs = bound(model, ["a", "b", "c"]), model(**TOYS["rt_detr_v2"].inputs())
    teacher = [(outputs[name].flip(1), None) for name in ("logits", "pred_boxes")]
    student = [(outputs[name][:, 1:5], None) for name in ("logits", "pred_boxes")]
    assert ObjectDetection.divergence(task, student, teacher, 2.0) < 1e-6
    assert ObjectDetection.divergence(task, [(student[0][0] + 1, None), student[1]], teacher, 2.0) > 0.1


def test_an_image_has_as_many_places_as_there_are_queries() -> None:
    toy = TOYS["rt_detr_v2"]
    layout = Layout(replace(toy, config={**toy.config, "num_queries": 50}).model().config)
    with pytest.raises(InputError, match=r"places as a detector has queries, 50, but with .* 32 they have 21;"):
        layout.search_space({"image_size": ["32"]})


def test_a_layer_of_a_decoder_keeps_its_own_heads() -> None:
    supernet = Supernet(TOYS["rt_detr_v2"].model())
    heads = list(supernet.model.model.decoder.class_embed)
    layers = (0, 5, 7)
    supernet.activate(drop_layers(supernet.parent, layers))
    assert list(supernet.model.model.decoder.class_embed) == [heads[1], heads[3]]
    extracted = supernet.extract(supernet.active)
    assert torch.equal(extracted.class_embed[1].weight, heads[3].weight)


def test_average_precision_is_that_of_coco_and_resamples_of_images_give_its_error() -> None:
    """Two images: an exact detection of the first class; of the second, a miss, and a detection of nothing."""
    objects = [np.array([[0, 0.1, 0.1, 0.4, 0.4]]), np.array([[1, 0.5, 0.5, 0.4, 0.4]])]
    exact = np.array([[0, 0.1, 0.1, 0.4, 0.4, 0.9]])
    wrong = np.array([[1, 0.0, 0.0, 0.2, 0.2, 0.8]])
    stats = {"matches": matches(objects, [exact, wrong], 2)}
    assert average_precision(stats) == pytest.approx(0.5)
    error, left_out = standard_error(average_precision, stats)
    assert error > 0 and left_out == 0
    near = np.array([[0, 0.1, 0.1, 0.4, 0.28, 0.9]])  # an overlap of 0.7: right at five of ten thresholds
    stats = {"matches": matches(objects[:1], [near], 1)}
    assert average_precision(stats) == pytest.approx(0.5) and average_precision(stats, slice(1)) == pytest.approx(1.0)


def test_boxes_are_relative_to_the_image_and_end_at_its_border() -> None:
    assert relative_box([10, 20, 20, 40], 100, 100) == pytest.approx([0.2, 0.4, 0.2, 0.4])
    assert relative_box([90, -10, 20, 20], 100, 100) == pytest.approx([0.95, 0.05, 0.1, 0.1])


def coco(folder: Path, **changes: Any) -> Path:
    example(0)["image"].save(folder / "a.png")
    data = {
        "images": [{"id": 7, "file_name": "a.png"}],
        "categories": [{"id": 3, "name": "red"}, {"id": 1, "name": "blue"}],
        "annotations": [
            {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 0},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    }
    (folder / "coco.json").write_text(json.dumps({**data, **changes}))
    return folder / "coco.json"


def test_files_of_coco_are_read(tmp_path: Path) -> None:
    (row,) = load_coco(coco(tmp_path))
    assert row["image"].size == (2 * SIDE, SIDE) and row["objects"] == {"bbox": [[1, 2, 3, 4]], "category": [1]}
    with pytest.raises(InputError, match="`images`, `annotations` and `categories` as COCO has them"):
        load_coco(coco(tmp_path, categories=[]))
    with pytest.raises(InputError, match=r"name of its own, but several are `red`; rename them"):
        load_coco(coco(tmp_path, categories=[{"id": 3, "name": "red"}, {"id": 1, "name": "red"}]))
    with pytest.raises(InputError, match=r"^every image of .* must be there, but `.*b\.png` is not"):
        load_coco(coco(tmp_path, images=[{"id": 7, "file_name": "b.png"}]))


def test_an_object_without_a_size_is_refused(tmp_path: Path) -> None:
    from datasets import Dataset

    made = recipe(tmp_path, 48)
    data = Dataset.from_parquet(str(tmp_path / "train.parquet"))
    objects = [{"bbox": [[1.0, 2.0, 0.0, 4.0]], "category": ["red"]}, *data["objects"][1:]]
    data.remove_columns("objects").add_column("objects", objects).to_parquet(tmp_path / "train.parquet")
    ids = [{"bbox": [[1.0, 2.0, 3.0, 4.0]], "category": [-1]} for _ in data]
    numbered = data.remove_columns("objects").add_column("objects", ids)
    with pytest.raises(InputError, match="ids of classes must be 0 or more, but row 0 of `it` has -1"):
        require_boxes([objects_of(stored, "bbox", "category") for stored in numbered["objects"]], "it")
    with pytest.raises(InputError, match=r"row 0 of `.*train.parquet` has the box \[1.0, 2.0, 0.0, 4.0\]"):
        _ = TaskContext(made).splits


@pytest.mark.full
def test_a_search_for_a_detector_with_a_backbone_end_to_end(tmp_path: Path) -> None:
    """Trained for too short a time to find much: what is searched is exported and runs."""
    side, space = 64, {"num_decoder_layers": [1, 2], "num_queries": [2, 4], "image_size": [32, "full"]}
    made = recipe(tmp_path, 48, space=space, supernet={"strategy": "none"})
    config = {**TOYS["rt_detr_v2"].config, "encoder_layers": 1, "decoder_layers": 2}
    config |= {"num_queries": 4, "image_size": side}
    del config["num_labels"]
    transformers.RTDetrV2Config(**config).save_pretrained(tmp_path / "model")
    transformers.RTDetrImageProcessor(size={"height": side, "width": side}).save_pretrained(tmp_path / "model")
    run = search(made, tmp_path / "run")
    points = {point.subnet.image_size: point for point in evaluated_points(open_studies(run.study, made)["random"])}
    assert len(points) == 2 and run.verified_points()
    folder = export_subnet(run, points["32"], tmp_path / "small")
    detect = transformers.pipeline("object-detection", str(folder), trust_remote_code=True)
    assert len(detect(example(0)["image"], threshold=0.0)) <= 4


@pytest.mark.slow
def test_a_search_for_detectors_end_to_end(tmp_path: Path) -> None:
    parent = {"epochs": 45, "learning_rate": 3e-3, "batch_size": 16}
    made = recipe(tmp_path, parent=parent)
    run = search(made, tmp_path / "run")
    assert any(row.loss_change > 0 for row in sensitivity(made, tmp_path / "run"))
    points = run.verified_points()
    best = max(points, key=lambda point: point.values["map"])
    assert best.values["map"] > 0.3 and len({point.subnet.num_queries for point in points}) > 1
    folder = export_subnet(run, best, tmp_path / "small")
    detect = transformers.pipeline("object-detection", str(folder), trust_remote_code=True)
    found = detect(example(0)["image"], threshold=0.2)
    assert found and {row["label"] for row in found} <= {*COLOURS}
    (box,) = [row["box"] for row in found if row["score"] == max(other["score"] for other in found)]
    assert abs(box["xmax"] - box["xmin"] - 8) < 5 and abs(box["ymax"] - box["ymin"] - 8) < 5
