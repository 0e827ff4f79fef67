"""Sounds: recordings, waves and spectrograms as inputs; speech recognition with CTC; audio classification."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import one_slow
from test_families import assert_counts_are_exact, assert_extracted_equals_active, calibrated, subnets
from toys import WHISPER_ENCODER

from nas.exports.export import export_subnet
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.supernets.importance import order_by_importance
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from nas.tasks.generation_metrics import GENERATION_METRICS, edits
from nas.tasks.sounds import samples_of
from nas.tasks.types.automatic_speech_recognition_ctc import AutomaticSpeechRecognitionCtc
from predictors import Workload
from search_spaces import InputError
from search_spaces.inputs import convolved, frames_of

RATE = 2000
LETTERS = "abc"
QUICK = {"epochs": 12, "learning_rate": 2e-3, "batch_size": 8}


def tones(text: str, seed: int) -> np.ndarray:
    """A tone for each letter, 60 milliseconds each, with noise; a space is silent."""
    rng, time = np.random.default_rng(seed), np.arange(int(0.06 * RATE)) / RATE
    parts = [np.sin(2 * np.pi * 150 * (1 + LETTERS.find(letter)) * time) for letter in text]
    sound = np.concatenate(parts) + rng.normal(0, 0.02, len(text) * len(time))
    return np.asarray(sound, dtype=np.float32)


def texts(count: int) -> list[str]:
    """Words of two to four letters."""
    rng = np.random.default_rng(1)
    return ["".join(rng.choice(list(LETTERS), rng.integers(2, 5))) for _ in range(count)]


def wav(samples: np.ndarray, rate: int = RATE, width: int = 2, channels: int = 1) -> bytes:
    """A WAV file."""
    scaled = samples * {1: 127, 2: 2**15 - 1, 4: 2**31 - 1}[width] + (128 if width == 1 else 0)
    dtype = {1: np.uint8, 2: np.int16, 4: np.int32}[width]
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.repeat(scaled.astype(dtype), channels).tobytes())
    return buffer.getvalue()


def wave_model(folder: Path, *, family: str = "wav2vec2", labels: int = 2) -> None:
    """A tiny model for waves, its feature extractor, and a tokenizer of letters."""
    import transformers

    folder.mkdir(parents=True)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    waves = {"conv_dim": (16, 16), "conv_kernel": (16, 4), "conv_stride": (8, 3), "num_feat_extract_layers": 2}
    more = {"num_conv_pos_embeddings": 5, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0}
    more |= {"feat_extract_norm": "layer", "vocab_size": len(tokens), "pad_token_id": 0, "num_labels": labels}
    config = transformers.AutoConfig.for_model(family, **sizes, **waves, **more)
    config.save_pretrained(folder)


def spectrogram_model(folder: Path) -> None:
    """A tiny AST for half a second, and its feature extractor."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    frames = {"max_length": 32, "num_mel_bins": 16}
    transformers.ASTConfig(**sizes, **frames, patch_size=8, frequency_stride=8, time_stride=8).save_pretrained(folder)
    transformers.ASTFeatureExtractor(sampling_rate=RATE, **frames).save_pretrained(folder)


def whisper_model(folder: Path) -> None:
    """A tiny Whisper for one second, and its feature extractor."""
    import transformers

    sizes = {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_layers": 2,
    }
    frames = {"num_mel_bins": 16, "max_source_positions": 10}
    transformers.WhisperConfig(
        **sizes, **frames, vocab_size=20, pad_token_id=0, bos_token_id=2, eos_token_id=3
    ).save_pretrained(folder)
    lengths = {"chunk_length": 1, "hop_length": RATE // 20, "n_fft": RATE // 10}
    transformers.WhisperFeatureExtractor(16, sampling_rate=RATE, **lengths).save_pretrained(folder)


CLASSIFIERS: dict[str, Callable[[Path], None]] = {
    "wav2vec2": wave_model,
    "audio-spectrogram-transformer": spectrogram_model,
    "whisper": whisper_model,
}


def recipe(folder: Path, task: str, **sections: Any) -> Recipe:
    """A recipe over tones: recordings as WAV files."""
    from datasets import Audio, Dataset, Features, Value

    spoken = texts(60)
    rows = [
        {"audio": {"bytes": wav(tones(text, k)), "path": None}, "text": text, "label": int(text.count("a") > 1)}
        for k, text in enumerate(spoken)
    ]
    kept = {"text": Value("string")} if task.startswith("automatic") else {"label": Value("int64")}
    rows = [{name: row[name] for name in ("audio", *kept)} for row in rows]
    stored = {"bytes": Value("binary"), "path": Value("string")}
    data = Dataset.from_list(rows, features=Features({"audio": stored, **kept}))
    data = data.cast_column("audio", Audio(sampling_rate=RATE))
    data.to_parquet(folder / "train.parquet")
    data.select(range(0, 60, 3)).to_parquet(folder / "test.parquet")
    files = {"train": str(folder / "train.parquet"), "test": str(folder / "test.parquet"), "search_examples": 20}
    space = {"num_hidden_layers": [1, 2], "num_attention_heads": [1, 2, 4], "intermediate_size": [16, 64]}
    return Recipe.parse(
        {
            "model": str(folder / "model"),
            "task": {"type": task, **files},
            "space": {"scope": "uniform", **space},
            "workload": {"sequence_length": 12},
            "parent": QUICK,
            "supernet": {**QUICK, "epochs": 2, "sampled_subnets": 1, "strategy": "sandwich"},
            "profile": {"minutes": 0.1},
            "finish": {"models": 1, "epochs": 1},
            "baselines": [],
            "search": {"evaluations": 6},
            **sections,
        }
    )


# -- recordings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "error"), [(1, 2e-2), (2, 1e-4), (4, 1e-6)])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_files_are_read_without_a_package(width: int, error: float, channels: int, tmp_path: Path) -> None:
    samples = tones("ab", 0) / 2
    (tmp_path / "sound.wav").write_bytes(wav(samples, width=width, channels=channels))
    for recording in ({"bytes": wav(samples, width=width)}, {"bytes": None, "path": str(tmp_path / "sound.wav")}):
        found = samples_of(recording, RATE, "toy")
        assert found.shape == samples.shape and np.abs(found - samples).max() < error


def test_other_rates_are_resampled() -> None:
    time = np.arange(4 * RATE) / (4 * RATE)
    slow = samples_of({"bytes": wav(np.sin(2 * np.pi * 50 * time) / 2, 4 * RATE)}, RATE, "toy")
    expected = np.sin(2 * np.pi * 50 * np.arange(RATE) / RATE) / 2
    assert len(slow) == RATE and np.abs(slow - expected)[50:-50].max() < 1e-2


def test_a_recording_that_cannot_be_decoded_is_named() -> None:
    with pytest.raises(InputError, match=r"the recording `a\.wav` of `toy` cannot be decoded|pip install torchcodec"):
        samples_of({"bytes": b"no sound", "path": "a.wav"}, RATE, "toy")


# -- frames -----------------------------------------------------------------------------------------------------------


def test_a_workload_has_as_many_frames_as_tokens(tmp_path: Path) -> None:
    import transformers

    wave_model(tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model")
    for frames in (1, 12, 50):
        samples, first, last = convolved(config, frames)
        assert last == frames and frames_of(config, samples) == frames > frames_of(config, samples - 1)
        assert first == (samples - 16) // 8 + 1
    inputs = AutomaticSpeechRecognitionCtc.dummy_inputs(
        config, Workload(batch_size=2, sequence_length=12), torch.Generator().manual_seed(0)
    )
    model = transformers.AutoModelForCTC.from_config(config).eval()
    assert model(**inputs).logits.shape == (2, 12, 8)


# -- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("same", "same", 0), ("ab", "ba", 2), ("a", "bcd", 3)],
)
def test_edits_are_the_fewest(one: str, other: str, expected: int) -> None:
    assert edits(list(one), list(other)) == expected == edits(list(other), list(one))


def test_error_rates_count_words_and_characters() -> None:
    references, found = ["the film is great", "a plot"], ["the film was great", "a  plot "]
    stats = {"n_examples": np.ones(2)}
    for name, expected in (("wer", 1 / 6), ("cer", 3 / 23)):
        stats |= GENERATION_METRICS[name].count(references, found)
        assert GENERATION_METRICS[name].metric(stats) == pytest.approx(expected)


# -- tasks ------------------------------------------------------------------------------------------------------------


def test_padded_frames_are_not_scored(tmp_path: Path) -> None:
    wave_model(tmp_path / "model")
    context = TaskContext(recipe(tmp_path, "automatic-speech-recognition-ctc"))
    task, model = context.splits.task, context.load_model().eval()
    assert isinstance(task, AutomaticSpeechRecognitionCtc)
    batch = context.splits.test.batches[0]
    with torch.no_grad():
        outputs = model(**batch)
    ((_, labels),) = task.logits_and_labels(outputs, batch)
    frames = frames_of(model.config, batch["attention_mask"].sum(1))
    assert (labels == 0).sum(1).tolist() == frames.tolist() and len(set(frames.tolist())) > 1
    with torch.no_grad():
        stats = task.example_stats(model, batch, context.splits.test.rows[0], ["loss"])
    assert (stats["loss"] / stats["n_scored"]).mean() == pytest.approx(float(outputs.loss), rel=1e-4)
    assert model.config.layerdrop == 0 and model.config.ctc_loss_reduction == "mean"


def test_a_tokenizer_larger_than_the_head_is_refused(tmp_path: Path) -> None:
    wave_model(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 8', '"vocab_size": 5'))
    with pytest.raises(
        InputError, match=r"`vocab_size` of .* must be at least the 8 tokens of its tokenizer, but is 5"
    ):
        _ = TaskContext(recipe(tmp_path, "automatic-speech-recognition-ctc")).splits


def test_speech_recognition_of_waves_names_its_task(tmp_path: Path) -> None:
    wave_model(tmp_path / "model")
    with pytest.raises(
        InputError, match=r"must be a task that `wav2vec2` supports \(automatic-speech-recognition-ctc"
    ):
        _ = TaskContext(recipe(tmp_path, "automatic-speech-recognition")).layout


def test_whispers_encoder_with_a_head_keeps_every_law(tmp_path: Path) -> None:
    task, toy = "audio-classification", WHISPER_ENCODER
    for attention in toy.attentions:
        supernet = calibrated(toy.model(task, attention), toy)
        assert supernet.layout.depths == (4,)
        for subnet in subnets(supernet):
            assert_extracted_equals_active(supernet, subnet, toy.inputs())
    assert_counts_are_exact(toy, task, tmp_path)
    supernet.activate(supernet.parent)
    order = order_by_importance(supernet, [toy.labelled(task)])
    assert sorted(order.layers) == [0, 1, 2, 3] and order.hidden


@pytest.mark.parametrize("family", CLASSIFIERS)
def test_sounds_are_classified(family: str, tmp_path: Path) -> None:
    CLASSIFIERS[family](tmp_path / "model")
    context = TaskContext(recipe(tmp_path, "audio-classification"))
    model = context.load_model().eval()
    batch = context.splits.test.batches[0]
    assert model(**batch).logits.shape == (20, 2)
    assert ("attention_mask" in batch) == (family == "wav2vec2")
    assert 0 <= score(model, context.splits.test, ["accuracy"])["accuracy"].value <= 1
    assert model(**context.dummy_inputs(context.recipe.workload)).logits.shape == (1, 2)


# -- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", one_slow(["wav2vec2", "hubert", "wavlm"], "wavlm"))
def test_a_search_for_speech_recognition_end_to_end(family: str, tmp_path: Path) -> None:
    from transformers import pipeline

    wave_model(tmp_path / "model", family=family)
    objectives = {"cer": "minimize", "latency_ms": "minimize"}
    parent = {**QUICK, "epochs": 40, "learning_rate": 5e-3}
    widths = {"num_hidden_layers": [1, 2], "intermediate_size": [8, 16, 32, 48, 64]}  # the heads of WavLM stay
    more = {"space": {"scope": "uniform", **widths}} if family == "wavlm" else {}
    made = recipe(tmp_path, "automatic-speech-recognition-ctc", objectives=objectives, parent=parent, **more)
    run = search(made, tmp_path / "run")
    best = min(run.verified_points(), key=lambda point: point.values["cer"])
    assert best.values["cer"] < 0.5
    folder = export_subnet(run, best, tmp_path / "small", ("onnx",))
    recognize: Any = pipeline("automatic-speech-recognition", str(folder), trust_remote_code=True)
    spoken = texts(60)[:9:3]
    found = [recognize({"raw": tones(text, 3 * k), "sampling_rate": RATE})["text"] for k, text in enumerate(spoken)]
    assert sum(edits(list(a), list(b)) for a, b in zip(spoken, found, strict=True)) < sum(map(len, spoken)) / 2


@pytest.mark.full
@pytest.mark.parametrize("family", CLASSIFIERS)
def test_a_search_for_audio_classification_end_to_end(family: str, tmp_path: Path) -> None:
    from transformers import pipeline

    CLASSIFIERS[family](tmp_path / "model")
    run = search(recipe(tmp_path, "audio-classification"), tmp_path / "run")
    best = max(run.verified_points(), key=lambda point: point.values["accuracy"])
    folder = export_subnet(run, best, tmp_path / "small")
    classify: Any = pipeline("audio-classification", str(folder), trust_remote_code=True)
    found = classify({"raw": tones("abca", 0), "sampling_rate": RATE})
    assert {row["label"] for row in found} == {"0", "1"} or len(found) == 2
