"""scikit-learn's handwritten digits (1,797 real 8x8 images, Alpaydin & Kaynak 1998) as two splits; no download."""

from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


def _split(part: int) -> Dataset:
    digits = load_digits()
    halves = train_test_split(digits.images, digits.target, test_size=0.4, stratify=digits.target, random_state=0)
    images, labels = halves[part], halves[part + 2]
    rows = {"image": [Picture.fromarray((a * 15).astype("uint8")) for a in images], "label": labels.tolist()}
    return Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(num_classes=10)}))


def train() -> Dataset:
    """1,078 images."""
    return _split(0)


def test() -> Dataset:
    """719 images, the same share of each digit."""
    return _split(1)
