"""Writes what the recipe reads: plain sentences to train on, the STS-B test split, a retrieval set of Banking77.

python experiments/minilm-embeddings/prepare.py --stsb STSB --sst2 SST2 --banking77 BANKING77 --imdb IMDB --out data

Each folder holds `train.parquet`, and STS-B and Banking77 also `test.parquet`. No label is kept but for the tests.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import pandas as pd

TEXTS = 20_000
PHRASES, REVIEWS = 6_000, 1_500
"""Rows taken of SST-2 and of IMDB, so that no source outweighs the others."""
QUERIES = 10
"""Queries for each intent of Banking77; its other test texts are the corpus."""


def sentences(review: str) -> list[str]:
    """The sentences of a review that are neither very short nor very long."""
    parts = re.split(r"(?<=[.!?])\s+|<br />", review)
    return [part for part in parts if 20 < len(part) < 160]


def texts(folders: argparse.Namespace) -> list[str]:
    """Different sentences of all four, none of them in the STS-B test split, in random order."""
    train = {name: pd.read_parquet(Path(folder, "train.parquet")) for name, folder in vars(folders).items()}
    found = [*train["stsb"]["sentence1"], *train["stsb"]["sentence2"], *train["banking77"]["text"]]
    found += [*train["sst2"]["sentence"].sample(PHRASES, random_state=0)]
    for review in train["imdb"]["text"].sample(REVIEWS, random_state=0):
        found += sentences(review)
    test = pd.read_parquet(Path(folders.stsb, "test.parquet"))
    held_out = {*test["sentence1"], *test["sentence2"]}
    clean = (re.sub(r"\s+", " ", text).strip() for text in found)
    unique = list(dict.fromkeys(text for text in clean if len(text) > 5 and text not in held_out))
    random.Random(0).shuffle(unique)
    return unique[:TEXTS]


def write_retrieval(banking77: str, out: Path) -> None:
    """Test texts of Banking77 in BEIR's files: those of the query's intent are relevant."""
    rows = pd.read_parquet(Path(banking77, "test.parquet")).sample(frac=1, random_state=0)
    rows["id"] = [f"t{number}" for number in range(len(rows))]
    is_query = rows.groupby("label").cumcount() < QUERIES
    queries, corpus = rows[is_query], rows[~is_query]
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    for name, part in (("queries", queries), ("corpus", corpus)):
        lines = [json.dumps({"_id": row.id, "text": row.text}) for row in part.itertuples()]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    judged = queries.merge(corpus, on="label", suffixes=("", "_of_text"))
    table = judged[["id", "id_of_text"]].assign(score=1)
    table.columns = ["query-id", "corpus-id", "score"]
    table.to_csv(out / "qrels" / "test.tsv", sep="\t", index=False)


def main() -> None:
    """Writes the three."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("stsb", "sst2", "banking77", "imdb"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    out = options.out
    del options.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "texts.txt").write_text("\n".join(texts(options)) + "\n")
    pd.read_parquet(Path(options.stsb, "test.parquet")).to_parquet(out / "stsb-test.parquet")
    write_retrieval(options.banking77, out / "banking77")


if __name__ == "__main__":
    main()
