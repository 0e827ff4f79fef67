"""Every task type: what its data becomes, what a supernet learns from it, what a model scores, against references."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import yaml
from conftest import WORDS, bert

from nas.config import Recipe
from nas.evaluation import EvaluationSet, score, spread
from nas.export import check_reload, save_subnet
from nas.labels import without_multi_hot
from nas.losses import divergence
from nas.run import Run
from nas.stages import load_supernet, make_parent, make_supernet
from nas.task_types import TASK_TYPES
from nas.task_types.base import IGNORED, model_inputs
from nas.tasks import Workbench
from nas.training import DistillationTrainer
from predictors import Workload
from search_spaces import InputError

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


# -- models and data ----------------------------------------------------------------------------------------------


def tokenizer(folder: Path, **special: str) -> Any:
    """Words and line breaks, one token each."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate([*WORDS, "\n", "</s>"])}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|[^ \n]+"), "removed", invert=True)
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="</s>", **special)
    made.save_pretrained(folder)
    return made


def causal(folder: Path) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer(folder)
    config = GPT2Config(vocab_size=len(WORDS) + 2, n_positions=64, n_embd=48, n_layer=2, n_head=4)
    model = GPT2LMHeadModel(config).eval()
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
    """A second of sound, half a second of it at most in 50 frames."""
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
    "masks": ("fill-mask", txt, lambda s: {"text": s}, ("accuracy", 0.2)),
    "next words": ("text-generation", txt, lambda s: {"text": s}, ("accuracy", 0.4)),
    "pairs": ("text2text-generation", jsonl, lambda s: {"input": s, "output": s.split()[-1]}, ("accuracy", 0.4)),
    "speech": ("automatic-speech-recognition", parquet, lambda s: {"audio": sound(s), "text": s}, ("accuracy", 0.2)),
}
"""Name -> task type, file format, the row of a sentence, and a quality that a trained parent reaches."""

MODELS: dict[str, Callable[[Path], Any]] = {
    "next words": lambda folder: causal(folder),
    "pairs": lambda folder: seq2seq("t5", folder),
    "speech": lambda folder: whisper(folder),
}
"""Cases that a BERT cannot do -> a model that can."""

Make = Callable[..., Workbench]


@pytest.fixture
def make(text_folder: Path) -> Make:
    """A recipe for one of the cases, or for any rows, over the tiny BERT of `text_folder`."""

    def build(case: str, rows: Rows | None = None, quality: str | None = None, **task: Any) -> Workbench:
        kind, write, row, (usual, _) = CASES[case]
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
            "task": {"type": kind, **sources, "max_length": 16, "search_examples": examples, **task},
            "space": {"num_hidden_layers": [1, 2], "num_attention_heads": [1, 2], "intermediate_size": [16]},
            "objectives": {quality or usual: "maximize", "latency_ms": "minimize"},
            "workload": {"sequence_length": 16},
            "parent": quick,
            "supernet": {**quick, "epochs": 1, "sampled_subnets": 1},
        }
        (text_folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        return Workbench(Recipe.load(text_folder / f"{name}.yaml"))

    return build


# -- parent, supernet, score, export ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_parent_learns_it_a_supernet_shares_it_and_an_export_keeps_it(case: str, make: Make, tmp_path: Path) -> None:
    bench, (quality, reached) = make(case), CASES[case][3]
    run = Run.open(tmp_path / "run", bench.recipe)
    make_parent(run, bench)
    parent = score(bench.load_model(run.parent), bench.splits.test, [quality, "loss"])
    assert parent[quality].value >= reached
    make_supernet(run, bench)
    supernet, space = load_supernet(run, bench)
    whole = score(supernet.model, bench.splits.search, [quality, "loss"])
    supernet.activate(space.smallest)
    part = score(supernet.model, bench.splits.search, [quality, "loss"])
    assert whole["loss"].value != part["loss"].value and math.isfinite(part["loss"].standard_error)
    save_subnet(supernet, space.smallest, bench, tmp_path / "small")
    check_reload(tmp_path / "small", supernet, space.smallest, bench)
    with torch.no_grad():
        for weight in supernet.model.parameters():
            weight.mul_(1.1)
    with pytest.raises(InputError, match="the export is refused"):
        check_reload(tmp_path / "small", supernet, space.smallest, bench)


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_the_models_own(case: str, make: Make) -> None:
    bench = make(case)
    model, examples = bench.load_model().eval(), bench.splits.test
    (batch, *_), first = examples.batches, examples.first(1)
    with torch.inference_mode():
        expected = model(**batch).loss.item()
    assert score(model, first, ["loss"])["loss"].value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_learnt_from_a_teacher_that_says_the_same(case: str, make: Make) -> None:
    bench = make(case)
    task, model = bench.splits.task, bench.load_model().eval()
    batch = bench.splits.search.batches[0]
    ours, theirs = model(**batch), bench.load_model().eval()(**model_inputs(batch))
    same = divergence(task.scored(ours, batch), task.scored(theirs, batch), task.activation, 2.0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    apart = divergence(task.scored(model(**batch), batch), task.scored(theirs, batch), task.activation, 2.0)
    assert abs(same.item()) < 1e-6 < 1e-5 < apart.item()


# -- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "problem_type", "names"),
    [
        ("single label", "single_label_classification", ["False", "True"]),
        ("regression", "regression", ["LABEL_0"]),
        ("multi-label", "multi_label_classification", ["good", "very"]),
        ("multi-hot", "multi_label_classification", ["0", "1"]),
    ],
)
def test_the_problem_type_follows_from_the_labels(case: str, problem_type: str, names: list[str], make: Make) -> None:
    bench = make(case)
    config = bench.load_model().config
    assert (config.problem_type, list(config.id2label.values())) == (problem_type, names)
    assert bench.load_model()(**bench.dummy_inputs(Workload(sequence_length=8))).logits.shape == (1, len(names))


def test_lists_of_classes_become_zeros_and_ones(make: Make) -> None:
    for case, row in (("multi-label", [1.0, 0.0]), ("multi-hot", [1.0, 0.0])):
        splits = make(case).splits
        good, very = (splits.task.processor.convert_tokens_to_ids(w) for w in ("good", "very"))
        rows = [r for r in splits.train if good in r["input_ids"] and very not in r["input_ids"]]
        assert rows and all(r["labels"] == row for r in rows)


def test_whole_numbers_are_classes_unless_the_recipe_or_the_head_says_regression(
    make: Make, text_folder: Path
) -> None:
    rows: Rows = lambda s: {"text": s, "label": 1 + s.count("very")}  # noqa: E731
    assert make("single label", rows).splits.task.problem_type == "single_label_classification"
    assert make("regression", rows, problem_type="regression").splits.task.problem_type == "regression"
    bert(num_labels=1).save_pretrained(text_folder / "model")
    bench = make("regression", rows)
    assert bench.splits.task.problem_type == "regression" and bench.has_head


def test_tags_stand_at_the_first_token_of_a_word(make: Make) -> None:
    bench = make("tags", lambda s: {"tokens": ["the film", "good"], "ner_tags": ["B", "O"]})
    row = bench.splits.train[0]
    assert bench.processor.convert_ids_to_tokens(row["input_ids"]) == ["[CLS]", "the", "film", "good", "[SEP]"]
    assert row["labels"] == [IGNORED, 0, IGNORED, 1, IGNORED]
    batch = bench.splits.task.collate([row, {name: values[:2] for name, values in row.items()}])
    assert batch["labels"].tolist()[1] == [IGNORED, 0, IGNORED, IGNORED, IGNORED]


def test_a_folder_of_images_may_give_several_classes_a_row(tmp_path: Path) -> None:
    from conftest import TOYS
    from PIL import Image
    from transformers import ViTImageProcessor

    toy = TOYS["vit"].model()
    toy.config.save_pretrained(tmp_path / "model")
    size = toy.config.image_size
    ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(tmp_path / "model")
    (tmp_path / "images").mkdir()
    labels = [["red"], ["red", "dark"], [], ["dark"]] * 3
    for k in range(12):
        Image.new("RGB", (10, 6), (20 * k, k, k)).save(tmp_path / "images" / f"{k}.png")
    jsonl(tmp_path / "images" / "metadata", [{"file_name": f"{k}.png", "label": labels[k]} for k in range(12)])
    source = str(tmp_path / "images")
    task = {"type": "image-classification", "train": source, "test": source, "search_examples": 4}
    bench = Workbench(Recipe.parse({"model": str(tmp_path / "model"), "task": task, "space": {}}))
    (batch,) = bench.splits.test.batches
    assert bench.splits.task.names == ["dark", "red"]
    assert batch["labels"].tolist() == [[float("dark" in row), float("red" in row)] for row in labels]
    found = score(bench.load_model().eval(), bench.splits.test, ["f1", "accuracy", "loss"])
    assert found["loss"].value == pytest.approx(bench.load_model().eval()(**batch).loss.item(), rel=1e-5)


# -- question answering -------------------------------------------------------------------------------------------


def test_a_long_context_is_read_in_windows_and_answered_once(make: Make) -> None:
    long = " ".join(["the film was bad not good"] * 4)

    def rows(sentence: str) -> dict[str, Any]:
        return {"question": "film", "context": f"{long} {sentence}", "answers": answer(f"{long} {sentence}", 3)}

    bench = make("answers", rows, max_length=16)
    splits = bench.splits
    assert len(splits.search) == 36 and len(splits.search.batches[0]["input_ids"]) > 36
    for example in splits.task.examples(splits.task.process(splits.task.test, "toy")):
        assert len({row["example"] for row in example}) == 1 and len(example) > 2
        hits = [row for row in example if row["end_positions"]]
        assert hits and hits[-1]["context"].endswith(example[0]["answers"][0])
        for row in hits:
            (start, _), (_, end) = (row["offset_mapping"][row[k]] for k in ("start_positions", "end_positions"))
            assert row["context"][start:end] == row["answers"][0]

    class Knows(torch.nn.Module):
        """Points at the answer in the one window that holds it, and elsewhere with less certainty."""

        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            batch = next(
                b
                for b in splits.search.batches
                if b["input_ids"] is input_ids or torch.equal(b["input_ids"], input_ids)
            )
            shape = (*input_ids.shape, 1)
            start, end = (F.one_hot(batch[k], shape[1]).float() for k in ("start_positions", "end_positions"))
            return type("Outputs", (), {"start_logits": 9 * start, "end_logits": 9 * end})

    found = score(Knows(), splits.search, ["exact_match", "f1"])  # type: ignore[arg-type]
    assert found["exact_match"].value == found["f1"].value == 1.0


def test_squad_compares_without_case_articles_and_punctuation() -> None:
    from nas.task_types.question_answering import normalized, word_f1

    assert normalized("The  Film!") == normalized("film")
    assert word_f1("a very good film", "good film") == pytest.approx(0.8)
    assert (word_f1("", ""), word_f1("film", ""), word_f1("bad", "good")) == (1.0, 0.0, 0.0)


def test_the_best_span_lies_in_the_context_forwards_and_is_short() -> None:
    from nas.task_types.question_answering import best_span

    offsets = [[-1, -1], [0, 3], [4, 8], [9, 12]]
    start, end = np.array([9.0, 0.0, 1.0, 5.0]), np.array([9.0, 5.0, 1.0, 0.0])
    assert best_span(start, end, offsets) == (5.0, (0, 3))
    places = [[k, k + 1] for k in range(60)]
    far = np.zeros(60)
    far[0] = 9.0
    assert best_span(far, far[::-1], places)[1] != (0, 60)


def test_a_question_without_an_answer_may_be_left_unanswered(make: Make) -> None:
    def rows(sentence: str) -> dict[str, Any]:
        none = {"text": [], "answer_start": []}
        return {"question": "film", "context": sentence, "answers": none if "very" in sentence else answer(sentence)}

    bench = make("answers", rows)
    assert bench.splits.task.has_unanswerable
    task = bench.splits.task
    unanswered = [e for e in task.examples(task.process(task.test, "toy")) if not e[0]["answers"]]
    assert unanswered and all(row["start_positions"] == row["end_positions"] == 0 for e in unanswered for row in e)
    window = unanswered[0][0]
    size = len(window["input_ids"])
    first, last = np.eye(size)[0], np.eye(size)[size - 2]
    assert bench.splits.task._answer(9 * first[None], 9 * first[None], [window]) == ""
    assert bench.splits.task._answer(9 * last[None], 9 * last[None], [window]) == window["context"].split()[-1]


# -- language models ----------------------------------------------------------------------------------------------


def lm_bench(folder: Path, kind: str, text: str, model: str = "lm", **task: Any) -> Workbench:
    (folder / "lm.txt").write_text(text)
    source = str(folder / "lm.txt")
    section = {"type": kind, "train": source, "test": source, "max_length": 8, "search_examples": 5, **task}
    return Workbench(Recipe.parse({"model": str(folder / model), "task": section, "space": {}}))


TEXT_OF_LINES = "".join(f"{sentence}\n" for sentence in SENTENCES)


def test_a_plain_text_is_cut_into_blocks_that_follow_each_other(tmp_path: Path) -> None:
    words = tokenizer(tmp_path / "lm")
    causal(tmp_path / "lm")
    task = lm_bench(tmp_path, "text-generation", TEXT_OF_LINES).splits.task
    ids = words(TEXT_OF_LINES)["input_ids"]
    assert [len(row) for row in task.train["input_ids"]] == [8] * (len(ids) // 8)
    assert list(chain(*task.train["input_ids"])) == ids[: len(ids) // 8 * 8]
    assert words.convert_tokens_to_ids("\n") in ids


def test_the_loss_of_a_causal_model_is_of_the_next_token_and_of_all_tokens_alike(tmp_path: Path) -> None:
    model = causal(tmp_path / "lm")
    examples = lm_bench(tmp_path, "text-generation", TEXT_OF_LINES).splits.test
    with torch.inference_mode():
        losses, right = [], []
        for batch in examples.batches:
            logits, ids = model(batch["input_ids"]).logits[:, :-1], batch["input_ids"][:, 1:]
            losses += F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").tolist()
            right += (logits.argmax(-1) == ids).flatten().tolist()
    found = score(model, examples, ["loss", "perplexity", "accuracy"])
    assert found["loss"].value == pytest.approx(np.mean(losses), rel=1e-5)
    assert found["perplexity"].value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert found["accuracy"].value == pytest.approx(np.mean(right))
    assert found["loss"].standard_error == pytest.approx(np.std(losses) / math.sqrt(len(losses)), rel=0.5)


def test_scores_of_all_words_are_not_kept_and_batches_bound_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nas.evaluation import found_of
    from nas.task_types import language_modelling

    model = causal(tmp_path / "lm")
    monkeypatch.setattr(language_modelling, "LOGITS_IN_MEMORY", 3 * 8 * model.config.vocab_size)
    examples = lm_bench(tmp_path, "text-generation", TEXT_OF_LINES).splits.search
    assert {len(batch["input_ids"]) for batch in examples.batches} == {3, 2}
    found = found_of(model, examples, ["loss"])
    tokens = sum(len(row) for row in found["labels"])
    assert sum(np.size(v) if v.dtype != object else sum(map(len, v)) for v in found.values()) <= 2 * tokens + 4 * 5


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(tmp_path: Path) -> None:
    tokenizer(tmp_path / "lm")
    assert lm_bench(tmp_path, "text-generation", "").processor.pad_token == "</s>"
    tokenizer(tmp_path / "padded", pad_token="[PAD]")
    assert lm_bench(tmp_path, "text-generation", "", "padded").processor.pad_token == "[PAD]"


def test_masks_of_evaluation_sets_are_fixed_and_those_of_a_training_are_not(make: Make) -> None:
    first, second = (make("masks").splits for _ in range(2))
    for a, b in zip(first.test.batches, second.test.batches, strict=True):
        assert torch.equal(a["input_ids"], b["input_ids"]) and torch.equal(a["labels"], b["labels"])
    assert (first.test.batches[0]["labels"] != IGNORED).float().mean() < 0.4
    rows = [first.train[k] for k in range(len(first.train))]
    assert not torch.equal(first.task.collate(rows)["labels"], first.task.collate(rows)["labels"])


# -- encoder and decoder ------------------------------------------------------------------------------------------


def seq2seq_bench(folder: Path, **recipe: Any) -> Workbench:
    rows = [{"input": s, "output": s.split()[-1] + " film" * (k % 2)} for k, s in enumerate(SENTENCES)]
    source = jsonl(folder / "pairs", rows)
    task = {"type": "text2text-generation", "train": source, "test": source, "max_length": 12, "search_examples": 20}
    return Workbench(Recipe.parse({"model": str(folder / "model"), "task": task, "space": {}, **recipe}))


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_a_decoder_reads_what_the_model_itself_would_let_it_read(model_type: str, tmp_path: Path) -> None:
    model = seq2seq(model_type, tmp_path / "model")
    examples = seq2seq_bench(tmp_path).splits.test
    batch = examples.batches[0]
    assert (batch["labels"] == IGNORED).any()
    own = {name: tensor for name, tensor in batch.items() if name != "decoder_input_ids"}
    with torch.inference_mode():
        assert torch.equal(model(**own).logits, model(**model_inputs(batch)).logits)
        expected = model(**own).loss.item()
    first = examples.first(1)
    assert len(first.batches) == 1
    assert score(model, first, ["loss"])["loss"].value == pytest.approx(expected, rel=1e-5)


def test_a_teacher_reads_the_same_and_padding_teaches_nothing(tmp_path: Path) -> None:
    model = seq2seq("t5", tmp_path / "model")
    bench = seq2seq_bench(tmp_path)
    task, batch = bench.splits.task, bench.splits.search.batches[0]
    trainer = DistillationTrainer.__new__(DistillationTrainer)
    trainer.task, trainer.teacher, trainer.temperature = task, model, 2.0
    taught, ours = trainer.taught(dict(batch)), model(**batch)
    assert trainer.divergence(ours, taught, dict(batch)).abs() < 1e-6
    padding = batch["labels"] == IGNORED
    noisy = taught.logits.clone()
    noisy[padding] += 100 * torch.randn(noisy[padding].shape)
    taught.logits = noisy
    assert trainer.divergence(ours, taught, dict(batch)).abs() < 1e-6
    noisy[~padding] += torch.randn(noisy[~padding].shape)
    assert trainer.divergence(ours, taught, dict(batch)) > 1e-3


def test_generated_texts_are_scored_as_their_packages_score_them(tmp_path: Path) -> None:
    sacrebleu, jiwer = pytest.importorskip("sacrebleu"), pytest.importorskip("jiwer")
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    from nas.text_metrics import TEXT_METRICS

    right = [
        "the film was very good and the cast was fine",
        "the plot is bad",
        "a good film",
        "it was not poor at all",
    ]
    found = ["the film was good and the cast was very fine", "the plot is bad", "the bad plot", "it was poor"]
    names = ("exact_match", "rougeL", "sacrebleu", "wer")
    counts: dict[str, np.ndarray] = {"examples": np.ones(4)}
    for name in names:
        counts.update(TEXT_METRICS[name].count(right, found))
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    rouge = np.mean([scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(right, found, strict=True)])
    expected = (0.25, rouge, sacrebleu.corpus_bleu(found, [right]).score, jiwer.wer(right, found))
    assert [TEXT_METRICS[name].metric(counts) for name in names] == pytest.approx(expected)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_a_model_writes_texts_that_are_scored(model_type: str, tmp_path: Path) -> None:
    model = seq2seq(model_type, tmp_path / "model")
    metric = tmp_path / "metric.py"
    metric.write_text("def length(labels, predictions):\n    return sum(map(len, labels)) / len(predictions)\n")
    bench = seq2seq_bench(tmp_path, objectives={"exact_match": "maximize", "latency_ms": "minimize"})
    found = score(model, bench.splits.search, ["exact_match", "loss"])
    assert found["exact_match"].value == 0.0 and found["loss"].value > 0
    writes = {"labels": bench.splits.task.processor("good")["input_ids"]}
    assert writes["labels"]


# -- speech -------------------------------------------------------------------------------------------------------


def test_recordings_become_features_and_their_texts_labels(tmp_path: Path) -> None:
    from datasets import Dataset

    model = whisper(tmp_path / "model")
    waves = np.random.default_rng(0).normal(size=(12, 8000)).astype("float32")
    Dataset.from_dict({"audio": waves.tolist(), "text": SENTENCES[:12]}).to_parquet(tmp_path / "speech.parquet")
    source = str(tmp_path / "speech.parquet")
    task = {
        "type": "automatic-speech-recognition",
        "train": source,
        "test": source,
        "search_examples": 4,
        "max_length": 12,
    }
    bench = Workbench(Recipe.parse({"model": str(tmp_path / "model"), "task": task, "space": {}}))
    examples = bench.splits.test
    batch = examples.batches[0]
    assert batch["input_features"].shape == (12, 16, 100) and batch["decoder_input_ids"][:, 0].unique().tolist() == [2]
    with torch.inference_mode():
        expected = model(**{k: v for k, v in batch.items() if k != "decoder_input_ids"}).loss.item()
        inputs = bench.dummy_inputs(Workload(batch_size=2, sequence_length=6))
        assert model(**inputs).logits.shape == (2, 6, model.config.vocab_size)
    assert score(model, examples, ["loss"])["loss"].value == pytest.approx(expected, rel=1e-5)


# -- evaluation sets and qualities --------------------------------------------------------------------------------


def test_a_smaller_evaluation_set_begins_a_larger_one_and_is_spread_over_the_lengths(make: Make) -> None:
    bench = make("single label")
    splits = bench.splits
    examples = EvaluationSet.of(splits.task.process(splits.task.train, "toy"), splits.task, 4)
    assert len(examples) == 108 and [len(examples.first(n)) for n in (1, 8, 9, 1000)] == [4, 8, 8, 108]
    small, large = examples.first(16), examples.first(40)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(small.batches, large.batches, strict=False))
    lengths = [batch["input_ids"].shape[1] for batch in small.batches]
    assert min(lengths) == 6 and max(lengths) == 8
    assert sorted(spread(27)) == list(range(27)) and spread(8) == [0, 4, 2, 6, 1, 5, 3, 7]


def test_token_f1_is_scikit_learns_without_the_outside_tag(make: Make) -> None:
    from nas.evaluation import found_of

    metrics = pytest.importorskip("sklearn.metrics")
    bench = make("tags")
    examples, model = bench.splits.test, bench.load_model().eval()
    found = found_of(model, examples, ["f1"])
    true, guess = (np.concatenate(found[name]) for name in ("labels", "predictions"))
    inside = [k for k, name in enumerate(bench.splits.task.names) if name != "O"]
    expected = metrics.f1_score(true, guess, labels=inside, average="micro")
    got = score(model, examples, ["f1", "accuracy"])
    assert got["f1"].value == pytest.approx(expected) and got["accuracy"].value == pytest.approx(
        (true == guess).mean()
    )


def test_numbers_are_scored_as_scipy_and_scikit_learn_score_them(make: Make) -> None:
    from nas.evaluation import found_of

    stats, metrics = pytest.importorskip("scipy.stats"), pytest.importorskip("sklearn.metrics")
    bench = make("regression")
    model, examples = bench.load_model().eval(), bench.splits.test
    found = found_of(model, examples, ["r2"])
    x, y = found["labels"], found["predictions"]
    expected = {
        "pearsonr": stats.pearsonr(x, y)[0],
        "spearmanr": stats.spearmanr(x, y)[0],
        "mean_squared_error": metrics.mean_squared_error(x, y),
        "mean_absolute_error": metrics.mean_absolute_error(x, y),
        "r2": metrics.r2_score(x, y),
        "loss": metrics.mean_squared_error(x, y),
    }
    got = {name: one.value for name, one in score(model, examples, list(expected)).items()}
    assert got == pytest.approx(expected, rel=1e-5)


def test_sets_of_classes_are_scored_as_scikit_learn_scores_them(make: Make) -> None:
    from nas.evaluation import found_of

    metrics = pytest.importorskip("sklearn.metrics")
    bench = make("multi-label")
    model, examples = bench.load_model().eval(), bench.splits.test
    found = found_of(model, examples, ["f1"])
    expected = metrics.f1_score(found["labels"], found["predictions"], average="micro")
    got = score(model, examples, ["f1", "accuracy"])
    assert got["f1"].value == pytest.approx(expected)
    assert got["accuracy"].value == pytest.approx(metrics.accuracy_score(found["labels"], found["predictions"]))


METRIC = "def length(labels, predictions):\n    return float(len(labels)) + (labels == predictions).mean()\n"


def test_a_metric_of_ones_own_is_a_quality_like_others(make: Make, text_folder: Path) -> None:
    (text_folder / "own.py").write_text(METRIC)
    own = {"mine": "own.py:length", "balanced": "sklearn.metrics:balanced_accuracy_score"}
    bench = make("single label", metrics=own)
    data = {**bench.recipe.model_dump(mode="json"), "objectives": {"mine": "minimize", "latency_ms": "minimize"}}
    recipe = Recipe.parse(data)
    assert recipe.quality == "mine" and recipe.qualities == ["mine"]
    model, examples = bench.load_model().eval(), Workbench(recipe).splits.test
    found = score(model, examples, ["mine", "accuracy", "balanced"])
    assert found["mine"].value == pytest.approx(36 + found["accuracy"].value)
    assert found["mine"].standard_error == pytest.approx(found["accuracy"].standard_error)
    assert found["balanced"].value == pytest.approx(0.5, abs=0.4)


def test_a_metric_of_the_evaluate_library_may_be_a_local_folder(make: Make, tmp_path: Path) -> None:
    pytest.importorskip("evaluate")
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "half.py").write_text(
        "import datasets\n"
        "import evaluate\n"
        "class Half(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        number = datasets.Features({k: datasets.Value('int32') for k in ('predictions', 'references')})\n"
        "        return evaluate.MetricInfo(description='', citation='', inputs_description='', features=number)\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'half': sum(p == r for p, r in zip(predictions, references)) / len(references) / 2}\n"
    )
    bench = make("single label", metrics={"half": f"evaluate:{folder}"})
    found = score(bench.load_model().eval(), bench.splits.test.first(1), ["half", "accuracy"])
    assert found["half"].value == pytest.approx(found["accuracy"].value / 2)


@pytest.mark.parametrize("case", ["answers", "pairs", "masks", "tags"])
def test_an_evaluation_set_travels_without_the_data_and_scores_the_same(case: str, make: Make) -> None:
    bench, names = make(case), [CASES[case][3][0], "loss"]
    model, examples = bench.load_model().eval(), bench.splits.test
    travelled = pickle.loads(pickle.dumps(examples))
    assert not hasattr(travelled.task, "train") and not hasattr(travelled.task, "test")
    assert score(model, travelled, names) == score(model, examples, names)


# -- what is trained ----------------------------------------------------------------------------------------------


def test_a_trained_language_model_is_used_as_it_came_unless_epochs_are_given(make: Make, text_folder: Path) -> None:
    from transformers import AutoModelForMaskedLM

    bench = make("masks")
    assert not bench.has_head and bench.trains_parent
    AutoModelForMaskedLM.from_config(bert().config).save_pretrained(text_folder / "model")
    again = make("masks")
    assert again.has_head and again.trains_parent
    recipe = again.recipe.model_copy(update={"parent": again.recipe.parent.model_copy(update={"epochs": None})})
    assert not Workbench(recipe).trains_parent
    bert(num_labels=2).save_pretrained(text_folder / "model")
    assert not make("masks").has_head


@pytest.mark.parametrize("kind", TASK_TYPES)
def test_every_task_type_has_a_default_quality_and_names_only_known_ones(kind: str) -> None:
    from nas.figures import QUALITIES
    from nas.task_types.classification import METRICS, Classification

    found = TASK_TYPES[kind]
    tables = list(METRICS.values()) if issubclass(found, Classification) else [found.metrics]
    assert all(set(table) <= set(QUALITIES) for table in tables)  # type: ignore[call-overload]
    assert any(found.default_quality in table for table in tables)  # type: ignore[operator]
    recipe = Recipe.parse({"model": "m", "task": {"type": kind, "train": "a", "test": "b"}, "space": {}})
    assert list(recipe.objectives) == [found.default_quality, "latency_ms"]


# -- data that cannot be ------------------------------------------------------------------------------------------


# -- what cannot be -----------------------------------------------------------------------------------------------


def changed(case: str, **columns: Callable[[str], Any]) -> Rows:
    """The rows of a case with other columns."""
    return lambda s: {**CASES[case][2](s), **{name: value(s) for name, value in columns.items()}}


def only(case: str, *columns: str) -> Rows:
    return lambda s: {name: CASES[case][2](s)[name] for name in columns}


FIRST = SENTENCES[0]
REFUSED: dict[str, tuple[str, Rows | None, dict[str, Any], tuple[str, ...]]] = {
    "a quality of another task": ("tags", None, {"quality": "matthews_correlation"}, ("token-classification", "f1")),
    "a quality of classes for numbers": ("regression", None, {"quality": "accuracy"}, ("(regression)", "pearsonr")),
    "one class a row for lists": (
        "multi-label",
        None,
        {"problem_type": "single_label_classification"},
        ("`task.problem_type`", "multi_label_classification", "leave it out"),
    ),
    "a regression on words": (
        "regression",
        changed("regression", label=str.upper),
        {"problem_type": "regression"},
        ("must be numbers", "string"),
    ),
    "a number that is missing": (
        "regression",
        changed("regression", label=lambda s: None if s == FIRST else 0.5),
        {},
        ("unlabelled", "regression-train.csv"),
    ),
    "no list of classes": (
        "multi-label",
        changed("multi-label", label=lambda s: None if s == FIRST else ["a"]),
        {},
        ("unlabelled", "None"),
    ),
    "no tags": ("tags", only("tags", "tokens"), {}, ("`ner_tags`", "tokens", "task.label")),
    "one tag a row": ("tags", changed("tags", ner_tags=lambda s: "O"), {}, ("lists of tags", "string")),
    "texts for words": ("tags", changed("tags", tokens=lambda s: s), {}, ("`task.text`", "lists of words")),
    "a word without a tag": (
        "tags",
        changed("tags", ner_tags=lambda s: tags(s)[1:]),
        {},
        ("row 0", "4 words", "3 tags"),
    ),
    "no answers": ("answers", only("answers", "question", "context"), {}, ("`answers`", "task.label")),
    "answers without a place": (
        "answers",
        changed("answers", answers=lambda s: "film"),
        {},
        ("answer_start", "string"),
    ),
    "an answer elsewhere": (
        "answers",
        changed("answers", answers=lambda s: {"text": ["film"], "answer_start": [1]}),
        {},
        ("row 0", "`film` at 1"),
    ),
    "no context": ("answers", only("answers", "question", "answers"), {}, ("`context`", "task.text")),
    "a question that leaves no room": (
        "answers",
        changed("answers", question=lambda s: "good " * 20),
        {},
        ("`task.max_length`", "20 tokens", "set it to 37 or more"),
    ),
    "a text shorter than a block": ("masks", None, {"max_length": 9999}, ("`task.max_length`", "lower it")),
    "a model that fills no masks": ("next words", None, {"type": "fill-mask"}, ("mask token", "text-generation")),
    "nothing to write": ("pairs", only("pairs", "input"), {}, ("`task.label`", "input")),
    "numbers to write": ("pairs", changed("pairs", output=len), {"label": "output"}, ("`task.label`", "int64")),
    "no recordings": ("speech", only("speech", "text"), {}, ("`audio`", "task.audio")),
    "texts for recordings": ("speech", changed("speech", audio=lambda s: s), {}, ("`task.audio`", "string")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_that_cannot_be(case: str, make: Make) -> None:
    name, rows, task, says = REFUSED[case]
    with pytest.raises(InputError) as refused:
        _ = make(name, rows, **task).splits
    message = str(refused.value)
    assert "\n" not in message and all(text in message for text in says), message


def test_zeros_and_ones_of_another_length_are_refused() -> None:
    from datasets import Dataset

    data = Dataset.from_dict({"label": [[1, 0], [0, 1, 1]]})
    with pytest.raises(InputError, match=r"`toy` must be 2 numbers 0 or 1.*\[0, 1, 1\]"):
        without_multi_hot(data, "label", 2, "toy")


def test_a_question_fits_at_the_length_that_the_refusal_names(make: Make) -> None:
    assert make("answers", changed("answers", question=lambda s: "good " * 20), max_length=37).splits.train


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("nowhere.py:f", ("Python file", "nowhere.py")),
        ("own.py:g", ("must define a function `g`",)),
        ("own.py:broken", ("own.py:broken", "fails", "ZeroDivisionError")),
        ("own.py:nothing", ("must give a number", "nan")),
        ("sklearn.metrics:f2_score", ("f2_score", "package.module:function")),
        ("f2_score", ("f2_score", "package.module:function")),
        ("evaluate:no-such-metric", ("evaluate:no-such-metric", "hub")),
    ],
)
def test_metrics_that_cannot_be(source: str, says: tuple[str, ...], make: Make, text_folder: Path) -> None:
    (text_folder / "own.py").write_text(
        "def broken(labels, predictions):\n    return 1 / 0\n"
        "def nothing(labels, predictions):\n    return float('nan')\n"
    )
    bench = make("single label", metrics={"mine": source})
    with pytest.raises(InputError) as refused:
        score(bench.load_model(), bench.splits.test, ["mine"])
    message = str(refused.value)
    assert "\n" not in message and all(text in message for text in says), message


@pytest.mark.parametrize("name", ["latency_ms", "my metric", "a:b"])
def test_names_of_metrics_that_cannot_be(name: str, make: Make) -> None:
    with pytest.raises(InputError, match=r"`task\.metrics`"):
        make("single label", metrics={name: "own.py:f"})


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nas import text_metrics

    seq2seq("t5", tmp_path / "model")
    monkeypatch.setattr(text_metrics, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install rouge-score"):
        _ = seq2seq_bench(tmp_path, objectives={"rougeL": "maximize", "latency_ms": "minimize"}).splits


def test_a_decoder_without_a_first_token_is_refused(tmp_path: Path) -> None:
    seq2seq("t5", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "decoder_start_token_id": None}))
    with pytest.raises(InputError, match="`decoder_start_token_id` in its config"):
        _ = seq2seq_bench(tmp_path).splits


def test_a_decoder_classifies_texts_of_different_lengths(make: Make, text_folder: Path) -> None:
    shutil.rmtree(text_folder / "model")
    causal(text_folder / "model")
    bench = make("single label")
    model = bench.load_model().eval()
    batch = bench.splits.test.batches[0]
    texts = [ids[mask > 0] for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    assert len(set(map(len, texts))) > 1 and model.config.pad_token_id is not None
    alone = [model(input_ids=text[None]).logits[0] for text in texts]
    torch.testing.assert_close(model(**model_inputs(batch)).logits, torch.stack(alone), atol=1e-5, rtol=1e-4)
