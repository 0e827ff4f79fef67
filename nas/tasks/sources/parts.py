"""The part of a source that a recipe names: a split, or slices of splits such as ``train[:80%]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from search_spaces import InputError

if TYPE_CHECKING:
    from datasets import Dataset


def take_part(splits: Mapping[str, Dataset], part: str, source: str) -> Dataset:
    """Returns a part of a source that is here.

    Args:
        splits: Name -> all rows of the split; a single file has one, ``train``.
        part: What follows the colon of a source: ``train``, ``train[:80%]``, ``a[:100]+b``; "" for ``train``, or for
            the only split.
        source: What to call the data in an error.

    Raises:
        InputError: If there is no such part, or it has no rows.
    """
    from datasets import ReadInstruction, concatenate_datasets

    known = ", ".join(splits)
    if not part:
        part = "train" if "train" in splits or len(splits) != 1 else next(iter(splits))
    elif part.startswith("["):
        part = f"train{part}"
    try:
        slices = ReadInstruction.from_spec(part).to_absolute({name: len(rows) for name, rows in splits.items()})
        pieces = [
            splits[piece.splitname].select(range(piece.from_, piece.to)) for piece in slices if piece.from_ < piece.to
        ]
    except (ValueError, AssertionError, KeyError):
        raise InputError(
            f"the part `{part}` of `{source}` must be a split of it ({known}) or a slice such as "
            f"`{next(iter(splits))}[:80%]`; a percentage or a number of rows lies within the split."
        ) from None
    if not pieces:
        raise InputError(f"the part `{part}` of `{source}` must hold examples, but it has none.")
    return pieces[0] if len(pieces) == 1 else concatenate_datasets(pieces)
