"""Compares a tokenizer with the tables of its model: a token without a row cannot be read."""

from __future__ import annotations

from typing import Any

from nas.tasks.context import TaskContext
from search_spaces import InputError

TABLES = {"input_ids": "vocab_size", "token_type_ids": "type_vocab_size"}
"""Input of a model -> field of its config with the rows of the table that is indexed by it."""


def check_token_table(context: TaskContext) -> None:
    """Raises InputError if the tokenizer has tokens that the model has no row for."""
    rows = getattr(context.layout.config, "vocab_size", None)
    tokenizer = text_tokenizer(context)
    if tokenizer is None or rows is None:
        return
    tokens = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
    if tokens > rows:
        raise InputError(
            f"the tokenizer of `{context.recipe.model}` must fit the model, but it has {tokens:,} tokens, and the "
            "model's table "
            f"{rows:,} rows; resize the table with `model.resize_token_embeddings({tokens})` and save the model."
        )


def check_tokens(context: TaskContext) -> None:
    """Raises InputError if an example has a token, or a token type, that the model has no row for."""
    for batch in (*context.splits.search.collated, *context.splits.test.collated):
        for name, field in TABLES.items():
            rows = getattr(context.config, field, None)
            highest = int(batch[name].max()) if name in batch and rows is not None else 0
            if rows is not None and highest >= max(rows, 1):
                kind = "token types" if name == "token_type_ids" else "tokens"
                raise InputError(
                    f"the tokenizer of `{context.recipe.model}` must fit the model, but it gives {kind} 0 to "
                    f"{highest}, and "
                    f"the model's table has {rows} row{'s' * (rows != 1)} (`{field}`); use the tokenizer that the "
                    "model was trained with."
                )


def text_tokenizer(context: TaskContext) -> Any:
    """The tokenizer of a context; None if the model reads no text and writes none."""
    processor = context.processor
    tokenizer = getattr(processor, "tokenizer", processor)
    return tokenizer if hasattr(tokenizer, "get_vocab") else None
