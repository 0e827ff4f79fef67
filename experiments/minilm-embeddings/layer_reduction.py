"""The parent with fewer layers, trained by sentence-transformers' own recipe for model distillation.

python experiments/minilm-embeddings/layer_reduction.py MODEL data/texts.txt OUT --layers 0,2,5 --steps 250

The recipe is `model_distillation_layer_reduction.py` of its examples: keep some layers, then learn the vectors of the
whole model by their mean squared error, at a learning rate of 1e-4.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MSELoss

BATCH = 32


def main() -> None:
    """Keeps the layers, trains, and saves a SentenceTransformer."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "texts", "out"):
        parser.add_argument(name)
    parser.add_argument("--layers", default="0,2,5")
    parser.add_argument("--steps", type=int, default=250)
    options = parser.parse_args()
    teacher, student = (SentenceTransformer(options.model, device="cpu") for _ in range(2))
    encoder = student[0].auto_model
    kept = [encoder.encoder.layer[int(number)] for number in options.layers.split(",")]
    encoder.encoder.layer = torch.nn.ModuleList(kept)
    encoder.config.num_hidden_layers = len(kept)
    lines = Path(options.texts).read_text().splitlines()
    texts = random.Random(0).sample(lines, min(len(lines), BATCH * options.steps))
    data = Dataset.from_dict({"sentence": texts, "label": teacher.encode(texts, batch_size=64).tolist()})
    arguments = SentenceTransformerTrainingArguments(
        output_dir=f"{options.out}-checkpoints",
        max_steps=options.steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-4,
        warmup_steps=0.1,
        save_strategy="no",
        logging_steps=10,
        report_to=[],
        use_cpu=True,
    )
    SentenceTransformerTrainer(student, arguments, train_dataset=data, loss=MSELoss(student)).train()
    student.save(options.out)


if __name__ == "__main__":
    main()
