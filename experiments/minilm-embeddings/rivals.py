"""The table of this experiment: exports, the parent and what one would do by hand, in one process on one CPU thread.

python experiments/minilm-embeddings/rivals.py data results.json parent=MODEL NAME=FOLDER ... [model2vec=FOLDER]

Every FOLDER is a SentenceTransformer. Quality is by sentence-transformers' own evaluators, of the model in PyTorch;
its ONNX file, `onnx/model.onnx`, was compared with it when it was written (it is written if it is not there). Latency
is the CPU time of one text of 16 tokens in ONNX Runtime on one thread. All models run in turn in each round, so that a
busy machine slows all alike, and a speedup is the median over rounds of the ratio to the parent. `torch=MODEL` is the
parent in PyTorch; `int8=MODEL` its ONNX file in int8 by ONNX Runtime's dynamic quantization, scored as that file.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from transformers.modeling_outputs import BaseModelOutput

from nas.tasks.retrieval import RetrievalSet
from predictors.measurement.onnx_export import quantize_onnx, write_onnx

TOKENS, ROUNDS, CALLS = 16, 40, 5
INPUTS = {
    "input_ids": np.random.default_rng(0).integers(1000, 20000, (1, TOKENS)),
    "attention_mask": np.ones((1, TOKENS), np.int64),
    "token_type_ids": np.zeros((1, TOKENS), np.int64),
}


class Onnx(torch.nn.Module):
    """The encoder of a SentenceTransformer, run by ONNX Runtime in one thread."""

    def __init__(self, file: Path, config: Any) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.names, self.config = [port.name for port in self.session.get_inputs()], config

    def forward(self, **inputs: Any) -> BaseModelOutput:
        """Returns the last hidden states."""
        given = {name: inputs[name].numpy() for name in self.names}
        (hidden,) = self.session.run(["last_hidden_state"], given)
        return BaseModelOutput(last_hidden_state=torch.from_numpy(hidden))


def onnx_file(folder: str) -> Path:
    """The ONNX file of a SentenceTransformer, written if it is not there."""
    file = Path(folder, "onnx", "model.onnx")
    if not file.is_file():
        encoder = SentenceTransformer(folder, device="cpu", trust_remote_code=True)[0].model.eval()
        file.parent.mkdir()
        write_onnx(encoder, {name: torch.from_numpy(array).repeat(2, 1) for name, array in INPUTS.items()}, file)
    return file


def loaded(folder: str) -> SentenceTransformer:
    """A SentenceTransformer, in PyTorch."""
    return SentenceTransformer(folder, device="cpu", trust_remote_code=True)


def int8_parent(folder: str) -> SentenceTransformer:
    """The parent with its ONNX file quantized by ONNX Runtime."""
    model, file = loaded(folder), Path(folder, "onnx", "model_int8.onnx")
    if not file.is_file():
        quantize_onnx(onnx_file(folder), file)
    model[0].model = Onnx(file, model[0].model.config)
    return model


def static(folder: str) -> Any:
    """A Model2Vec model as a SentenceTransformer."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    return SentenceTransformer(modules=[StaticEmbedding.from_model2vec(folder)], device="cpu")


KINDS: dict[str, Callable[[str], Any]] = {"int8": int8_parent, "model2vec": static}


def call_of(kind: str, folder: str, model: Any) -> Callable[[], object]:
    """One call of a model on one short text, from its tokens."""
    if kind == "model2vec":  # a table of vectors: no transformer
        ids, offsets = torch.from_numpy(INPUTS["input_ids"][0]), torch.tensor([0])
        return lambda: model[0].embedding(ids, offsets)
    if kind == "torch":
        batch = {name: torch.from_numpy(array) for name, array in INPUTS.items()}
        return lambda: model[0].model(**batch)
    encoder = model[0].model if kind == "int8" else Onnx(onnx_file(folder), None)
    given = {name: INPUTS[name] for name in encoder.names}
    return lambda: encoder.session.run(None, given)


def times(calls: dict[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    """Name -> CPU milliseconds of a call (median) and the ratio of the parent's to it (median over rounds)."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for number in range(ROUNDS + 1):
            for name, call in calls.items():
                call()
                begin = time.process_time()
                for _ in range(CALLS):
                    call()
                if number:  # the first round warms up
                    seconds[name].append((time.process_time() - begin) / CALLS)
    ratios = {name: np.array(seconds["parent"]) / np.array(of) for name, of in seconds.items()}
    return {
        name: {"ms": 1e3 * statistics.median(of), "speedup": float(np.median(ratios[name]))}
        for name, of in seconds.items()
    }


def quality(model: Any, data: Path) -> dict[str, float]:
    """Spearman on the STS-B test split, and NDCG, reciprocal rank and recall at 10 on Banking77."""
    pairs, found = pd.read_parquet(data / "stsb-test.parquet"), RetrievalSet.read(str(data / "banking77"))
    similarity = EmbeddingSimilarityEvaluator([*pairs["sentence1"]], [*pairs["sentence2"]], [*pairs["score"]])
    named = [{str(k): text for k, text in enumerate(texts)} for texts in (found.queries, found.corpus)]
    relevant = {str(k): {str(text) for text in of} for k, of in enumerate(found.relevant)}
    retrieval = InformationRetrievalEvaluator(
        *named, relevant, mrr_at_k=[10], ndcg_at_k=[10], accuracy_at_k=[10], precision_recall_at_k=[10], map_at_k=[10]
    )
    scores, ranked = similarity(model), retrieval(model)
    values = {"spearman": next(v for name, v in scores.items() if name.endswith("spearman_cosine"))}
    for name in ("ndcg", "mrr", "recall"):
        values[f"{name}10"] = next(v for key, v in ranked.items() if key.endswith(f"cosine_{name}@10"))
    return {name: float(value) for name, value in values.items()}


def size_mb(kind: str, folder: str) -> float:
    """Megabytes of the file that is run."""
    names = {"torch": "model.safetensors", "int8": "onnx/model_int8.onnx", "model2vec": "model.safetensors"}
    return Path(folder, names.get(kind, "onnx/model.onnx")).stat().st_size / 1e6


def table(results: dict[str, dict[str, float]]) -> str:
    """The results as Markdown, the fastest last."""
    lines = ["| model | CPU ms | speedup | MB | Spearman | NDCG@10 | MRR@10 |", "|---|---|---|---|---|---|---|"]
    for name, row in sorted(results.items(), key=lambda item: item[1]["speedup"]):
        lines.append(
            f"| {name} | {row['ms']:.2f} | {row['speedup']:.2f} | {row['mb']:.1f} | {row['spearman']:.4f} | "
            f"{row['ndcg10']:.4f} | {row['mrr10']:.4f} |"
        )
    return "\n".join(lines)


def main(data: str, out: str, *models: str) -> None:
    """Scores each model that the results lack, times all in one run, and prints the table."""
    torch.set_num_threads(1)
    file, calls = Path(out), {}
    results: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}
    for text in models:
        name, _, folder = text.partition("=")
        kind = name.partition(":")[0]
        model = KINDS.get(kind, loaded)(folder)
        calls[name] = call_of(kind, folder, model)
        if name not in results:
            results[name] = {**quality(model, Path(data)), "mb": size_mb(kind, folder)}
            file.write_text(json.dumps(results, indent=2))
            print(name, results[name], flush=True)
    for name, timed in times(calls).items():
        results[name] |= timed
    file.write_text(json.dumps(results, indent=2))
    print(table({name: results[name] for name in calls}))


if __name__ == "__main__":
    main(*sys.argv[1:])
