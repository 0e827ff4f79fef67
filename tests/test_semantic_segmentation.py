"""Semantic segmentation: maps of labels, the metrics of pixels, and a whole search."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from PIL import Image
from toy_images import QUICK, SIDE, UNLABELLED, png, recipe, scene

from nas.pipeline import search
from nas.runs.run import Run
from nas.tasks.batches import IGNORE_INDEX
from nas.tasks.columns import guess_columns, guess_task
from nas.tasks.context import TaskContext
from nas.tasks.data import load_source
from nas.tasks.evaluation import collect_stats, score
from nas.tasks.label_maps import number_of_classes, scored_labels
from nas.tasks.metrics import mean_iou
from search_spaces import TASKS, InputError

TASK = "semantic-segmentation"


def scenes(count: int) -> list[dict[str, Any]]:
    return [{"image": png(image), "mask": png(ids)} for image, ids in map(scene, range(count))]


@pytest.fixture
def context(tmp_path: Path) -> TaskContext:
    return TaskContext(recipe(tmp_path, "segformer", TASK, scenes(36), space={}))


def by_hand(predicted: np.ndarray, labelled: np.ndarray) -> float:
    """The mean over classes of intersection over union, on the labelled pixels of all images."""
    p, t = predicted[labelled != UNLABELLED], labelled[labelled != UNLABELLED]
    occur = np.unique(np.concatenate([p, t]))
    return float(np.mean([((p == k) & (t == k)).sum() / ((p == k) | (t == k)).sum() for k in occur]))


def test_mean_iou_is_that_of_the_upsampled_predictions(context: TaskContext) -> None:
    model, examples = context.load_model().eval(), context.splits.test
    assert context.splits.task.names == ["LABEL_0", "LABEL_1", "LABEL_2"] and model.config.num_labels == 3
    pairs = []
    with torch.inference_mode():
        for batch in examples.batches:
            logits = model(pixel_values=batch["pixel_values"]).logits
            assert logits.shape[-1] < SIDE, "nothing is interpolated"
            upsampled = torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear")
            pairs.append((upsampled.argmax(1).numpy(), batch["labels"].numpy()))
    predicted, labelled = (np.concatenate(each) for each in zip(*pairs, strict=True))
    labelled = np.where(labelled < 0, UNLABELLED, labelled)
    assert (labelled == UNLABELLED).sum() == len(labelled) * SIDE, "one row of each image"
    scores = score(model, examples, ["mean_iou", "pixel_accuracy", "loss"])
    assert scores["mean_iou"].value == pytest.approx(by_hand(predicted, labelled))
    correct = (predicted == labelled)[labelled != UNLABELLED].mean()
    assert scores["pixel_accuracy"].value == pytest.approx(correct)
    assert 0 < scores["mean_iou"].standard_error < 0.2


def test_the_loss_is_that_of_the_model_on_its_own_labels(context: TaskContext) -> None:
    model, task = context.load_model().eval(), context.splits.task
    (batch, *_) = context.splits.test.batches
    own = {**batch, "labels": batch["labels"].masked_fill(batch["labels"] < 0, UNLABELLED)}
    with torch.inference_mode():
        assert task.forward(model, batch).loss.item() == pytest.approx(model(**own).loss.item(), rel=1e-5)


def test_resamples_without_a_class_are_left_out_of_the_standard_error(context: TaskContext) -> None:
    stats = dict(collect_stats(context.load_model(), context.splits.test, ["mean_iou"]))
    rare = np.zeros_like(stats["labelled_pixels"][:, :1])
    rare[0] = 5
    stats = {name: np.concatenate([each, rare], 1) if each.ndim == 2 else each for name, each in stats.items()}
    draws = np.stack([np.arange(len(rare)), np.ones(len(rare), dtype=int)])
    assert mean_iou.is_defined(stats, draws).tolist() == [True, False]


def test_a_folder_names_its_maps_in_metadata(tmp_path: Path) -> None:
    rows = []
    for number in range(6):
        for kind, image in zip(("image", "mask"), scene(number), strict=True):
            image.save(tmp_path / f"{kind}-{number}.png")
        rows.append({"file_name": f"image-{number}.png", "mask_file_name": f"mask-{number}.png"})
    pd.DataFrame(rows).to_csv(tmp_path / "metadata.csv", index=False)
    data = load_source(str(tmp_path))
    assert guess_task(data, TASKS, None, "it") == TASK
    assert guess_columns(data, TASK, "it") == {"image": "image", "label": "mask"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: Image.merge("RGB", [ids] * 3), "one channel of whole numbers.*mode RGB"),
        (lambda ids: ids.point(lambda value: UNLABELLED), "must label some pixels, but all are 255"),
    ],
)
def test_maps_without_classes_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    rows = [{"image": png(image), "mask": png(change(ids))} for image, ids in map(scene, range(12))]
    with pytest.raises(InputError, match=message):
        _ = TaskContext(recipe(tmp_path, "segformer", TASK, rows, space={})).splits


def test_ids_beyond_the_classes_of_a_trained_head_are_refused(context: TaskContext, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    context.load_model().save_pretrained(folder)
    rows = [{"image": png(image), "mask": png(ids.point(lambda value: 7))} for image, ids in map(scene, range(12))]
    trained = recipe(tmp_path / "more", "segformer", TASK, rows, space={}).model_copy(update={"model": str(folder)})
    with pytest.raises(InputError, match="below the model's 3 classes, or 255 for no class, but `mask` in row 0"):
        _ = TaskContext(trained).splits


def test_an_id_beyond_the_classes_of_the_maps_that_were_read_is_refused_with_its_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.tasks.label_maps.CHECKED_IMAGES", 2)
    rows = scenes(36)
    rows[5]["mask"] = png(scene(5)[1].point(lambda value: 7))
    made = recipe(tmp_path, "segformer", TASK, rows, space={})
    examples = TaskContext(made).splits.task.process(load_source(made.task.train), "it")
    assert examples[4]["labels"].max() == 2
    with pytest.raises(InputError, match=r"the 3 classes, 0 to 2, or 255.* in `mask` of `it` has 7"):
        _ = examples[5]


def test_background_and_ignored_ids_that_a_processor_lowers_are_not_scored() -> None:
    """As stored, the ids are 0, 1, 3 and 9, which is no class."""
    lowered = torch.tensor([255, 0, 2, 8])
    labels = scored_labels(lowered, 9, 3, "mask", "it", reduces=True)
    assert labels.tolist() == [IGNORE_INDEX, 0, 2, IGNORE_INDEX]
    with pytest.raises(InputError, match=r"the 3 classes, 1 to 3, or 9 for no class, but .* has 4"):
        scored_labels(lowered[1:] + 1, 9, 3, "mask", "it", reduces=True)


def test_negative_ids_are_refused_in_the_row_that_has_them() -> None:
    from datasets import Dataset, Features
    from datasets import Image as Images

    file = BytesIO()
    Image.fromarray(np.full((4, 4), -1, dtype=np.int32)).save(file, "TIFF")
    maps = Dataset.from_list([{"mask": {"bytes": file.getvalue(), "path": None}}], Features({"mask": Images()}))
    with pytest.raises(InputError, match="from 0 on, or 255 for no class, but `mask` in row 0 of `it` has -1"):
        number_of_classes(maps, "mask", UNLABELLED, "it", None, reduces=False)
    with pytest.raises(InputError, match="but `mask` in a map of `it` has -1"):
        scored_labels(torch.tensor([-1, 0]), UNLABELLED, 3, "mask", "it", reduces=False)


@pytest.mark.full
def test_a_segformer_that_is_searched_labels_squares_in_its_pipeline(tmp_path: Path) -> None:
    quick: dict[str, Any] = {"learning_rate": 1e-2, "batch_size": 8}
    whole = recipe(
        tmp_path,
        "segformer",
        TASK,
        scenes(72),
        {"depths": [1, 1, 2, 1]},
        parent={"epochs": 10, **quick},
        supernet={"epochs": 3, "sampled_subnets": 1, "strategy": "sandwich", **quick},
        **QUICK,
    )
    search(whole, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert max(point.values["mean_iou"] for point in run.front().points) > 0.6, "nothing was learnt"
    (export,) = run.exports.iterdir()
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(export).eval()
    assert model.num_parameters() < TaskContext(whole).load_model().num_parameters()
    image, _ = scene(1000)
    pixels = transformers.AutoImageProcessor.from_pretrained(export)(image, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**pixels).logits
    classes = torch.nn.functional.interpolate(logits, size=(SIDE, SIDE), mode="bilinear").argmax(1)[0].numpy()
    found = transformers.pipeline("image-segmentation", model=str(export))(image)
    for each in found:
        assert np.array_equal(np.asarray(each["mask"]) > 0, classes == model.config.label2id[each["label"]])
    assert len(found) == len(np.unique(classes)) > 1
