"""Toy tokenizers of every kind, trained on texts of five languages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS_OF_FIVE = [
    "the quick brown fox jumps over the lazy dog while the other foxes are jumping over lazier dogs",
    "zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich und die Größe ändert sich täglich",
    "съешь ещё этих мягких французских булок да выпей чаю съешь ещё этих мягких булок",
    "今日は天気がいいですね 今日は良い天気です 明日も天気がいいでしょう",
    "مرحبا بالعالم كيف حالك اليوم مرحبا بكم في العالم الجديد",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
Make = Callable[..., PreTrainedTokenizerFast]


def _fast(backend: Tokenizer, trainer: Any, texts: list[str]) -> PreTrainedTokenizerFast:
    backend.train_from_iterator(texts * 3, trainer)
    ends = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    backend.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B </s>", ends)
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, clean_up_tokenization_spaces=False)


def word_piece(texts: list[str] = TEXTS_OF_FIVE) -> PreTrainedTokenizerFast:
    """As BERT's, cased."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=False)
    return _fast(
        backend, trainers.WordPieceTrainer(vocab_size=420, special_tokens=SPECIAL, show_progress=False), texts
    )


def byte_bpe(texts: list[str] = TEXTS_OF_FIVE) -> PreTrainedTokenizerFast:
    """As GPT-2's; the padding token is the last piece."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    backend.add_special_tokens(["<s>"])
    tokenizer = _fast_with_last(backend, trainer, texts)
    return tokenizer


def _fast_with_last(backend: Tokenizer, trainer: Any, texts: list[str]) -> PreTrainedTokenizerFast:
    backend.train_from_iterator(texts * 3, trainer)
    backend.add_special_tokens(["<|endoftext|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")


def character_bpe(texts: list[str] = TEXTS_OF_FIVE) -> PreTrainedTokenizerFast:
    """As Llama's: characters, bytes for those that it does not know."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(parts)
    special = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    return _fast(backend, trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False), texts)


def unigram(texts: list[str] = TEXTS_OF_FIVE) -> PreTrainedTokenizerFast:
    """As XLM-RoBERTa's."""
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return _fast(backend, trainer, texts)


KINDS: dict[str, Make] = {
    "WordPiece": word_piece,
    "byte BPE": byte_bpe,
    "character BPE": character_bpe,
    "Unigram": unigram,
}
