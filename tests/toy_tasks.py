"""Toy data and tiny models for every task type, and recipes over both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from toys import TOYS, WORDS

from nas.recipe.objectives import METRICS
from nas.recipe.schema import Recipe
from nas.tasks.context import TaskContext

GOOD, BAD = ("good", "great", "fine"), ("bad", "awful", "poor")
SENTENCES = [
    f"the {noun} {verb} {'very ' * k}{word}"
    for noun in ("film", "plot", "cast")
    for verb in ("is", "was")
    for k in range(3)
    for word in (*GOOD, *BAD)
]


def tags(sentence: str) -> list[str]:
    return [
        "B-THING" if w in ("film", "plot", "cast") else "B-MOOD" if w in GOOD + BAD else "O" for w in sentence.split()
    ]


def answer(sentence: str, words: int = 1) -> dict[str, Any]:
    """The last words of a sentence."""
    text = " ".join(sentence.split()[-words:])
    return {"text": [text], "answer_start": [sentence.rindex(text)]}


def moods(sentence: str) -> list[str]:
    return [*(["good"] if sentence.split()[-1] in GOOD else []), *(["very"] if "very" in sentence else [])]


def tokenizer(folder: Path, **special: str) -> Any:
    """Words and line breaks, one token each."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate([*WORDS, "\n", "</s>"])}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[^ \n]+"), "removed", invert=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="</s>", **special)
    fast.save_pretrained(folder)
    return fast


def causal(folder: Path) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer(folder)
    config = GPT2Config(vocab_size=len(WORDS) + 2, n_positions=64, n_embd=48, n_layer=2, n_head=4)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return model


def encoder(folder: Path) -> Any:
    tokenizer(folder, pad_token="[PAD]")
    model = TOYS["bert"].model("feature-extraction")
    model.resize_token_embeddings(len(WORDS) + 2)
    model.save_pretrained(folder)
    return model


def seq2seq(model_type: str, folder: Path) -> Any:
    from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration

    tokenizer(folder, pad_token="[PAD]")
    size = len(WORDS) + 2
    if model_type == "t5":
        t5 = T5Config(
            vocab_size=size, d_model=48, d_kv=12, d_ff=96, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        model = T5ForConditionalGeneration(t5)
    else:
        sides = {
            f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in (("layers", 2), ("attention_heads", 4))
        }
        widths = {"encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 64}
        ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": size - 1, "decoder_start_token_id": size - 1}
        bart = BartConfig(vocab_size=size, d_model=48, forced_eos_token_id=None, **sides, **widths, **ids)
        model = BartForConditionalGeneration(bart)
    model.eval().save_pretrained(folder)
    return model


def whisper(folder: Path) -> Any:
    """A tiny Whisper for one second of sound, 50 encoder positions."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperProcessor

    words = tokenizer(folder, pad_token="[PAD]")
    WhisperProcessor(WhisperFeatureExtractor(feature_size=16, chunk_length=1), words).save_pretrained(folder)
    sides = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in (("layers", 2), ("attention_heads", 2))}
    ids = {"decoder_start_token_id": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": len(WORDS) + 1}
    sizes = {
        "d_model": 16,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "num_mel_bins": 16,
        "max_source_positions": 50,
    }
    config = WhisperConfig(vocab_size=len(WORDS) + 2, max_target_positions=64, **sizes, **sides, **ids)
    model = WhisperForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    return model


def sound(sentence: str) -> list[float]:
    """A tone for a sentence."""
    return np.sin(np.arange(8000) * (0.1 + 0.001 * len(sentence))).astype("float32").tolist()


def csv(path: Path, rows: list[dict[str, Any]]) -> str:
    pd.DataFrame(rows).to_csv(path.with_suffix(".csv"), index=False)
    return f"{path}.csv"


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.with_suffix(".jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"{path}.jsonl"


def parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    pd.DataFrame(rows).to_parquet(path.with_suffix(".parquet"))
    return f"{path}.parquet"


def txt(path: Path, rows: list[dict[str, Any]]) -> str:
    path.with_suffix(".txt").write_text("".join(f"{row['text']}\n" for row in rows))
    return f"{path}.txt"


Rows = Callable[[str], dict[str, Any]]
CASES: dict[str, tuple[str, Callable[..., str], Rows, tuple[str, float]]] = {
    "single label": (
        "text-classification",
        csv,
        lambda s: {"text": s, "label": s.split()[-1] in GOOD},
        ("accuracy", 0.9),
    ),
    "regression": (
        "text-classification",
        csv,
        lambda s: {"text": s, "label": (s.split()[-1] in GOOD) + s.count("very") / 4},
        ("pearsonr", 0.8),
    ),
    "multi-label": ("text-classification", jsonl, lambda s: {"text": s, "label": moods(s)}, ("f1", 0.7)),
    "multi-hot": (
        "text-classification",
        parquet,
        lambda s: {"text": s, "label": [int("good" in moods(s)), int("very" in moods(s))]},
        ("f1", 0.7),
    ),
    "tags": ("token-classification", jsonl, lambda s: {"tokens": s.split(), "ner_tags": tags(s)}, ("f1", 0.8)),
    "answers": (
        "question-answering",
        jsonl,
        lambda s: {"question": "good", "context": s, "answers": answer(s)},
        ("exact_match", 0.5),
    ),
    "masks": ("fill-mask", txt, lambda s: {"text": s}, ("accuracy", 0.1)),
    "vectors": ("feature-extraction", txt, lambda s: {"text": s}, ("cosine_similarity", 0.999)),
    "scored pairs": (
        "sentence-similarity",
        csv,
        lambda s: {"sentence1": s, "sentence2": s.replace("very ", ""), "score": 5 - s.count("very")},
        ("cosine_similarity", 0.999),
    ),
    "ranked": (
        "text-ranking",
        jsonl,
        lambda s: {"query": s, "documents": [f"a {word} film" for word in (*BAD, *GOOD)], "labels": [0] * 3 + [1] * 3},
        ("ndcg10", 0.9),
    ),
    "next words": ("text-generation", txt, lambda s: {"text": s}, ("accuracy", 0.4)),
    "pairs": ("text2text-generation", jsonl, lambda s: {"input": s, "output": s.split()[-1]}, ("accuracy", 0.4)),
    "speech": ("automatic-speech-recognition", parquet, lambda s: {"audio": sound(s), "text": s}, ("accuracy", 0.2)),
}
"""Name -> task type, file format, the row of a sentence, and a metric with the value that a trained parent reaches."""

MODELS: dict[str, Callable[[Path], Any]] = {
    "vectors": lambda folder: encoder(folder),
    "scored pairs": lambda folder: encoder(folder),
    "next words": lambda folder: causal(folder),
    "pairs": lambda folder: seq2seq("t5", folder),
    "speech": lambda folder: whisper(folder),
}
"""Case that a BERT without weights cannot do -> a model that can."""

Make = Callable[..., TaskContext]


def builder(text_folder: Path) -> Make:
    """A recipe for one of the cases, or for any rows, over the tiny BERT of `text_folder`."""

    def build(case: str, rows: Rows | None = None, metric: str | None = None, **task: Any) -> TaskContext:
        task_type, write, row, (default_metric, _) = CASES[case]
        data = [(rows or row)(sentence) for sentence in SENTENCES]
        name = case.replace(" ", "-")
        sources = {
            "train": write(text_folder / f"{name}-train", data),
            "test": write(text_folder / f"{name}-test", data[::3]),
        }
        if case in MODELS:
            shutil.rmtree(text_folder / "model")
            MODELS[case](text_folder / "model")
        examples = 8 if write is txt else 36
        quick = {"epochs": 4, "learning_rate": 2e-3, "batch_size": 8}
        recipe = {
            "model": str(text_folder / "model"),
            "task": {"type": task_type, **sources, "max_length": 16, "search_examples": examples, **task},
            "space": {"num_hidden_layers": [1, 2], "num_attention_heads": [1, 2], "intermediate_size": [16]},
            "objectives": {metric or default_metric: METRICS[metric or default_metric], "latency_ms": "minimize"},
            "workload": {"sequence_length": 16},
            "parent": quick,
            "supernet": {**quick, "epochs": 1, "sampled_subnets": 1, "strategy": "sandwich"},
        }
        (text_folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        return TaskContext(Recipe.load(text_folder / f"{name}.yaml"))

    return build


def seq2seq_context(folder: Path, **recipe: Any) -> TaskContext:
    rows = [{"input": s, "output": s.split()[-1] + " film" * (k % 2)} for k, s in enumerate(SENTENCES)]
    source = jsonl(folder / "pairs", rows)
    task = {"type": "text2text-generation", "train": source, "test": source, "max_length": 12, "search_examples": 20}
    return TaskContext(Recipe.parse({"model": str(folder / "model"), "task": task, "space": {}, **recipe}))
