"""Whole searches with image classifiers that are trained here: stages with shifted windows, biases of positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from samples import one_slow
from toy_images import QUICK, SIDE, png, recipe
from toys import TOYS, logits

from nas.exports.formats import convert
from nas.pipeline import search
from nas.runs.run import Run
from nas.supernets.supernet import Supernet
from search_spaces import InputError, Layout, SubnetConfig
from search_spaces.stock_config import stock_config_update

LEARNING: dict[str, Any] = {"learning_rate": 3e-3, "batch_size": 8}
SPACES: dict[str, dict[str, Any]] = {
    "swin": QUICK["space"],
    "beit": {"num_hidden_layers": [1, 2], "intermediate_size": [24, 48, 96]},
    "siglip2": {"scope": "uniform", "num_hidden_layers": [1, 2, 3], "intermediate_size": [24, 48, 72, 96]},
}
PATCHES = {"vision_config": {**TOYS["siglip2"].config["vision_config"], "num_patches": 36, "patch_size": 4}}
SHALLOW = {"swin": {"depths": [1, 1, 2, 1]}, "beit": {"num_hidden_layers": 2}, "siglip2": PATCHES}


def striped(seed: int) -> tuple[Image.Image, int]:
    """Noise with light stripes that are upright (1) or level (0)."""
    rng = np.random.default_rng(seed)
    pixels, is_upright = rng.integers(0, 60, (SIDE, SIDE, 3)), int(rng.integers(2))
    stripes = pixels.transpose(1, 0, 2) if is_upright else pixels
    stripes[rng.integers(4) :: 8] += 160
    return Image.fromarray(pixels.astype(np.uint8)), is_upright


@pytest.mark.parametrize("family", one_slow(SPACES, "swin"))
def test_an_image_classifier_that_is_searched_names_the_class_in_its_pipeline(family: str, tmp_path: Path) -> None:
    rows = [{"image": png(image), "label": label} for image, label in map(striped, range(72))]
    sections = {
        "parent": {"epochs": 10, **LEARNING},
        "supernet": {"epochs": 2, "sampled_subnets": 1, "strategy": "sandwich", **LEARNING},
    }
    config = {**SHALLOW[family], **{"beit": {"image_size": 16}}.get(family, {})}
    config |= {} if family == "siglip2" else {"initializer_range": 0.1}
    whole = recipe(
        tmp_path, family, "image-classification", rows, config, **{**QUICK, "space": SPACES[family], **sections}
    )
    search(whole, tmp_path / "run")
    (export,) = Run(tmp_path / "run").exports.iterdir()
    model = transformers.AutoModelForImageClassification.from_pretrained(export)
    whole_model = transformers.AutoModelForImageClassification.from_pretrained(Run(tmp_path / "run").parent)
    assert model.num_parameters() < whole_model.num_parameters()
    classify = transformers.pipeline("image-classification", model=str(export))
    new = [striped(seed) for seed in range(1000, 1020)]
    assert np.mean([classify(image)[0]["label"] == str(label) for image, label in new]) > 0.7
    if family == "siglip2":
        with pytest.raises(
            InputError, match="different shapes in a batch; it is exported as a Hugging Face model only"
        ):
            convert(export, ["program"])


def swin_layers(layers: tuple[int, ...]) -> tuple[Layout, SubnetConfig, bool]:
    """Layout of the toy, the parent's layers at these places, and whether a stock config describes them."""
    layout = Layout(TOYS["swin"].model().config)
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    values: dict[str, Any] = {name: [getattr(layout.parent, name)[layer] for layer in layers] for name in names}
    subnet = SubnetConfig(layers, hidden_size=layout.parent.hidden_size, **values)
    return layout, subnet, stock_config_update(layout, subnet) is not None


@pytest.mark.parametrize(
    ("layers", "is_stock"),
    [
        ((0, 1, 4, 5, 8, 9, 12, 13), True),  # the shifts alternate as before
        ((0, 3, 4, 5, 8, 12), True),  # 0 and 3: not shifted, shifted
        ((1, 4, 8, 12), False),  # the first layer of the first stage shifts its windows
        ((0, 2, 4, 8, 12), False),  # two in a row do not
    ],
)
def test_a_layer_of_swin_keeps_its_shift(layers: tuple[int, ...], is_stock: bool) -> None:
    _, subnet, found = swin_layers(layers)
    assert found == is_stock
    model, inputs = TOYS["swin"].model(), TOYS["swin"].inputs()
    supernet = Supernet(model)
    supernet.activate(subnet)
    extracted = supernet.extract(subnet)
    assert torch.allclose(logits(extracted, inputs), logits(model, inputs), atol=1e-5)
    shifts = [layer.shift_size for stage in extracted.swin.encoder.layers[:2] for layer in stage.blocks]
    assert shifts == [layer % 2 for layer in layers if layer < 8]
