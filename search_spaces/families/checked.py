"""Model types without a table of their own that were tried with that of another: what the benchmark
`experiments/bench/known_layouts.py` found of all types that transformers names, kept in `checked.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from search_spaces.families import FAMILIES

FILE = Path(__file__).with_name("checked.json")


@dataclass(frozen=True)
class Checked:
    """A type that keeps every law of slicing with the table of another, on a tiny random model.

    Attributes:
        alike: The type whose table it is.
        tasks: Its tasks.
        dimensions: What may vary.
        broken: Dimensions of the table that break a law, so that a space must leave them out.
    """

    alike: str
    tasks: tuple[str, ...]
    dimensions: tuple[str, ...]
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckedTypes:
    """All types without a table.

    Attributes:
        passed: Type -> what is known of it.
        failed: Type that is laid out as another, but breaks a law or does not run on text or images alone -> why.
        unknown: Types that are laid out as none, or do not build from their default config.
    """

    passed: dict[str, Checked]
    failed: dict[str, str]
    unknown: tuple[str, ...]


@cache
def checked_types() -> CheckedTypes:
    """What the benchmark found, without types that have a table by now."""
    found = json.loads(FILE.read_text())
    passed = {
        name: Checked(one["alike"], *(tuple(one[key]) for key in ("tasks", "dimensions", "broken")))
        for name, one in found["passed"].items()
        if name not in FAMILIES
    }
    failed = {name: why for name, why in found["failed"].items() if name not in FAMILIES}
    return CheckedTypes(passed, failed, tuple(name for name in found["unknown"] if name not in FAMILIES))
