"""Language models: blocks, masks and token losses; texts that a decoder generates from texts and speech."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from toy_tasks import SENTENCES, Make, causal, seq2seq, seq2seq_context, tokenizer, whisper

from nas.recipe.schema import Recipe
from nas.stages.check import _check_stride
from nas.stages.needs import meta_model, stage_needs
from nas.supernets.compensation import is_compensated
from nas.supernets.distillation_trainer import DistillationTrainer
from nas.supernets.training import training_arguments
from nas.tasks.batches import IGNORE_INDEX, model_inputs
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import collect_stats, score
from nas.tasks.top_classes import TOP, TopClasses
from predictors import Workload
from search_spaces import InputError


def lm_context(folder: Path, kind: str, text: str, model: str = "lm", **task: Any) -> TaskContext:
    (folder / "lm.txt").write_text(text)
    source = str(folder / "lm.txt")
    section = {"type": kind, "train": source, "test": source, "max_length": 8, "search_examples": 5, **task}
    return TaskContext(Recipe.parse({"model": str(folder / model), "task": section, "space": {}}))


TEXT_OF_LINES = "".join(f"{sentence}\n" for sentence in SENTENCES)


def test_a_plain_text_is_cut_into_blocks_that_follow_each_other(tmp_path: Path) -> None:
    words = tokenizer(tmp_path / "lm")
    causal(tmp_path / "lm")
    task = lm_context(tmp_path, "text-generation", TEXT_OF_LINES).splits.task
    ids = words(TEXT_OF_LINES)["input_ids"]
    assert [len(row) for row in task.train["input_ids"]] == [8] * (len(ids) // 8)
    assert list(chain(*task.train["input_ids"])) == ids[: len(ids) // 8 * 8]
    assert words.convert_tokens_to_ids("\n") in ids


def test_a_causal_model_is_scored_on_the_next_token(tmp_path: Path) -> None:
    model = causal(tmp_path / "lm")
    examples = lm_context(tmp_path, "text-generation", TEXT_OF_LINES).splits.test
    with torch.inference_mode():
        losses, correct = [], []
        for batch in examples.batches:
            logits, ids = model(batch["input_ids"]).logits[:, :-1], batch["input_ids"][:, 1:]
            losses += F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").tolist()
            correct += (logits.argmax(-1) == ids).flatten().tolist()
    scores = score(model, examples, ["loss", "perplexity", "accuracy"])
    assert scores["loss"].value == pytest.approx(np.mean(losses), rel=1e-5)
    assert scores["perplexity"].value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert scores["accuracy"].value == pytest.approx(np.mean(correct))
    assert scores["loss"].standard_error == pytest.approx(np.std(losses) / math.sqrt(len(losses)), rel=0.5)


def test_windows_with_a_stride_score_every_token_once_with_the_most_context(tmp_path: Path) -> None:
    """The reference asks for each token alone, after the tokens of its window before it."""
    words, model = tokenizer(tmp_path / "lm"), causal(tmp_path / "lm")
    splits = lm_context(tmp_path, "text-generation", TEXT_OF_LINES, stride=3).splits
    assert len(splits.test) > 2 * len(splits.task.train)
    ids = torch.tensor(words(TEXT_OF_LINES)["input_ids"])
    end, losses = 8 + (len(ids) - 8) // 3 * 3, []
    with torch.inference_mode():
        for place in range(1, end):
            start = 0 if place < 8 else (place - 8) // 3 * 3 + 3
            logits = model(ids[None, start:place]).logits[0, -1]
            losses.append(float(F.cross_entropy(logits, ids[place])))
    scores = score(model, splits.test, ["perplexity", "bits_per_byte"])
    assert scores["perplexity"].value == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    offsets = words(TEXT_OF_LINES, return_offsets_mapping=True)["offset_mapping"]
    n_bytes = offsets[end - 1][1] - offsets[0][1]
    assert scores["bits_per_byte"].value == pytest.approx(sum(losses) / n_bytes / math.log(2), rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["task.stride=64", "task.max_length=64"], "below the 64 tokens"),
        (
            ["task.stride=4", "space.vocabulary=[20,full]", "objectives={bits_per_byte: minimize,size_mb: minimize}"],
            "vocab",
        ),
    ],
)
def test_a_stride_that_does_not_fit_is_refused(overrides: list[str], rule: str, tmp_path: Path) -> None:
    causal(tmp_path / "lm")
    tokenizer(tmp_path / "lm")
    context = lm_context(tmp_path, "text-generation", TEXT_OF_LINES)
    data = context.recipe.model_dump(mode="json", exclude={"workloads"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=f"`task.stride` must .*{rule}"):
        _check_stride(TaskContext(Recipe.load(tmp_path / "recipe.yaml", overrides)))


def test_vocabulary_logits_are_not_kept_and_bound_the_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nas.tasks.types import base

    model = causal(tmp_path / "lm")
    monkeypatch.setattr(base, "MAX_BATCH_LOGITS", 3 * 8 * model.config.vocab_size)
    examples = lm_context(tmp_path, "text-generation", TEXT_OF_LINES).splits.search
    assert {len(batch["input_ids"]) for batch in examples.batches} == {3, 2}
    stats = collect_stats(model, examples, ["loss"])
    tokens = sum(len(row) for row in stats["labels"])
    assert sum(np.size(v) if v.dtype != object else sum(map(len, v)) for v in stats.values()) <= 2 * tokens + 6 * 5


def test_what_a_search_needs_has_the_logits_of_a_batch_and_narrower_weights(tmp_path: Path) -> None:
    weights = causal(tmp_path / "lm").num_parameters() * 4
    tokenizer(tmp_path / "lm")
    context = lm_context(tmp_path, "text-generation", TEXT_OF_LINES)
    task, model = context.splits.task, meta_model(context)
    logits = task.evaluation_batch_size * 8 * context.config.vocab_size * 4
    full = context.layout.parent.intermediate_size[0]
    space = context.recipe.space.model_copy(update={"intermediate_size": [full // 2, full]})
    memory_gb = {}
    for strategy in ("sandwich", "none"):
        supernet = context.recipe.supernet.model_copy(update={"strategy": strategy})
        context.recipe = context.recipe.model_copy(update={"supernet": supernet, "space": space})
        memory_gb[strategy] = stage_needs(context, model)["search"].memory_gb
    assert weights + logits < 1e9 * memory_gb["sandwich"]
    ffn = [p for name, p in model.named_parameters() if is_compensated(context.layout, name) and full in p.shape]
    assert 1e9 * (memory_gb["none"] - memory_gb["sandwich"]) == pytest.approx(sum(p.nbytes for p in ffn) / 2)


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(tmp_path: Path) -> None:
    causal(tmp_path / "lm")
    tokenizer(tmp_path / "lm")
    assert lm_context(tmp_path, "text-generation", "").processor.pad_token == "</s>"
    causal(tmp_path / "padded")
    tokenizer(tmp_path / "padded", pad_token="[PAD]")
    assert lm_context(tmp_path, "text-generation", "", "padded").processor.pad_token == "[PAD]"


def test_masks_of_evaluation_sets_are_fixed_and_those_of_a_training_are_not(make: Make) -> None:
    first, second = (make("masks").splits for _ in range(2))
    for a, b in zip(first.test.batches, second.test.batches, strict=True):
        assert torch.equal(a["input_ids"], b["input_ids"]) and torch.equal(a["labels"], b["labels"])
    assert (first.test.batches[0]["labels"] != IGNORE_INDEX).float().mean() < 0.4
    rows = [first.train[k] for k in range(len(first.train))]
    assert not torch.equal(first.task.collate(rows)["labels"], first.task.collate(rows)["labels"])


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_decoder_inputs_are_those_that_the_model_makes_of_labels(model_type: str, tmp_path: Path) -> None:
    model = seq2seq(model_type, tmp_path / "model")
    examples = seq2seq_context(tmp_path).splits.test
    batch = examples.batches[0]
    assert (batch["labels"] == IGNORE_INDEX).any()
    without_decoder_inputs = {name: tensor for name, tensor in batch.items() if name != "decoder_input_ids"}
    with torch.inference_mode():
        assert torch.equal(model(**without_decoder_inputs).logits, model(**model_inputs(batch)).logits)
        expected = model(**without_decoder_inputs).loss.item()
    first = examples.take(1)
    assert len(first.batches) == 1
    assert score(model, first, ["loss"])["loss"].value == pytest.approx(expected, rel=1e-5)


def test_a_teacher_gets_decoder_inputs_and_padding_is_ignored(tmp_path: Path) -> None:
    model = seq2seq("t5", tmp_path / "model")
    context = seq2seq_context(tmp_path)
    task, batch = context.splits.task, context.splits.search.batches[0]
    trainer = DistillationTrainer.__new__(DistillationTrainer)
    trainer.task, trainer.teacher, trainer.temperature, trainer.kept, trainer.states = task, model, 2.0, None, None
    teacher, student = trainer.teacher_outputs(dict(batch), torch.zeros(0)), trainer.forward(model, dict(batch))[1]
    assert trainer.distillation_loss(student, teacher).abs() < 1e-6
    padding = batch["labels"] == IGNORE_INDEX
    ((logits, labels),) = teacher[0]
    noisy = logits.clone()
    noisy[padding] += 100 * torch.randn(noisy[padding].shape)
    assert trainer.distillation_loss(student, ([(noisy, labels)], {})).abs() < 1e-6
    noisy[~padding] += torch.randn(noisy[~padding].shape)
    assert trainer.distillation_loss(student, ([(noisy, labels)], {})) > 1e-3


def test_the_likeliest_next_tokens_of_the_teacher_are_kept_for_each_block(tmp_path: Path) -> None:
    model = causal(tmp_path / "lm")
    context = lm_context(tmp_path, "text-generation", TEXT_OF_LINES)
    trainer = DistillationTrainer(
        model=model,
        teacher=context.load_model(),
        task=context.splits.task,
        train_dataset=context.splits.train,
        temperature=2.0,
        args=training_arguments(context.recipe.parent, tmp_path / "work", 0, by_length=True),
    )
    inputs, rows = trainer.pop_row_index(trainer.data_collator(list(trainer.train_dataset.select([4, 0, 3]))))
    ((logits, _),), _ = trainer.forward(trainer.teacher, inputs)[1]
    trainer.teacher_outputs(inputs, rows)
    trainer.teacher = None
    ((top, _),), _ = trainer.teacher_outputs(inputs, rows)
    assert isinstance(top, TopClasses) and top.classes.shape == (3, 7, min(TOP, logits.shape[-1]))
    torch.testing.assert_close(top.log_shares[..., 0], (logits / 2).log_softmax(-1).amax(-1))
    assert torch.equal(top.classes[..., 0], logits.argmax(-1))


def test_generated_texts_are_scored_as_their_packages_score_them(tmp_path: Path) -> None:
    sacrebleu, jiwer = pytest.importorskip("sacrebleu"), pytest.importorskip("jiwer")
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    from nas.tasks.generation_metrics import GENERATION_METRICS

    references = [
        "the film was very good and the cast was fine",
        "the plot is bad",
        "a good film",
        "it was not poor at all",
    ]
    generated = ["the film was good and the cast was very fine", "the plot is bad", "the bad plot", "it was poor"]
    names = ("exact_match", "rougeL", "sacrebleu", "wer")
    counts: dict[str, np.ndarray] = {"n_examples": np.ones(4)}
    for name in names:
        counts.update(GENERATION_METRICS[name].count(references, generated))
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    rouge = np.mean([scorer.score(a, b)["rougeL"].fmeasure for a, b in zip(references, generated, strict=True)])
    expected = (0.25, rouge, sacrebleu.corpus_bleu(generated, [references]).score, jiwer.wer(references, generated))
    assert [GENERATION_METRICS[name].metric(counts) for name in names] == pytest.approx(expected)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_texts_that_a_model_generates_are_scored(model_type: str, tmp_path: Path) -> None:
    model = seq2seq(model_type, tmp_path / "model")
    context = seq2seq_context(tmp_path, objectives={"exact_match": "maximize", "latency_ms": "minimize"})
    task, examples = context.splits.task, context.splits.search
    stats = collect_stats(model, examples, ["exact_match"])
    for batch, start in zip(examples.batches, range(0, len(examples), 20), strict=True):
        ids = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=12, do_sample=False
        )
        texts = task.processor.batch_decode(ids, skip_special_tokens=True)
        assert list(stats["predictions"][start : start + 20]) == texts
        references = batch["labels"].masked_fill(batch["labels"] == IGNORE_INDEX, 0)
        assert task.processor.batch_decode(references, skip_special_tokens=True) == list(
            stats["labels"][start : start + 20]
        )
    exact = np.mean([a == b for a, b in zip(stats["labels"], stats["predictions"], strict=True)])
    assert score(model, examples, ["exact_match"])["exact_match"].value == exact


def test_recordings_become_features_and_transcripts_labels(tmp_path: Path) -> None:
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
    context = TaskContext(Recipe.parse({"model": str(tmp_path / "model"), "task": task, "space": {}}))
    examples = context.splits.test
    batch = examples.batches[0]
    assert batch["input_features"].shape == (12, 16, 100) and batch["decoder_input_ids"][:, 0].unique().tolist() == [2]
    with torch.inference_mode():
        expected = model(**{k: v for k, v in batch.items() if k != "decoder_input_ids"}).loss.item()
        inputs = context.dummy_inputs(Workload(batch_size=2, sequence_length=6))
        assert model(**inputs).logits.shape == (2, 6, model.config.vocab_size)
    assert score(model, examples, ["loss"])["loss"].value == pytest.approx(expected, rel=1e-5)
