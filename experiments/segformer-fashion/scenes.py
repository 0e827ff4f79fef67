"""Scenes of garments: images of Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747) on noise, and their label maps.

The four IDX files are read from where Debian's package `dataset-fashion-mnist` puts them, or from ``FASHION_MNIST``.
"""

import gzip
import os
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image
from PIL import Image as Picture

FOLDER = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))
SIDE, GARMENT, INK = 64, 28, 40
"""Pixels a side of a scene and of a garment, and the least level of a pixel that belongs to the garment."""
CLOTHING, SHOE, BAG = 1, 2, 3
KINDS = np.array([CLOTHING, CLOTHING, CLOTHING, CLOTHING, CLOTHING, SHOE, CLOTHING, SHOE, BAG, SHOE])
"""Class of Fashion-MNIST -> what it is in a map; 0 is the ground."""


def read(part: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28) and class ids (n,) of ``train`` or ``t10k``."""
    names = {"images-idx3": 16, "labels-idx1": 8}
    files = [gzip.decompress((FOLDER / f"{part}-{name}-ubyte.gz").read_bytes()) for name in names]
    images, labels = (np.frombuffer(file, np.uint8, offset=n) for file, n in zip(files, names.values(), strict=True))
    return images.reshape(-1, GARMENT, GARMENT)[first:last], labels[first:last]


def scene(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[Picture.Image, Picture.Image]:
    """Two to four garments, later ones over earlier ones, and their map of kinds."""
    pixels, ids = rng.integers(0, 70, (SIDE, SIDE)).astype(np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    for number in rng.integers(len(images), size=rng.integers(2, 5)):
        top, left = rng.integers(0, SIDE - GARMENT + 1, 2)
        window, ink = np.s_[top : top + GARMENT, left : left + GARMENT], images[number] > INK
        pixels[window][ink], ids[window][ink] = images[number][ink], KINDS[labels[number]]
    return Picture.fromarray(pixels).convert("RGB"), Picture.fromarray(ids)


def _split(part: str, first: int, last: int, count: int) -> Dataset:
    rng = np.random.default_rng(first)
    garments = read(part, first, last)
    images, maps = zip(*(scene(*garments, rng) for _ in range(count)), strict=True)
    return Dataset.from_dict({"image": images, "mask": maps}, features=Features({"image": Image(), "mask": Image()}))


def train() -> Dataset:
    """1,200 scenes of 20,000 of the training images."""
    return _split("train", 0, 20_000, 1200)


def test() -> Dataset:
    """400 scenes of the test images."""
    return _split("t10k", 0, 10_000, 400)
