"""What people type and what disks do, by the thousand: recipes, command lines, damaged runs, results of a device.

    python -m experiments.bench.fuzz FOLDER [--recipes 2000] [--runs 200] [--imports 200] [--seed 0]

Each case runs the command line in this process. It must end within a time limit, with exit code 0, or 2 and one line;
it must write nothing; and where the tables of this file call an input wrong, it must be refused, where they call it
right, accepted. FOLDER keeps a small finished run and the results of a device, so that a second call starts at once.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal
from unittest.mock import patch

import yaml

Expected = Literal["refused", "accepted", "any"]
LIMIT_S = 60
"""Seconds that a case may take on a busy machine."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*SPECIAL, "the", "film", "plot", "cast", "is", "was", "very", "good", "great", "fine", "bad", "awful", "poor")
SECRET = "s3cr3t"

# -- the tables: what is right, what is wrong -----------------------------------------------------------------------

NO_NUMBER = [
    True,
    False,
    math.inf,
    -math.inf,
    math.nan,
    1e23,
    -1,
    "12:30:45",
    "1:30",
    "many",
    [],
    [3],
    {},
    {"a": 1},
    "",
]
"""What no positive number of a recipe may be."""
INTEGERS: dict[str, tuple[list[Any], list[Any]]] = {
    "seed": ([0, 7, 2**32 - 1], [2**32, 2**64, 1.5]),
    "task.max_length": ([8, 16, 64], [0, 1.5, 10**9, 10**30]),
    "task.search_examples": ([20, 36], [0, 10**12, 108]),
    "task.train_examples": ([10, 50], [0, 0.5]),
    "parent.batch_size": ([1, 8], [0, 2.5, 10**15]),
    "supernet.sampled_subnets": ([0, 3], [0.5, 10**9]),
    "supernet.gradient_accumulation_steps": ([1, 4], [0, 1.5]),
    "finish.models": ([0, 2], [0.5, 10**9]),
    "profile.samples": ([10, 40], [9, 10.5, 10**12]),
    "search.evaluations": ([1, 100], [0, 3.7, 10**15]),
    "search.patience": ([1, 20], [0, 1.5]),
    "workload.batch_size": ([1, 4], [0, 1.5, 10**15]),
    "workload.threads": ([1, 2], [0, 1.5, 10**9]),
    "workload.sequence_length": ([8, 16], [0, 2.5, 10**12]),
    "supernet.workers": ([1], [0, 2, 7, 1.5]),
}
"""Key -> right values, and wrong ones besides `NO_NUMBER`; no cluster runs."""
FLOATS: dict[str, tuple[list[Any], list[Any]]] = {
    "parent.epochs": ([0.5, 2], [0, 1e12]),
    "supernet.learning_rate": ([1e-5, "3e-4"], [0, 1e9]),
    "supernet.weight_decay": ([0, 0.1], [1e9]),
    "supernet.temperature": ([1, 2.5], [0, 1e-300, 1e200]),
    "supernet.relations": ([0, 0.5], [1e300]),
    "profile.error": ([0.01, 0.5], [0, 1, 7]),
    "profile.precision": ([0.02, 0.5], [0, 1]),
    "profile.minutes": ([0.5, 10], [0, 1e300]),
    "verify.minutes": ([0.5, 10], [0, 1e300]),
    "search.hours": ([0.1, 5], [0, 1e300]),
    "search.confidence": ([0.5, 0.99, 1], [0.4, 1.01]),
}
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "model": ([], ["", "no/such", "a\0b", "x" * 300, "x" * 5000, 3, True, [], "../..", "/dev/null"]),
    "task.type": (["text-classification"], ["", "translation", "image-classification", True, 3, []]),
    "task.train": ([], ["", "none.csv", "/dev/null", "no.py:f", "train.parquet:none:", 7, [], "\ud800"]),
    "task.test": ([], ["", "none.csv", "x" * 4000, True, {}]),
    "task.text": (["sentence", ["sentence"]], ["", [], [""], "label", "none", 5, True, ["sentence"] * 3]),
    "task.label": (["label"], ["", "none", 3, True]),
    "task.metrics": (
        [{"m": "sklearn.metrics:f1_score"}],
        [{"m": "no:f"}, {"m": ""}, {"latency_ms": "a:b"}, {"m": 3}, 7],
    ),
    "space": (["auto"], ["", "all", 3, True, [], {"heads": [1]}]),
    "space.num_hidden_layers": ([[2, 3, 4]], [[], [0], [5], [True], [math.nan], ["2"] * 0, "4", 4, [1e23], [-1], {}]),
    "space.attention_rank": ([[0.5, "full"]], [[], [0], [-1], [math.nan], [True], [math.inf], "full"]),
    "space.bits": ([], [[], ["int3"], [8], [True], "int8"]),
    "workload.runtime": (["torch"], ["", "tensorrt", 3, True, []]),
    "workload.device": (["cpu"], ["", "tpu", "cuda:", "cuda:99999999999", "cpu:1", 0, True]),
    "workload.dtype": (["float32", "bfloat16"], ["", "int3", 32, True]),
    "workload.phase": (["encode"], ["", "prefill", "decode", True]),
    "objectives": ([], [{"accuracy": "maximize"}, {"latency_ms": "minimize"}, {"accuracy": True}, [], "accuracy", 3]),
    "search.sampler": (["TPESampler", "NSGAIISampler"], ["", "TPE", 3, True, "no/such:Class", ":", "a:"]),
    "search.sampler_options": (
        [{}],
        [{"no": 1}, {"seed": "x", "gamma": 3}, {"": 1}, [], 3, {"a": math.nan}, {"a": math.inf}],
    ),
    "search.storage": (
        ["sqlite:///study.db"],
        [
            "",
            "sqlite://",
            "sqlite",
            "sqlite:///:memory:",
            "sqlite:////no/such/folder/x.db",
            f"postgresql://me:{SECRET}@127.0.0.1:1/x",
            f"mysql://{SECRET}@127.0.0.1:1/x",
            f"postgresql://127.0.0.1:1/x?password={SECRET}",
            "grpc://127.0.0.1:1",
            "grpc://x",
            "http://x",
            3,
            True,
        ],
    ),
    "parent.augment": ([], ["", "none.py:f", "recipe.yaml:f", 3, True]),
    "parent.bf16": ([True, False, "yes"], ["maybe", 3, [], 0.5]),
    "profile.earlier": ([[]], [[""], ["none"], "none", [3], [True], {}]),
    "supernet.order": (["none", "activation"], ["", "random", True]),
    "supernet.report_to": ([[]], [["wandb"], "tensorboard", [True], [3]]),
    "": ([], [3, True]),
    "task": ([], [3, [], True, "x", {}]),
    "no.such": ([], [3]),
    "search.evaluation": ([], [3]),
    "task.type.x": ([], [3]),
}
"""Any other key -> right and wrong values."""
BOUNDS: dict[str, tuple[list[str], list[str]]] = {
    "accuracy": (
        [">= 0.5", "> 0", ">= 1"],
        [">= 2", "> 1", "<= -1", "== 7", "0.5", "", ">=", ">= nan", ">= inf", ">= 1e999"],
    ),
    "latency_ms": (
        ["<= 5", "< 1e3", "<= 1_000"],
        ["<= 0", "< 0", "== 0", "<= -3", "<= 1e-30", "<= 1_", "fast", "=< 3"],
    ),
    "size_mb": (["<= 80"], ["<= 0", "< 0.000001", "<= ٣", "<= 1 2"]),
    "f1": ([">= 0.1"], [">= 1.5"]),
    "loss": (["<= 3"], ["< 0", "<= -1"]),
    "latency": ([], ["<= 5"]),
    "kv_cache_mb": ([], ["<= 5"]),
}
TEXTS: dict[str, str] = {
    "a key twice": "seed: 1\nseed: 2\n",
    "a section twice": "search: {evaluations: 5}\nsearch: {hours: 1}\n",
    "a key of a section twice": "search: {evaluations: 5, evaluations: 6}\n",
    "a true key": "true: 1\n",
    "a number as a key": "3: 1\n",
    "an empty key": "~: 1\n",
    "an alias of itself": "search: &x {sampler_options: *x}\n",
    "a list of itself": "space: &x {num_hidden_layers: &y [*y]}\n",
    "nested lists": f"seed: {'[' * 1000}{']' * 1000}\n",
    "nested mappings": f"seed: {'{a: ' * 200}1{'}' * 200}\n",
    "many aliases": "a: &a [0,0,0,0,0,0,0,0,0,0]\n"
    + "".join(f"{n}: &{n} [{','.join([f'*{o}'] * 10)}]\n" for o, n in zip("abcde", "bcdef", strict=True)),
    "a tag": "seed: !!python/object/apply:os.system [true]\n",
    "a wrong tag": "seed: !!int x\n",
    "a set": "space: !!set {a}\n",
    "digits": f"seed: {'9' * 6000}\n",
    "two documents": "---\nseed: 1\n",
    "a tab": "\tseed: 1\n",
    "a clock": "seed: 12:30:45\n",
    "a date": "seed: 2024-01-01\n",
}
"""What is wrong, behind a recipe."""
RIGHT_TEXTS = (
    "seed: 010\n",
    "seed: 1_0\n",
    "parent: {learning_rate: 5e-5}\n",
    "a: &a 1\n"[:0],
    "# é ü 漢\n",
    "parent: {bf16: no}\n",
)

CONDITIONS = {
    "latency_ms <= 1e9": "accepted",
    "latency_ms <= 1e9, accuracy >= 0": "accepted",
    "": "accepted",
    "latency <= 5": "refused",
    "fast": "refused",
    "latency_ms <= 1_": "refused",
    "latency_ms <= 1e999": "refused",
    ",": "refused",
    "latency_ms <= ٣": "refused",
    "[/red] <= 3": "refused",
    "x" * 3000: "refused",
}
PICKS = {
    "knee": "accepted",
    "fastest": "accepted",
    "best": "accepted",
    "zz": "refused",
    "accuracy > 2": "refused",
    "=": "refused",
}
SORTS = {"accuracy": "accepted", "latency_ms": "accepted", "": "accepted", "acuracy": "refused", "3": "refused"}
FORMATS = {
    "table": "accepted",
    "csv": "accepted",
    "json": "accepted",
    "markdown": "accepted",
    "xml": "refused",
    "": "refused",
}
NOWHERE = ("", "none", "file", "file/x", "x" * 300, "x/" * 3000, "empty", "\udcff", "/dev/null", "/proc/self/mem")
"""Paths that are no run, no recipe and no export."""
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("show", "{nowhere}"),
    ("watch", "{nowhere}", "--once"),
    ("dashboard", "{nowhere}"),
    ("dashboard", "{run}", "--port", "70000"),
    ("compare", "{nowhere}", "{run}"),
    ("compare", "{run}"),
    ("compare", "{run}", "{run}", "--out", "/dev/full"),
    ("compare", "{run}", "{run}", "--out", "empty"),
    ("export", "{nowhere}", "--out", "new"),
    ("export", "{run}", "--out", "{run}", "--pick", "zz"),
    ("export", "{run}", "--out", "empty", "--to", "none"),
    ("export", "{run}", "--out", "empty"),
    ("export", "{run}", "--out", "file/x"),
    ("export", "{run}", "--out", "file"),
    ("convert", "{nowhere}", "--to", "onnx"),
    ("convert", "{run}", "--to", "none"),
    ("verify", "{nowhere}", "--run", "{run}"),
    ("finetune", "{nowhere}", "{recipe}", "--run", "{run}"),
    ("search", "{nowhere}"),
    ("search", "{recipe}", "--run", "empty/.."),
    ("search", "{recipe}", "--run", "mine"),
    ("search", "{recipe}", "--run", "file"),
    ("search", "{recipe}", "--run", "file/x"),
    ("search", "{recipe}", "--run", "x" * 300),
    ("search", "{recipe}", "--run", ""),
    ("search", "{recipe}", "--run", "new", "--ray", "127.0.0.1:1"),
    ("search", "{recipe}", "--run", "new", "--ray", "nowhere:x"),
    ("search", "{recipe}", "seed=8", "--run", "{run}"),
    ("search", "{recipe}", "seed"),
    ("search", "{recipe}", "=3"),
    ("search", "{recipe}", ".=3"),
    ("search", "{recipe}", "a..b=3"),
    ("search", "{recipe}", "search.evaluations=[3"),
    ("search", "{recipe}", "--no-such"),
    ("search", "{nowhere}", "--train", "none.csv", "--test", "none.csv"),
    ("search", "{recipe}", "--train", "none.csv"),
    ("profile", "{nowhere}"),
    ("profile", "{recipe}", "--export", "empty"),
    ("profile", "{recipe}", "--export", "a", "--import", "b"),
    ("profile", "{recipe}", "--run", "{run}", "--import", "{nowhere}"),
    ("sensitivity", "{nowhere}"),
    ("bench", "{nowhere}", "--workload", "{recipe}"),
    ("bench", "model", "--workload", "{nowhere}"),
    ("bench", "model", "--workload", "{recipe}", "--precision", "7"),
    ("bench", "model", "--workload", "{recipe}", "--precision", "nan"),
    ("bench", "model", "--workload", "{recipe}", "--minutes", "-1"),
    ("bench", "model", "--workload", "{recipe}", "--minutes", "nan"),
    ("bench", "model", "--workload", "{recipe}", "--csv", "/dev/full"),
    ("init", "{nowhere}"),
    ("init", "model", "--out", "file"),
    ("init", "model", "--out", "none/x.yaml"),
    ("init", "model", "--task", "none", "--out", "new.yaml"),
    ("init", "model", "--latency-ms", "-1", "--out", "new.yaml"),
    ("init", "model", "--latency-ms", "nan", "--out", "new.yaml"),
    ("init", "model", "--train", "none.csv", "--out", "new.yaml"),
    ("check", "{nowhere}"),
    ("check", "{recipe}", "--run", "mine"),
    ("check", "{recipe}", "--ray", "127.0.0.1:1"),
    ("check", "{recipe}", "workload.phase=decode"),
    ("check", "{recipe}", "search.storage=sqlite:////no/such/x.db"),
    ("verify", "{run}", "--run", "{nowhere}"),
    ("finetune", "{run}", "{recipe}", "--out", "file/x"),
    ("no-such",),
    ("search",),
)
"""Command lines that are all wrong."""

DAMAGES: dict[str, Callable[[bytes, Random], bytes]] = {
    "empty": lambda data, random: b"",
    "half": lambda data, random: data[: len(data) // 2],
    "a list": lambda data, random: b"[]\n",
    "a number": lambda data, random: b"3\n",
    "null": lambda data, random: b"null\n",
    "a text": lambda data, random: b'"x"\n',
    "no UTF-8": lambda data, random: b"\xff\xfe\x00" + data,
    "nested": lambda data, random: b"[" * 5000 + b"]" * 5000,
    "a line of another file": lambda data, random: _with_line(data, b"root:x:0:0:root:/root:/bin/bash\n", random),
    "a line that is a list": lambda data, random: _with_line(data, b"[]\n", random),
    "a line without UTF-8": lambda data, random: _with_line(data, b'{"\xff": 1}\n', random),
    "a flipped byte": lambda data, random: _with_byte(data, random),
    "a value of another type": lambda data, random: _with_value(data, random),
    "a later key": lambda data, random: _with_later_key(data, random),
    "a key less": lambda data, random: _without_key(data, random),
}
DESTROYS = ("empty", "half", "a list", "a number", "null", "a text", "no UTF-8", "nested")
"""Damages after which a JSON file of a run cannot be what it was."""
RUN_FILES = ("recipe.yaml", "environment.json", "front.json", "study.log", "measurements.jsonl", "verified.jsonl")
RUN_FILES += ("predictor/predictor.json", "supernet/importance.json", "finetuned.json", "supernet/config.json")
READS = {
    "show": ("recipe.yaml", "environment.json", "front.json"),
    "compare": ("recipe.yaml", "environment.json", "front.json"),
    "watch": ("recipe.yaml", "front.json"),
    "search": ("recipe.yaml", "environment.json", "front.json"),
}
"""Command -> files of a finished run that it reads for certain."""
EXPORT = "exports/*/subnet.json"
LONG = {
    "export": ("recipe.yaml", "environment.json", "front.json", "supernet/importance.json", "supernet/config.json"),
    "verify": ("recipe.yaml", EXPORT),
    "convert": (EXPORT,),
    "finetune": (EXPORT,),
}
"""The same of commands that take long, so that only damages that they are sure to refuse are tried."""

TIMING_DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a number of 400 digits": lambda t: t.update(latency_ms=10**400),
    "1e308": lambda t: t.update(latency_ms=1e308, latency_ms_p90=1e308),
    "a ratio of 1e308": lambda t: t.update(ratio=1e308, ratio_high=1e308),
    "p10 above p90": lambda t: t.update(latency_ms_p10=2 * t["latency_ms_p90"]),
    "a median outside": lambda t: t.update(latency_ms=3 * t["latency_ms_p90"]),
    "a ratio outside its interval": lambda t: t.update(ratio_low=2 * t["ratio"], ratio_high=3 * t["ratio"]),
    "half a round": lambda t: t.update(rounds=2.5),
    "no round": lambda t: t.update(rounds=0),
    "rounds that are true": lambda t: t.update(rounds=True),
    "NaN": lambda t: t.update(raw_ms=math.nan),
    "infinity": lambda t: t.update(latency_ms_p90=math.inf),
    "zero": lambda t: t.update(latency_ms=0),
    "negative": lambda t: t.update(ratio=-1),
    "a text": lambda t: t.update(latency_ms="5"),
    "a list": lambda t: t.update(latency_ms=[5]),
    "none": lambda t: t.pop("ratio"),
}
ROW_DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another device": lambda row: row.update(device_name="calculator"),
    "a device without a name": lambda row: row.update(device_name=""),
    "a device that colours": lambda row: row.update(device_name="\x1b[31mred"),
    "another workload": lambda row: row["workload"].update(batch_size=64),
    "a later workload": lambda row: row["workload"].update(power="low"),
    "a workload that is a text": lambda row: row.update(workload="torch"),
    "half a pass": lambda row: row.update(number=0.5),
    "a pass too many": lambda row: row.update(number=5),
    "no timing": lambda row: row.update(timing=None),
    "a timing that is a list": lambda row: row.update(timing=[1, 2]),
}
PLAN_DAMAGES: dict[str, Any] = {
    "passes": "one",
    "models": [],
    "precision": "fine",
    "anchor": "nobody",
    "workload": {"runtime": "abacus"},
    "inputs": None,
}


# -- cases ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A command line in a folder.

    Attributes:
        about: What is particular.
        words: The command line.
        expected: What it must do.
        files: Path -> content, written before.
    """

    about: str
    words: Sequence[str]
    expected: Expected
    files: dict[Path, bytes] = field(default_factory=dict)


def recipe_cases(world: World, random: Random, count: int) -> Iterator[Case]:
    """Recipes and command lines; three in four are wrong."""
    makers = (
        _value_case,
        _value_case,
        _two_values_case,
        _bound_case,
        _text_case,
        _corrupt_case,
        _show_case,
        _wrong_case,
    )
    for _ in range(count):
        yield random.choice(makers)(world, random)


def _value_case(world: World, random: Random) -> Case:
    return _with_key(world, random, *_value(random))


def _value(random: Random) -> tuple[str, Any, Expected]:
    """A key, a value, and what must become of it."""
    table = random.choice((INTEGERS, FLOATS, VALUES))
    key = random.choice(list(table))
    right, wrong = table[key]
    if table is not VALUES:
        wrong = [*wrong, *NO_NUMBER]
    is_right = bool(right) and random.random() < 0.3
    value = random.choice(right if is_right else wrong)
    is_default = value is None or (value in ({}, []) and is_right)
    expected: Expected = "accepted" if is_right or is_default else "refused"
    return key, value, expected


def _inline(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n")


def _two_values_case(world: World, random: Random) -> Case:
    """Two values of different keys; one that is wrong makes the recipe wrong."""
    one, two = _value(random), _value(random)
    while two[0].partition(".")[0] == one[0].partition(".")[0]:
        two = _value(random)
    words = [f"{key}={_inline(value)}" for key, value, _ in (one, two) if "\0" not in str(value)]
    is_wrong = any(expected == "refused" and "\0" not in str(value) for _, value, expected in (one, two))
    command = ["search", str(world.recipe), "--dry-run", *words]
    return Case(" and ".join(words)[:80], command, "refused" if is_wrong else "accepted")


def _with_key(world: World, random: Random, key: str, value: Any, expected: Expected) -> Case:
    """A recipe with a value, in the file or on the command line."""
    about = f"{key} = {str(value)[:60]!r}"
    command = ["search", str(world.recipe), "--dry-run"]
    if random.random() < 0.5 and "\0" not in str(value):
        return Case(
            about,
            [*command, f"{key}={_inline(value)}"],
            expected,
        )
    data: Any = yaml.safe_load(world.recipe.read_text())
    *sections, last = key.split(".")
    target = data
    for section in sections:
        below = target.get(section)
        if not isinstance(below, dict):
            target[section] = below = {}
        target = below
    target[last] = value
    file = world.folder / "fuzzed.yaml"
    return Case(about, ["search", str(file), "--dry-run"], expected, {file: yaml.safe_dump(data).encode()})


def _bound_case(world: World, random: Random) -> Case:
    name = random.choice(list(BOUNDS))
    right, wrong = BOUNDS[name]
    is_right = bool(right) and random.random() < 0.3
    bound = random.choice(right if is_right else wrong)
    return _with_key(world, random, f"constraints.{name}", bound, "accepted" if is_right else "refused")


def _text_case(world: World, random: Random) -> Case:
    file = world.folder / "fuzzed.yaml"
    if random.random() < 0.2:
        text, about, expected = random.choice(RIGHT_TEXTS), "a text that is right", "accepted"
        base = {k: v for k, v in yaml.safe_load(world.recipe.read_text()).items() if f"{k}:" not in text}
        data = yaml.safe_dump(base) + text
    else:
        about = random.choice(list(TEXTS))
        expected, data = "refused", world.recipe.read_text() + TEXTS[about]
    return Case(about, ["search", str(file), "--dry-run"], expected, {file: data.encode()})  # type: ignore[arg-type]


def _corrupt_case(world: World, random: Random) -> Case:
    """A recipe with bytes deleted, doubled or replaced: anything but a traceback will do."""
    data = bytearray(world.recipe.read_bytes())
    for _ in range(random.randint(1, 5)):
        at = random.randrange(len(data))
        data[at : at + random.choice((0, 1, 3))] = bytes(
            random.choices(b" :[]{}-,&*!|>'\"%@`~#\n\t\0\xff\xc3aZ09.", k=random.randint(0, 3))
        )
    file = world.folder / "fuzzed.yaml"
    return Case(f"corrupted {bytes(data)[:20]!r}", ["search", str(file), "--dry-run"], "any", {file: bytes(data)})


def _show_case(world: World, random: Random) -> Case:
    options = {"--where": CONDITIONS, "--pick": PICKS, "--sort": SORTS, "--format": FORMATS}
    words, expected = ["show", str(world.run)], "accepted"
    for option in random.sample(list(options), random.randint(1, 2)):
        value = random.choice(list(options[option]))
        words += [option, value]
        expected = "refused" if options[option][value] == "refused" else expected
    return Case(" ".join(words[2:])[:60], words, expected)  # type: ignore[arg-type]


def _wrong_case(world: World, random: Random) -> Case:
    words = random.choice(COMMANDS)
    nowhere = random.choice(NOWHERE)
    places = {"run": world.run, "recipe": world.recipe, "nowhere": nowhere}
    shown = [word.format(**places) for word in words]
    return Case(" ".join(shown)[:80], shown, "refused")


def run_cases(world: World, random: Random, count: int) -> Iterator[Case]:
    """Finished runs of which one file is damaged."""
    run = world.folder / "damaged"
    export = next((world.run / "exports").glob("[!.]*"))
    for _ in range(count):
        name, damage, command = random.choice(RUN_FILES), random.choice(list(DAMAGES)), random.choice(list(READS))
        if random.random() < 0.3:
            command = random.choice(list(LONG))
            name, damage = random.choice(LONG[command]), random.choice([d for d in DESTROYS if d != "half"])
        name = name.replace("*", export.name)
        original = world.run / name
        data = original.read_bytes() if original.exists() else b"{}"
        damaged = str(run / "exports" / export.name)
        words = {
            "show": ["show", str(run), "--format", random.choice(("table", "json"))],
            "compare": ["compare", str(run), str(world.run), "--out", str(world.folder / "none" / "x.html")],
            "watch": ["watch", str(run), "--once"],
            "search": ["search", str(world.recipe), "--run", str(run)],
            "export": ["export", str(run), "--out", "new"],
            "verify": ["verify", damaged, "--run", str(run)],
            "convert": ["convert", damaged, "--to", "onnx"],
            "finetune": ["finetune", damaged, str(world.recipe), "--run", str(run)],
        }[command]
        is_read = command in LONG or name in READS[command]
        is_sure = damage in DESTROYS and is_read and (name, damage) != ("recipe.yaml", "half")
        expected: Expected = "refused" if is_sure or command == "compare" else "any"
        yield Case(f"{command}: {name}, {damage}", words, expected, {run / name: DAMAGES[damage](data, random)})


def import_cases(world: World, random: Random, count: int) -> Iterator[Case]:
    """Results of a device of which one line, or the plan, cannot be."""
    lines = (world.device / "results.jsonl").read_text().splitlines()
    plan = json.loads((world.device / "plan.json").read_text())
    for _ in range(count):
        rows = [json.loads(line) for line in lines]
        row = random.choice(rows)
        kind = random.choice(("timing", "timing", "row", "plan", "twice", "bytes"))
        files = {}
        if kind == "timing":
            about = random.choice(list(TIMING_DAMAGES))
            TIMING_DAMAGES[about](row["timing"])
        elif kind == "row":
            about = random.choice(list(ROW_DAMAGES))
            ROW_DAMAGES[about](row)
        elif kind == "plan":
            about = random.choice(list(PLAN_DAMAGES))
            files["plan.json"] = json.dumps({**plan, about: PLAN_DAMAGES[about]}).encode()
        elif kind == "twice":
            about = "another result of the same model"
            timing = {name: value * 1.5 for name, value in row["timing"].items() if name != "rounds"}
            rows.append({**row, "timing": {**timing, "rounds": row["timing"]["rounds"]}})
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if kind == "bytes":
            about = random.choice([name for name in DAMAGES if name.startswith("a line") or name in DESTROYS[2:]])
            data = DAMAGES[about](data, random)
        files["results.jsonl"] = data
        words = [
            "profile",
            str(world.device_recipe),
            "--run",
            str(world.device_run),
            "--import",
            str(world.folder / "imported"),
        ]
        yield Case(f"{kind}: {about}", words, "refused", {world.folder / "imported" / n: d for n, d in files.items()})


def _with_line(data: bytes, line: bytes, random: Random) -> bytes:
    lines = data.splitlines(keepends=True)
    lines.insert(random.randrange(len(lines)) if lines else 0, line)
    return b"".join(lines)


def _with_byte(data: bytes, random: Random) -> bytes:
    if not data:
        return b"\xff"
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]


def _changed_json(data: bytes, random: Random, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """JSON, or one of its lines, with a change to one of its mappings."""
    lines = data.splitlines()
    try:
        content = json.loads(data)
        return json.dumps(_changed(content, random, change)).encode()
    except ValueError:
        pass
    try:
        at = random.randrange(len(lines))
        lines[at] = json.dumps(_changed(json.loads(lines[at]), random, change)).encode()
        return b"\n".join(lines) + b"\n"
    except ValueError:
        return data


def _changed(content: Any, random: Random, change: Callable[[dict[str, Any]], Any]) -> Any:
    mappings: list[dict[str, Any]] = []

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            mappings.append(value) if value else None
            for each in value.values():
                collect(each)
        elif isinstance(value, list):
            for each in value:
                collect(each)

    collect(content)
    if mappings:
        change(random.choice(mappings))
    return content


def _with_value(data: bytes, random: Random) -> bytes:
    value = random.choice((None, "x", [], {}, -1, 10**400, [[1]], {"a": "b"}))
    return _changed_json(data, random, lambda mapping: mapping.update({random.choice(list(mapping)): value}))


def _with_later_key(data: bytes, random: Random) -> bytes:
    return _changed_json(data, random, lambda mapping: mapping.update(of_a_later_version={"x": 1}))


def _without_key(data: bytes, random: Random) -> bytes:
    return _changed_json(data, random, lambda mapping: mapping.pop(random.choice(list(mapping))))


# -- a small world --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A folder with a tiny model, data, a recipe, a finished run, and a run that a device has measured."""

    folder: Path

    @property
    def recipe(self) -> Path:
        """A recipe that runs in seconds."""
        return self.folder / "recipe.yaml"

    @property
    def run(self) -> Path:
        """Its finished run."""
        return self.folder / "run"

    @property
    def device_recipe(self) -> Path:
        """The recipe of the run that a device measures."""
        return self.folder / "device.yaml"

    @property
    def device_run(self) -> Path:
        """A run without latencies."""
        return self.folder / "device-run"

    @property
    def device(self) -> Path:
        """Its models with their results."""
        return self.folder / "device"

    def make(self) -> None:
        """Makes what is missing."""
        from nas.commands.remote import export_plan
        from nas.pipeline import search
        from nas.recipe.schema import Recipe
        from predictors.measurement.plan import measure_plan

        if not self.recipe.exists():
            self._write_inputs()
        search(Recipe.load(self.recipe), self.run)
        if not (self.device / "results.jsonl").exists():
            shutil.rmtree(self.device, ignore_errors=True)
            shutil.rmtree(self.device_run, ignore_errors=True)
            export_plan(Recipe.load(self.device_recipe), self.device_run, self.device)
            measure_plan(self.device)

    def _write_inputs(self) -> None:
        import pandas as pd
        from transformers import BertConfig, BertTokenizerFast

        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "vocab.txt").write_text("\n".join(WORDS))
        BertTokenizerFast(str(self.folder / "vocab.txt")).save_pretrained(self.folder / "model")
        sizes = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
        BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes).save_pretrained(self.folder / "model")
        rows = [
            {"sentence": f"the {noun} {verb} {'very ' * k}{word}", "label": int(word in ("good", "great", "fine"))}
            for noun in ("film", "plot", "cast")
            for verb in ("is", "was")
            for k in range(3)
            for word in ("good", "great", "fine", "bad", "awful", "poor")
        ]
        pd.DataFrame([row for k, row in enumerate(rows) if k % 4]).to_csv(self.folder / "train.csv", index=False)
        pd.DataFrame(rows[::4]).to_csv(self.folder / "test.csv", index=False)
        self.write_places()
        training = {"epochs": 1, "batch_size": 16, "learning_rate": 2e-3}
        recipe: dict[str, Any] = {
            "model": "model",
            "task": {"type": "text-classification", "train": "train.csv", "test": "test.csv"},
            "space": {
                "num_hidden_layers": [1, 2, 3, 4],
                "num_attention_heads": [1, 2, 4],
                "intermediate_size": [24, 96],
            },
            "workload": {"sequence_length": 16},
            "parent": training,
            "supernet": {**training, "sampled_subnets": 1},
            "profile": {"samples": 10, "precision": 0.5},
            "finish": {"models": 0},
            "search": {"evaluations": 8},
        }
        recipe["task"] |= {"max_length": 16, "search_examples": 24}
        self.recipe.write_text(yaml.safe_dump(recipe))
        self.device_recipe.write_text(yaml.safe_dump(recipe))

    def write_places(self) -> None:
        """A file and folders that are no run."""
        (self.folder / "file").write_text("mine")
        (self.folder / "empty").mkdir()
        (self.folder / "mine" / "exports").mkdir(parents=True)
        (self.folder / "mine" / "report.html").write_text("mine")

    def prepare(self, kind: str) -> None:
        """Fresh copies that the cases of a kind damage."""
        for name in ("damaged", "imported"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        if kind == "runs":
            shutil.copytree(self.run, self.folder / "damaged")
        if kind == "imports":
            (self.folder / "imported").mkdir()
            for name in ("plan.json", "results.jsonl"):
                shutil.copy(self.device / name, self.folder / "imported")


# -- running and judging --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code, or None if it took too long, and what it printed."""

    code: int | None
    out: str
    err: str


class TooLong(BaseException):
    """A command took longer than `LIMIT_S`."""


def call(words: Sequence[str]) -> Result:
    """Runs the command line in this process."""
    from nas.cli import main

    def stop(number: int, frame: Any) -> None:
        raise TooLong

    out, err = io.StringIO(), io.StringIO()
    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_S)
    code: int | None = 0
    try:
        with redirect_stdout(out), redirect_stderr(err), patch.object(sys, "argv", ["nas", *words]):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    except TooLong:
        code = None
    except BaseException as error:
        err.write(f"Traceback of {type(error).__name__}: {error}")
        code = 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return Result(code, out.getvalue(), err.getvalue())


def problem_of(case: Case, result: Result, changed: Sequence[str]) -> str:
    """What is wrong with how a case ended; empty if nothing is."""
    if result.code is None:
        return f"took over {LIMIT_S} s"
    if "Traceback" in result.err or result.code not in (0, 2):
        return f"traceback: {result.err.strip().splitlines()[-2:]}"
    if SECRET in result.out + result.err:
        return "a secret is printed"
    if changed:
        return f"wrote {', '.join(changed[:3])}"
    if result.code == 2 and (
        result.err.count("\n") != 1 or not result.err.startswith("nas: ") or len(result.err) > 1500
    ):
        return f"not one line: {result.err[:200]!r}"
    if case.expected == "refused" and result.code == 0:
        return "accepted though wrong"
    if case.expected == "accepted" and result.code == 2:
        return f"refused though right: {result.err.strip()[:200]}"
    return ""


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder: size and time of the last change; a lock is no result."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(os.path.join(place, name))
            if name != ".lock":
                found[os.path.join(place, name)] = (status.st_size, status.st_mtime_ns)
    return found


@contextmanager
def stand_ins() -> Iterator[None]:
    """The time of a step is made up: it is timed on real layers otherwise."""
    from nas.commands.step_time import StepTime

    with patch.object(StepTime, "measure", classmethod(lambda cls, context: StepTime(1e-3, 1e-3, 1e-3, 1e-3))):
        yield


CASES = {"recipes": recipe_cases, "runs": run_cases, "imports": import_cases}


def fuzz(world: World, counts: dict[str, int], seed: int = 0) -> tuple[Counter[str], list[tuple[Case, str]]]:
    """Runs cases.

    Args:
        world: Made.
        counts: Kind of cases -> how many.
        seed: Of the cases.

    Returns:
        How many cases of each kind were accepted and refused; and the cases that ended as they must not, and why.
    """
    ended: Counter[str] = Counter()
    problems = []
    before = Path.cwd()
    os.chdir(world.folder)
    try:
        with stand_ins():
            for kind, count in counts.items():
                for case in CASES[kind](world, Random(f"{seed}/{kind}"), count):
                    result, changed = run_case(world, kind, case)
                    ended[f"{kind} {'accepted' if result.code == 0 else 'refused'}"] += 1
                    if problem := problem_of(case, result, changed):
                        problems.append((case, problem))
    finally:
        os.chdir(before)
    return ended, problems


def run_case(world: World, kind: str, case: Case) -> tuple[Result, list[str]]:
    """Writes the files of a case, runs it, and says which files it changed."""
    if kind != "recipes":
        world.prepare(kind)
    for path, data in case.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    before = state(world.folder)
    result = call(case.words)
    after = state(world.folder)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    resumes = case.words[0] == "search" and kind == "runs"  # which may do what a damaged file no longer says is done
    return result, [] if resumes else changed


def main() -> None:
    """Prints how cases ended, and exits with code 1 if one ended as it must not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for kind, count in (("recipes", 2000), ("runs", 200), ("imports", 200)):
        parser.add_argument(f"--{kind}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    world = World(options.folder.resolve())
    world.make()
    start = time.monotonic()
    counts = {kind: getattr(options, kind) for kind in CASES}
    ended, problems = fuzz(world, counts, options.seed)
    for case, problem in problems:
        print(f"{problem}\n    {case.about}: nas {' '.join(case.words)[:200]!r}")
    print(f"{sum(ended.values())} cases in {time.monotonic() - start:.0f} s: {dict(sorted(ended.items()))}")
    print(f"{len(problems)} ended as they must not")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
