"""Tokenizers with fewer pieces: WordPiece, BPE (of bytes or characters) and Unigram, fast ones of their class.

The tokenizer's own file is edited: pieces, merges, scores, and every id that names a piece. Nothing that the full
tokenizer knows becomes unknown, because single characters and bytes stay; merges stay closed, because a piece is only
kept with the pieces that it is merged from.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from search_spaces import InputError

Spec = dict[str, Any]
"""The file of a fast tokenizer."""

MODELS = ("WordPiece", "BPE", "Unigram")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def specification(tokenizer: Any) -> Spec:
    """The file of a fast tokenizer.

    Raises:
        InputError: If it is none, or of another kind than `MODELS`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    spec: Spec = {} if backend is None else json.loads(backend.to_str())
    kind = spec.get("model", {}).get("type")
    if kind not in MODELS:
        raise InputError(
            f"`space.vocabulary` needs a fast tokenizer of kind {', '.join(MODELS)}, but `{type(tokenizer).__name__}` "
            f"is {kind or 'none'}; leave it out."
        )
    return spec


def pieces_that_stay(spec: Spec) -> set[str]:
    """Special and added tokens, the unknown one, bytes, single characters, and what has a character without one."""
    model, pieces = spec["model"], _pieces(spec)
    stay = {token["content"] for token in spec["added_tokens"]} | {piece for piece in pieces if BYTE.fullmatch(piece)}
    stay |= _special_in(spec["post_processor"]) | {model.get("unk_token")}
    if model["type"] == "BPE":
        return (stay | (pieces - parents_of(spec).keys())) & (pieces | stay) - {None}
    prefix = model.get("continuing_subword_prefix", "")
    single = {piece for piece in pieces if len(_bare(piece, prefix)) == 1}
    alone = {_bare(piece, prefix) for piece in single if not prefix or piece.startswith(prefix)}
    if model["type"] == "Unigram":
        stay |= {model["vocab"][model["unk_id"]][0]} if model.get("unk_id") is not None else set()
    hard = {piece for piece in pieces - stay if not set(_bare(piece, prefix)) <= alone}
    return (stay | single | hard) - {None}


def parents_of(spec: Spec) -> dict[str, tuple[str, str]]:
    """Piece of a BPE -> the two pieces that it is merged from; empty for other kinds."""
    model = spec["model"]
    if model["type"] != "BPE":
        return {}
    rank, made = dict[tuple[str, str], int](), dict[str, list[tuple[str, str]]]()
    for number, pair in enumerate(map(_pair, model["merges"])):
        rank[pair] = number
        made.setdefault(_merged(pair, model), []).append(pair)
    last = ((piece, pairs[0] if len(pairs) == 1 else _last_merge(piece, rank, model)) for piece, pairs in made.items())
    return {piece: pair for piece, pair in last if pair is not None}


def trimmed_tokenizer(tokenizer: Any, kept: np.ndarray) -> Any:
    """A tokenizer of the same class with some of the pieces only.

    Args:
        tokenizer: A fast tokenizer.
        kept: Ids of the pieces, ascending; id k of the new tokenizer is the k-th of them.
    """
    spec = _trimmed(specification(tokenizer), {int(old): new for new, old in enumerate(kept)})
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
        trimmed = type(tokenizer).from_pretrained(folder)
    trimmed.name_or_path = tokenizer.name_or_path
    trimmed.model_max_length = tokenizer.model_max_length
    return trimmed


def _trimmed(spec: Spec, new_ids: Mapping[int, int]) -> Spec:
    """The file of a tokenizer with the pieces of some ids only."""
    model, changed = spec["model"], dict[str, Any]()
    if model["type"] == "Unigram":
        changed["vocab"] = [piece for old, piece in enumerate(model["vocab"]) if old in new_ids]
        changed["unk_id"] = None if model.get("unk_id") is None else new_ids[model["unk_id"]]
    else:
        changed["vocab"] = {piece: new_ids[old] for piece, old in model["vocab"].items() if old in new_ids}
    if model["type"] == "BPE":
        pairs = ((merge, _pair(merge)) for merge in model["merges"])
        changed["merges"] = [m for m, pair in pairs if {*pair, _merged(pair, model)} <= changed["vocab"].keys()]
    added = [{**token, "id": new_ids[token["id"]]} for token in spec["added_tokens"]]
    padding = spec["padding"] and {**spec["padding"], "pad_id": new_ids[spec["padding"]["pad_id"]]}
    rest = {"post_processor": _renumbered(spec["post_processor"], new_ids), "padding": padding}
    return {**spec, "model": {**model, **changed}, "added_tokens": added, **rest}


def _renumbered(part: Any, new_ids: Mapping[int, int]) -> Any:
    """A part of a post-processor with new ids: of ``special_tokens``, and of ``sep`` and ``cls`` pairs."""
    if isinstance(part, list):
        return [_renumbered(one, new_ids) for one in part]
    if not isinstance(part, dict):
        return part
    changed = {name: _renumbered(value, new_ids) for name, value in part.items()}
    for name in {"sep", "cls"} & part.keys():
        changed[name] = [part[name][0], new_ids[part[name][1]]]
    if "ids" in part:
        changed["ids"] = [new_ids[old] for old in part["ids"]]
    return changed


def _special_in(part: Any) -> set[str]:
    """Tokens that a post-processor adds."""
    if isinstance(part, list):
        return set().union(*map(_special_in, part))
    if not isinstance(part, dict):
        return set()
    found = {part[name][0] for name in {"sep", "cls"} & part.keys()} | {*part.get("tokens", ())}
    return found.union(*map(_special_in, part.values()))


def _pieces(spec: Spec) -> set[str]:
    """Every piece of the model."""
    vocab = spec["model"]["vocab"]
    return {piece for piece, _ in vocab} if spec["model"]["type"] == "Unigram" else set(vocab)


def _bare(piece: str, prefix: str) -> str:
    """A piece without the prefix that says that it continues a word."""
    return piece.removeprefix(prefix) if prefix and len(piece) > len(prefix) else piece


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """The two pieces of a merge, in either form of the file."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _merged(pair: tuple[str, str], model: Mapping[str, Any]) -> str:
    """The piece that a merge makes."""
    return pair[0] + pair[1].removeprefix(model.get("continuing_subword_prefix") or "")


def _last_merge(piece: str, rank: Mapping[tuple[str, str], int], model: Mapping[str, Any]) -> tuple[str, str] | None:
    """The merge that makes a piece when it is tokenized by itself; None if its merges do not make it."""
    parts: list[str] = list(piece)
    while len(parts) > 2:
        pairs = [pair for pair in pairwise(parts) if pair in rank]
        if not pairs:
            return None
        parts = _apply(parts, min(pairs, key=rank.__getitem__), model)
    pair = (parts[0], parts[1]) if len(parts) == 2 else None
    return pair if pair in rank else None


def _apply(parts: Iterable[str], pair: tuple[str, str], model: Mapping[str, Any]) -> list[str]:
    """Parts of a piece with the first occurrence of a pair merged."""
    merged, found = list[str](), False
    for part in parts:
        if not found and merged and (merged[-1], part) == pair:
            merged[-1], found = _merged(pair, model), True
        else:
            merged.append(part)
    return merged
