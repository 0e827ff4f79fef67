"""Entities: spans of words of one type, read from tags such as B-PER, I-PER, O (also IOB1, IOE, IOBES)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

OUTSIDE_TAG = "O"
"""Tag of words outside of any entity."""

Entity = tuple[str, int, int]
"""Type, first word and last word."""


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of one text, as conlleval and seqeval find them: a type that changes ends an entity.

    Args:
        tags: The tag of each word: a letter, and a type after a hyphen.
    """
    found, begin, before, type_before = set(), 0, OUTSIDE_TAG, ""
    for index, tag in enumerate([*tags, OUTSIDE_TAG]):
        letter, kind = tag[:1], tag[1:].split("-", 1)[-1] or "_"
        changes = kind != type_before
        if before != OUTSIDE_TAG and (before in "ES" or letter in "BSO" or changes):
            found.add((type_before, begin, index - 1))
        if letter != OUTSIDE_TAG and (letter in "BS" or before in "ESO" or changes):
            begin = index
        before, type_before = letter, kind
    return found


def entity_counts(
    labels: Iterable[np.ndarray], predictions: Iterable[np.ndarray], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Counts entities of each text: correct, predicted and actual ones, three arrays (texts,).

    Args:
        labels: For each text, the ids of its tags.
        predictions: The predicted ones.
        names: Tag by id.
    """
    counts = []
    for true, predicted in zip(labels, predictions, strict=True):
        actual, found = (entities([names[tag] for tag in tags]) for tags in (true, predicted))
        counts.append((len(actual & found), len(found), len(actual)))
    columns = np.array(counts).reshape(-1, 3).T
    return dict(zip(("correct_entities", "predicted_entities", "actual_entities"), columns, strict=True))
