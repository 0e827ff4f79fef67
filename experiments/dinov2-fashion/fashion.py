"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) from its four IDX files, where Debian's package puts them."""

import gzip
import os
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture

FOLDER = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
NAMES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def _read(file: str, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress((FOLDER / file).read_bytes()), np.uint8, offset=header)


def _split(part: str, count: int) -> Dataset:
    images = _read(f"{part}-images-idx3-ubyte.gz", 16)
    labels = _read(f"{part}-labels-idx1-ubyte.gz", 8)
    rows = {
        "image": [Picture.fromarray(image) for image in images.reshape(-1, 28, 28)[:count]],
        "label": labels[:count].tolist(),
    }
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=NAMES)}))


def train() -> Dataset:
    """The first 6,000 of the 60,000 training images."""
    return _split("train", 6000)


def test() -> Dataset:
    """The first 1,000 of the 10,000 test images."""
    return _split("t10k", 1000)
