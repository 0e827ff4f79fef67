"""Which model types of transformers without a table are laid out as a known one, and keep the laws of slicing?

    python experiments/bench/known_layouts.py [TYPE ...]

For each type, by default all, a table is looked for; then a tiny random model of each first task is proved with every
dimension open that its family has. Prints a row for each type that is laid out alike, and counts; of all types, the
result is kept in `search_spaces/families/checked.json`, from which `nas families` and the page of families are made.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from nas.modeling.known_layouts import adopt, small_model
from nas.stages.layout_proof import prove_what_holds
from search_spaces import Family, InputError
from search_spaces.errors import short_error
from search_spaces.families.checked import FILE

KNOWN, PASSES, FAILS, UNKNOWN = "known", "passes", "fails", "not laid out so"


def main(types: list[str]) -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    results: dict[str, tuple[str, str, Any]] = {}
    for model_type in types or sorted({CONFIG_MAPPING[name].model_type for name in CONFIG_MAPPING}):
        results[model_type] = result, text, _ = verdict(model_type)
        if result in (PASSES, FAILS):
            print(f"{model_type:28} {result:8} {text}", flush=True)
    counts = Counter(result for result, *_ in results.values())
    print(", ".join(f"{count} {result}" for result, count in counts.most_common()))
    if not types:
        FILE.write_text(json.dumps(_kept(results), indent=1) + "\n")


def verdict(model_type: str) -> tuple[str, str, Any]:
    """What became of a type, in what words, and what is kept of one that passes."""
    try:
        family = adopt(model_type)
    except Exception as error:  # a config or model of transformers that does not build
        return UNKNOWN, short_error(error), None
    if family is None or not family.alike:
        return (UNKNOWN if family is None else KNOWN), "", None
    try:
        model: Any = small_model(family, family.tasks[0])
        proof, broken = prove_what_holds(model, family.tasks[0])
    except InputError as error:
        return FAILS, str(error), None
    except Exception as error:
        return FAILS, f"laid out as `{family.alike}`, but {short_error(error)}", None
    without = f" without {', '.join(broken)}" if broken else ""
    return PASSES, f"{family.alike}{without} ({family.tasks[0]}): {proof}", entry(family, tuple(broken))


def entry(family: Family, broken: tuple[str, ...]) -> dict[str, Any]:
    """What is kept of a type that passes."""
    open_dimensions = [name for name in family.dimensions if name not in broken]
    return {"alike": family.alike, "tasks": family.tasks, "dimensions": open_dimensions, "broken": broken}


def _kept(results: dict[str, tuple[str, str, Any]]) -> dict[str, Any]:
    """What the file holds; `Checked` says what of a type."""
    return {
        "passed": {name: kept for name, (result, _, kept) in results.items() if result == PASSES},
        "failed": {name: text for name, (result, text, _) in results.items() if result == FAILS},
        "unknown": [name for name, (result, *_) in results.items() if result == UNKNOWN],
    }


if __name__ == "__main__":
    main(sys.argv[1:])
