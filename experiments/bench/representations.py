"""What a decoder from scratch reads: bytes, pieces of several vocabularies, superword pieces, or coded text.

    python -m experiments.bench.representations TRAIN.txt [TEST.txt] [--seconds 15] [--seeds 0 1 2] [--test-kb 30]

Each is the input of the same small Llama, trained for as many seconds of process CPU time on one thread. Without a
second text, the last tenth of the first is the test. Bits per byte are those of all tokens of the test text over its
bytes, in windows of which the second half counts; milliseconds are CPU time for a kilobyte of the test text: reading
it in passes of one window, and writing it one token at a time with half a window in the cache.

Superword pieces are those of byte-pair encoding without a split at blanks (within lines; compare Liu et al. 2025,
arXiv 2503.13423, whose first merges keep the split). Coded text: an arithmetic coder after a language model, in
windows of equal information (Lester et al. 2024, arXiv 2404.03626): bytes are encoded until the next would exceed so
many bits, then the coder and the context of its model start anew. A window is one token of these bits, or two of half
of them. As the context never spans more than a window, the model is one of counts: bytes after up to five others,
interpolated (Witten and Bell 1991). Its time is left out, and a code that its decoder would read on beyond the
window's end counts like any other; both favour coded text. The share of windows that decode to their bytes is printed.
"""

from __future__ import annotations

import argparse
import math
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

WINDOW, BATCH, RATE = 128, 16, 3e-3
SIZES = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 344}
ORDER, PRECISION = 5, 14
"""Bytes of context of the coder's model; bits of its probabilities."""
MOST_CODES = 16
"""Codes of a window that are tried."""

Encode = Callable[[bytes], list[int]]


def bytes_of(text: bytes) -> list[int]:
    """Each byte is a token."""
    return list(text)


def pieces(train: bytes, size: int, split: bool) -> Encode:
    """Byte-pair encoding of a vocabulary of this size, fitted on the training text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines(train), trainer)

    def encode(text: bytes) -> list[int]:
        return [number for each in tokenizer.encode_batch(lines(text)) for number in each.ids]

    return encode


def lines(text: bytes) -> list[str]:
    """The lines of a text, with their ends."""
    return text.decode().splitlines(keepends=True)


class Coder:
    """An arithmetic coder after a model of counts, in windows of equal information."""

    def __init__(self, train: bytes, bits: int, tokens: int) -> None:
        self.bits, self.tokens = bits, tokens
        self.counts: dict[bytes, Counter[int]] = defaultdict(Counter)
        for order in range(ORDER + 1):
            for start in range(len(train) - order):
                self.counts[train[start : start + order]][train[start + order]] += 1
        self.cumulated = cache(self._cumulated)
        self.interval = cache(self._interval)
        self.decoded = cache(self._decoded)

    def probabilities(self, context: bytes) -> np.ndarray:
        """Of the next byte: counts after this context, interpolated with those after a shorter one."""
        shorter = self.probabilities(context[1:]) if context else np.full(256, 1 / 256)
        seen = self.counts.get(context)
        if not seen:
            return shorter
        found = len(seen) * shorter
        for byte, count in seen.items():
            found[byte] += count
        return found / found.sum()

    def _cumulated(self, context: bytes) -> list[int]:
        """Cumulative frequencies of the next byte, integers up to 2^PRECISION; each byte has at least one."""
        share = self.probabilities(context) * (2**PRECISION - 256)
        frequencies = share.astype(int) + 1
        frequencies[share.argmax()] += 2**PRECISION - frequencies.sum()
        return [0, *map(int, frequencies.cumsum())]

    def _interval(self, window: bytes) -> tuple[int, int]:
        """Start and width of a window's interval, in units of 2^(-PRECISION * bytes)."""
        if not window:
            return 0, 1
        start, width = self.interval(window[:-1])
        below, above = self.cumulated(window[:-1][-ORDER:])[window[-1] : window[-1] + 2]
        return (start << PRECISION) + width * below, width * (above - below)

    def fits(self, window: bytes) -> bool:
        """Whether a window has at most `bits` bits of information; then a code of these bits is in its interval."""
        return self.interval(window)[1] << self.bits >= 1 << PRECISION * len(window)

    def windows(self, text: bytes) -> list[bytes]:
        """The text cut into windows."""
        found, start = [], 0
        while start < len(text):
            end = start + 1
            while end < len(text) and self.fits(text[start : end + 1]):
                end += 1
            found.append(text[start:end])
            start = end
        return found

    def code(self, window: bytes) -> int:
        """A number of `bits` bits in the window's interval: the first that decodes to the window, else the first."""
        start, width = self.interval(window)
        scale = PRECISION * len(window)
        first, end = (-(-(edge << self.bits) >> scale) for edge in (start, start + width))
        numbers = range(first, min(end, first + MOST_CODES))
        return next((number for number in numbers if self.decoded(number) == window), first)

    def _decoded(self, code: int) -> bytes:
        """The longest window that fits and has this code in its interval."""
        window = b""
        while True:
            start, width = self.interval(window)
            place = (code << PRECISION * (len(window) + 1)) - (start << PRECISION + self.bits)
            limits = self.cumulated(window[-ORDER:])
            longer = window + bytes([bisect_right(limits, place // (width << self.bits)) - 1])
            if not self.fits(longer):
                return window
            window = longer

    def encode(self, text: bytes) -> list[int]:
        """Tokens of equally many bits, the most significant first."""
        width, found = self.bits // self.tokens, []
        for code in map(self.code, self.windows(text)):
            found += [code >> width * rest & (1 << width) - 1 for rest in reversed(range(self.tokens))]
        return found

    def lossless(self, text: bytes) -> float:
        """Share of a text's windows that decode to their bytes."""
        windows = self.windows(text)
        return sum(self.decoded(self.code(window)) == window for window in windows) / len(windows)


def representations(train: bytes) -> dict[str, tuple[Encode, int]]:
    """Name -> how a text becomes tokens, and how many tokens there are."""
    found: dict[str, tuple[Encode, int]] = {"bytes": (bytes_of, 256)}
    for size in (1024, 4096, 16384):
        found[f"pieces, {size}"] = pieces(train, size, split=True), size
    for size in (4096, 16384):
        found[f"superword pieces, {size}"] = pieces(train, size, split=False), size
    for bits, tokens in ((12, 1), (16, 2)):
        coder = Coder(train, bits, tokens)
        share = coder.lossless(train[:20_000])
        name = f"coded, windows of {bits} bits, {tokens} token{'s' * (tokens > 1)} ({share:.1%} decode)"
        found[name] = coder.encode, 2 ** (bits // tokens)
    return found


def trained(tokens: torch.Tensor, vocabulary: int, seconds: float, seed: int) -> tuple[LlamaForCausalLM, float]:
    """A model after so many seconds of CPU time, and how often it has read the text."""
    torch.manual_seed(seed)
    config = LlamaConfig(**SIZES, vocab_size=vocabulary, max_position_embeddings=WINDOW, tie_word_embeddings=True)  # type: ignore[arg-type]
    model, generator = LlamaForCausalLM(config), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.1)
    start, read = time.process_time(), 0
    while (share := (time.process_time() - start) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, share / 0.05) * (1 - share)
        starts = torch.randint(len(tokens) - WINDOW - 1, (BATCH, 1), generator=generator)
        batch = tokens[starts + torch.arange(WINDOW + 1)]
        loss = cross_entropy(model(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        read += BATCH * WINDOW
    return model.eval(), read / len(tokens)


@torch.inference_mode()
def bits(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    """Bits of all tokens: each after at least half a window, those of the first half after what there is."""
    half, total = WINDOW // 2, 0.0
    for start in range(0, len(tokens) - 1, half):
        window = tokens[max(0, start - half) : start + half + 1][None]
        counted = min(half, len(tokens) - 1 - start)
        logits = model(window[:, :-1]).logits[0, -counted:]
        total += float(cross_entropy(logits, window[0, -counted:], reduction="sum"))
    return total / math.log(2) + math.log2(model.config.vocab_size)


@torch.inference_mode()
def milliseconds(model: LlamaForCausalLM, rounds: int = 15) -> tuple[float, float]:
    """CPU time a token, reading a window and writing after half of one: medians."""
    window = torch.randint(model.config.vocab_size, (1, WINDOW))
    reading, writing = [], []
    for _ in range(rounds):
        start = time.process_time()
        model(window)
        reading.append((time.process_time() - start) / WINDOW)
        past = model(window[:, : WINDOW // 2], use_cache=True).past_key_values
        start = time.process_time()
        for place in range(WINDOW // 2, WINDOW // 2 + 8):
            model(window[:, place : place + 1], past_key_values=past, use_cache=True)
        writing.append((time.process_time() - start) / 8)
    return 1000 * float(np.median(reading)), 1000 * float(np.median(writing))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--test-kb", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train = arguments.train.read_bytes()
    cut = train.rindex(b"\n", 0, len(train) * 9 // 10) + 1
    train, test = (train, arguments.test.read_bytes()) if arguments.test else (train[:cut], train[cut:])
    test = test[: test.rindex(b"\n", 0, 1000 * arguments.test_kb) + 1]
    columns = (
        "representation",
        "bytes a token",
        "parameters, M",
        "texts read",
        "bits per byte",
        "read, ms a kB",
        "write",
    )
    table = Table(*columns, title=f"{arguments.train.name} · {arguments.seconds:.0f} s · {len(test) / 1000:.0f} kB")
    for name, (encode, vocabulary) in representations(train).items():
        known, asked = (torch.tensor(encode(text)) for text in (train, test))
        a_kilobyte, scores, times, read = 1000 * len(asked) / len(test), [], [], 0.0
        for seed in arguments.seeds:
            model, read = trained(known, vocabulary, arguments.seconds, seed)
            scores.append(bits(model, asked) / len(test))
            times.append(np.array(milliseconds(model)) * a_kilobyte)
        error = f" ± {np.std(scores, ddof=1) / len(scores) ** 0.5:.3f}" if len(scores) > 1 else ""
        reading, writing = np.mean(times, axis=0)
        size = f"{model.num_parameters() / 1e6:.2f}"
        row = (f"{len(test) / len(asked):.2f}", size, f"{read:.1f}", f"{np.mean(scores):.3f}{error}")
        table.add_row(name, *row, f"{reading:.1f}", f"{writing:.0f}")
        print(name, *row, f"{reading:.1f}", f"{writing:.0f}", flush=True)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
