"""Which model types of transformers without a table are laid out as a known one, and keep the laws of slicing?

    python experiments/bench/known_layouts.py [TYPE ...]

For each type, by default all, a table is looked for; then a tiny random model of each first task is proved with every
dimension open that its family has. Prints a row for each type that is laid out alike, and counts.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from nas.modeling.known_layouts import adopt, small_model
from nas.stages.layout_proof import prove_what_holds
from search_spaces import InputError
from search_spaces.errors import short_error


def main(types: list[str]) -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    counts: Counter[str] = Counter()
    for model_type in types or list(CONFIG_MAPPING):
        result, text = verdict(model_type)
        counts[result] += 1
        if result not in ("known", "not laid out so"):
            print(f"{model_type:28} {result:14} {text}", flush=True)
    print(", ".join(f"{count} {result}" for result, count in counts.most_common()))


def verdict(model_type: str) -> tuple[str, str]:
    """What became of a type, and in what words."""
    try:
        family = adopt(model_type)
    except Exception as error:  # a config or model of transformers that does not build
        return "does not build", short_error(error)
    if family is None:
        return "not laid out so", ""
    if not family.alike:
        return "known", ""
    try:
        model: Any = small_model(family, family.tasks[0])
    except Exception as error:
        return "no small model", f"{family.alike}: {short_error(error)}"
    try:
        proof, broken = prove_what_holds(model, family.tasks[0])
        without = f" without {', '.join(broken)}" if broken else ""
        return "passes", f"{family.alike}{without} ({family.tasks[0]}): {proof}"
    except InputError as error:
        return "fails", str(error)
    except Exception as error:
        return "fails", f"{family.alike}: {short_error(error)}"


if __name__ == "__main__":
    main(sys.argv[1:])
