"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) from its four IDX files, where Debian's package puts them."""

import gzip
import os
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

FOLDER = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]


def read(part: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) and class ids (n,) of ``train`` or ``t10k``."""
    names = {"images-idx3": 16, "labels-idx1": 8}
    files = [gzip.decompress((FOLDER / f"{part}-{name}-ubyte.gz").read_bytes()) for name in names]
    images, labels = (np.frombuffer(file, np.uint8, offset=n) for file, n in zip(files, names.values(), strict=True))
    return images.reshape(-1, 28, 28)[first:last], labels[first:last]


def _split(part: str, first: int, last: int) -> Dataset:
    images, labels = read(part, first, last)
    rows = {"image": [Picture.fromarray(image).convert("RGB") for image in images], "label": labels.tolist()}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=NAMES)}))


def train() -> Dataset:
    """4,000 of the 60,000 training images, which prepare.py does not train on."""
    return _split("train", 56_000, 60_000)


def test() -> Dataset:
    """The first 2,000 of the 10,000 test images."""
    return _split("t10k", 0, 2000)
