"""Data files and folders as people have them are read as they stand, or refused with one line that names the place."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict

from nas.tasks.data import load_source
from search_spaces import InputError

ROWS = [{"text": f"film {k}", "label": k % 2} for k in range(10)]
CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in ROWS)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of text or bytes."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows(source: object) -> list[dict[str, Any]]:
    return load_source(str(source)).to_list()


def refused(source: object, *says: str) -> None:
    with pytest.raises(InputError) as error:
        load_source(str(source))
    message = str(error.value)
    assert "\n" not in message and all(text in message for text in says), message


# -- parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "numbers"),
    [
        ("train", range(10)),
        ("train[:80%]", range(8)),
        ("train[80%:]", range(8, 10)),
        ("[:3]", range(3)),
        ("train[-2:]", range(8, 10)),
        ("train[:1]+train[9:]", (0, 9)),
    ],
)
def test_a_part_of_a_file_is_that_part(part: str, numbers: Any, file: Callable[..., Path]) -> None:
    path = file("data.csv", CSV)
    assert [row["text"] for row in rows(f"{path}:{part}")] == [f"film {k}" for k in numbers]


@pytest.mark.parametrize("part", ["test", "train[:200%]", "train[5", "train[:0]", "train[20:]"])
def test_a_part_that_a_file_has_not_is_refused(part: str, file: Callable[..., Path]) -> None:
    refused(f"{file('data.csv', CSV)}:{part}", "data.csv", "train")


# -- delimited files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["None", "NA", "null", "nan", "N/A"])
def test_words_for_nothing_are_classes_and_texts(word: str, file: Callable[..., Path]) -> None:
    read = rows(file("data.csv", f"text,label\n{word},good\nfilm,{word}\n"))
    assert read == [{"text": word, "label": "good"}, {"text": "film", "label": word}]


@pytest.mark.parametrize("word", ["", "None", "NA", "nan"])
def test_words_for_nothing_are_missing_numbers(word: str, file: Callable[..., Path]) -> None:
    assert [row["label"] for row in rows(file("data.csv", f"text,label\na,1\nb,{word}\n"))] == [1, None]


def test_cells_keep_their_types(file: Callable[..., Path]) -> None:
    text = "a,b,c,d,e,f\n1,1.5,True,007,x,9999999999999999999\n-2,3,False,12,1,1\n"
    first, second = rows(file("data.csv", text))
    assert list(first.values()) == [1, 1.5, True, "007", "x", 1e19]
    assert list(second.values()) == [-2, 3.0, False, "12", "1", 1.0]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (("['a']", "['a', 'b']", "[]"), [["a"], ["a", "b"], []]),
        (('["a"]', '["b"]'), [["a"], ["b"]]),
        (("[1, 0]", "[0, 1]"), [[1, 0], [0, 1]]),
        (("[1]", "[0.5]"), [[1.0], [0.5]]),
        (("[1]", "film"), ["[1]", "film"]),
        (("[1 0]", "[0 1]"), ["[1 0]", "[0 1]"]),
    ],
)
def test_lists_written_as_text_are_lists(cells: tuple[str, ...], values: list[Any], file: Callable[..., Path]) -> None:
    path = file("data.csv", "")
    pd.DataFrame({"label": cells}).to_csv(path, index=False)
    assert [row["label"] for row in rows(path)] == values


@pytest.mark.parametrize("name", ["data.tsv", "data.csv"])
def test_a_stray_quotation_mark_merges_no_rows(name: str, file: Callable[..., Path]) -> None:
    mark = "\t" if name.endswith("tsv") else ","
    texts = ['"film', "plot", 'the "cast"', '"good"', '"very ""good"""', '"the cast']
    path = file(name, f"text{mark}label\n" + "".join(f"{text}{mark}1\n" for text in texts))
    assert [row["text"] for row in rows(path)] == ['"film', "plot", 'the "cast"', "good", 'very "good"', '"the cast']


def test_quoted_cells_may_hold_delimiters_and_breaks(file: Callable[..., Path]) -> None:
    path = file("data.tsv", 'text\tlabel\n"a\tb"\t1\n"c\nd"\t0\n')
    assert [row["text"] for row in rows(path)] == ["a\tb", "c\nd"]
    path = file("data.csv", 'text,label\r\n"a, b",1\r\n"c\r\nd, e",0\r\n')
    assert [row["text"] for row in rows(path)] == ["a, b", "c\r\nd, e"]


def test_quotes_that_can_be_read_in_two_ways_are_refused(file: Callable[..., Path]) -> None:
    refused(file("data.csv", 'text,label\n"film,1\nplot,0\ncast",1\n'), "line 2", "line 4", "data.csv")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text,label\na,1\nb\n", ("line 3", "1 cells", "header 2")),
        ("text,label\na,1,2\nb,1,2\n", ("line 2", "3 cells")),
        ('text,label\n"a,1\nb,c,0\n', ("line 2", "quotation mark")),
        ("text,text\na,1\n", ("two `text`",)),
        ("\na,1\n", ("column names",)),
        ("", ("empty",)),
        ("text,label\n", ("must hold examples",)),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_line(
    text: str, says: tuple[str, ...], file: Callable[..., Path]
) -> None:
    refused(file("data.csv", text), "data.csv", *says)


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_csv_file_may_have_another_delimiter(delimiter: str, file: Callable[..., Path]) -> None:
    assert rows(file("data.csv", CSV.replace(",", delimiter))) == ROWS


def test_a_long_text_is_read_whole(file: Callable[..., Path]) -> None:
    assert len(rows(file("data.csv", f"text,label\n{'a' * 300_000},1\n"))[0]["text"]) == 300_000


PIECES = (
    "film",
    "a b",
    '"',
    "'",
    ",",
    ";",
    "\t",
    "\n",
    "\r\n",
    " ",
    "None",
    "NA",
    "007",
    "1",
    "-2.5e3",
    "é",
    "[1]",
    "#",
    "\\",
)


@pytest.mark.parametrize("seed", range(60))
def test_any_table_that_is_written_is_read_back_or_refused(seed: int, file: Callable[..., Path]) -> None:
    """Texts of nasty pieces, written with any quotes and line breaks: every cell comes back, or one line says why."""
    rng = random.Random(seed)
    name, separator = rng.choice((("data.csv", ","), ("data.tsv", "\t"), ("data.csv", ";")))
    texts = ["".join(rng.choices(PIECES, k=rng.randint(1, 4))) for _ in range(rng.randint(2, 12))]
    given = {"text": ["film", *texts], "label": [f"c{k % 2}" for k in range(len(texts) + 1)]}
    path = file(name, "")
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC))
    pd.DataFrame(given).to_csv(
        path, index=False, sep=separator, quoting=quoting, lineterminator=rng.choice(("\n", "\r\n"))
    )
    try:
        read = rows(path)
    except InputError as error:
        assert "data." in str(error) and "\n" not in str(error)
        assert any(mark in text for text in texts for mark in '"\n') or separator == ";"
    else:
        assert [row["text"] for row in read] == given["text"]
        assert [row["label"] for row in read] == given["label"]


# -- suffixes, compression, encodings -----------------------------------------------------------------------------


def zipped(text: bytes) -> bytes:
    import io

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("inner.csv", text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("Data.CSV", bytes),
        ("data.csv.gz", gzip.compress),
        ("data.CSV.GZ", gzip.compress),
        ("data.csv.bz2", bz2.compress),
        ("data.csv.xz", lzma.compress),
        ("data.csv.zip", zipped),
        ("data.zip", zipped),
    ],
)
def test_suffixes_of_any_case_and_compressed_files(
    name: str, compress: Callable[[bytes], bytes], file: Callable[..., Path]
) -> None:
    assert rows(file(name, compress(CSV.encode()))) == ROWS


def test_a_damaged_or_unknown_file_is_named(file: Callable[..., Path]) -> None:
    refused(file("data.csv.gz", gzip.compress(CSV.encode())[:-20]), "data.csv.gz", "whole")
    refused(file("data.csv.gz", CSV), "data.csv.gz", "whole")
    refused(file("data.zip", CSV), "data.zip", "whole")
    refused(file("data.xlsx", b"PK"), "data.xlsx", ".csv", ".parquet")
    refused(file("data.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull")
    refused(file("cut.parquet", b"PAR1 and no more"), "cut.parquet", "parquet")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["data.csv", "data.jsonl", "data.txt"])
def test_encodings_that_a_file_tells(name: str, encoding: str, file: Callable[..., Path]) -> None:
    texts = {"data.csv": "text\ncafé\n", "data.jsonl": '{"text": "café"}\n', "data.txt": "café"}
    assert rows(file(name, texts[name].encode(encoding))) == [{"text": "café"}]


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl", "data.txt"])
def test_another_encoding_is_refused_with_the_byte(name: str, file: Callable[..., Path]) -> None:
    path = file(name, "text,label\nle café était bon,1\n".encode("latin-1"))
    refused(path, "line 2", "byte 0xe9 at position 6 is not UTF-8", "save the file as UTF-8", name)
    refused(file(name, "text,label\na,1\n".encode("utf-16-le")), "line 1", "zero byte", "UTF-8")


def test_a_file_is_looked_at_again_only_when_it_changed(
    file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nas.tasks.sources import local_file

    path = file("data.csv", CSV)
    first, scanned = load_source(str(path)), []
    features = local_file._checked_features
    monkeypatch.setattr(local_file, "_checked_features", lambda *given: scanned.append(given) or features(*given))
    again = load_source(str(path))
    assert not scanned and again.features == first.features and again.to_list() == first.to_list()
    file("data.csv", CSV + "plot,one\n")
    assert load_source(str(path)).features["label"].dtype == "string" and scanned


@pytest.mark.parametrize("name", ["data.csv", "data.parquet"])
def test_a_cache_that_cannot_be_written_is_named(
    name: str, file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    path = file(name, CSV)
    if name.endswith("parquet"):
        pd.DataFrame(ROWS).to_parquet(path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", file("cache", "a file") / "below")
    refused(path, str(tmp_path / "cache"), "HF_HOME")


# -- JSON ---------------------------------------------------------------------------------------------------------

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Film",
            "paragraphs": [
                {
                    "context": "the film is good",
                    "qas": [
                        {"id": "1", "question": "what", "answers": [{"text": "film", "answer_start": 4}]},
                        {"id": "2", "question": "who", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(map(json.dumps, ROWS)),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps({"version": "1", "data": ROWS}),
        json.dumps({"text": [row["text"] for row in ROWS], "label": [row["label"] for row in ROWS]}),
        pd.DataFrame(ROWS).to_json(),
    ],
)
def test_json_in_every_form(content: str, file: Callable[..., Path]) -> None:
    assert rows(file("data.json", content)) == ROWS


def test_the_json_of_squad_is_read(file: Callable[..., Path]) -> None:
    first, second = rows(file("train-v2.0.json", json.dumps(SQUAD)))
    assert (first["question"], first["context"]) == ("what", "the film is good")
    assert first["answers"] == {"text": ["film"], "answer_start": [4]}
    assert second["answers"] == {"text": [], "answer_start": []}


def test_types_of_json_are_found_in_all_rows(file: Callable[..., Path]) -> None:
    lines = [{"a": None, "tags": []}, *[{"a": 1, "tags": []}] * 1500, {"a": 1.5, "tags": ["x"], "b": "new"}]
    read = rows(file("data.jsonl", "\n".join(map(json.dumps, lines))))
    assert (read[0], read[-1]) == ({"a": None, "tags": [], "b": None}, {"a": 1.5, "tags": ["x"], "b": "new"})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": 1}\n{"a": \n', ("line 2",)),
        ('{"a": 1}\n[1]\n', ("line 2", "list")),
        ('{"a": 1}\n{"a": "x"}\n', ("`a`", "int in row 0", "str in row 1")),
        ("[1, 2]", ("list of objects",)),
        ("{\n", ("line 2",)),
    ],
)
def test_json_that_is_no_table_is_refused(content: str, says: tuple[str, ...], file: Callable[..., Path]) -> None:
    refused(file("data.json", content), "data.json", *says)


# -- folders ------------------------------------------------------------------------------------------------------


def test_folders_of_save_to_disk(tmp_path: Path) -> None:
    data = Dataset.from_list(ROWS)
    DatasetDict({"train": data, "validation": data.select(range(4))}).save_to_disk(tmp_path / "both")
    data.save_to_disk(tmp_path / "one")
    assert rows(tmp_path / "both") == rows(tmp_path / "one") == rows(f"{tmp_path}/one:train") == ROWS
    assert rows(f"{tmp_path}/both:validation[1:3]") == ROWS[1:3]
    refused(f"{tmp_path}/both:test", "both", "train, validation")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_folders_of_cloned_data_sets(suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / ".gitattributes").write_text("*.parquet filter=lfs")
    for split, part in (("train", ROWS), ("test", ROWS[:3])):
        table, file = pd.DataFrame(part), folder / "data" / f"{split}-00000-of-00001.{suffix}"
        {
            "parquet": lambda t, f: t.to_parquet(f),
            "csv": lambda t, f: t.to_csv(f, index=False),
            "jsonl": lambda t, f: t.to_json(f, orient="records", lines=True),
        }[suffix](table, file)
    assert rows(folder) == ROWS and rows(f"{folder}:test") == ROWS[:3]


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "README.md").write_text("nothing")
    refused(tmp_path / "none", "none", "cannot be read")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "cut")
    next((tmp_path / "cut").glob("*.arrow")).unlink()
    refused(tmp_path / "cut", "data-00000-of-00001.arrow")


def test_the_metadata_of_images_is_read_like_any_csv_file(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    for number in range(2):
        Image.fromarray(np.full((2, 3, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,None\n1.png,b\n")
    read = load_source(str(tmp_path))
    assert read["label"][:] == ["None", "b"] and read[1]["image"].size == (3, 2)
    (tmp_path / "metadata.csv").write_text("file,label\n0.png,None\n")
    refused(tmp_path, "file_name", "metadata.csv")


def test_a_cloned_data_set_with_configurations(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files: small.csv\n"
        "- config_name: large\n  data_files: large.csv\n---\n"
    )
    (folder / "small.csv").write_text("text,label\nfilm,None\n")
    (folder / "large.csv").write_text(CSV)
    assert rows(f"{folder}/large:train") == ROWS
    assert rows(f"{folder}/small") == [{"text": "film", "label": "None"}]
    refused(folder, "small", "large")


def test_lines_and_texts_of_a_plain_text_file(file: Callable[..., Path]) -> None:
    path = file("data.txt", "a\r\n\nb\u2028c\n")
    assert rows(path) == [{"text": "a\n\nb\u2028c\n"}]
    assert load_source(str(path), by_line=True).to_list() == [{"text": "a"}, {"text": "b\u2028c"}]
