"""What people type and what disks do, by the thousand: recipes, command lines, damaged runs, results of a device.

    python -m experiments.bench.fuzz FOLDER [--recipes 2000] [--runs 200] [--imports 200] [--seed 0]

Each case runs the command line in this process. It must end within a time limit, with exit code 0, or 2 and one line;
it must write nothing; and where `fuzz_tables` calls an input wrong, it must be refused, where it calls it
right, accepted. FOLDER keeps a small finished run and the results of a device, so that a second call starts at once.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
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

from experiments.bench.fuzz_tables import (
    BOUNDS,
    COMMANDS,
    CONDITIONS,
    FLOATS,
    FORMATS,
    INTEGERS,
    NO_NUMBER,
    NOWHERE,
    PICKS,
    RIGHT_TEXTS,
    SECRET,
    SORTS,
    TEXTS,
    VALUES,
)
from experiments.bench.fuzz_world import World

Expected = Literal["refused", "accepted", "any"]
LIMIT_S = 60
"""Seconds that a case may take on a busy machine."""

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
