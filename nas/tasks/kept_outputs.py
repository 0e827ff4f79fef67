"""Outputs of a fixed teacher on training examples, computed once for all trainings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from nas.runs import processes
from nas.runs.files import replacing

MAX_BYTES = 1 << 30
"""Outputs that are larger are not kept."""
MAX_STATE_BYTES = 2 << 30
"""Hidden states beyond are not kept."""
STATE_DTYPE = torch.bfloat16
"""Of hidden states of a teacher; float16 overflows in some models."""


class KeptOutputs:
    """Outputs of a fixed teacher on the examples of a training set, kept once computed: of one shape for each.

    They are stored with each checkpoint, so that a resumed training learns from the same outputs.

    Args:
        folder: Where they are stored, in a file for each process that trains.
        n_examples: Number of examples of the training set.
    """

    def __init__(self, folder: Path, n_examples: int) -> None:
        self.file = folder / f"{processes.rank()}.safetensors"
        self._is_known = torch.zeros(n_examples, dtype=torch.bool)
        self._outputs: list[torch.Tensor] = []
        self._is_stored = True
        self._load()

    @property
    def n_known(self) -> int:
        """Number of examples whose outputs are kept."""
        return int(self._is_known.sum())

    def get(self, rows: torch.Tensor) -> list[torch.Tensor] | None:
        """Outputs (rows, ...) of examples; None if those of some are not known."""
        return [each[rows] for each in self._outputs] if self._is_known[rows].all() else None

    def put(self, rows: torch.Tensor, outputs: Sequence[torch.Tensor]) -> None:
        """Keeps the outputs (rows, ...) of examples, unless all together would be larger than `MAX_BYTES`.

        Numbers are in float32, ids in their own dtype.
        """
        outputs = [each.detach().to("cpu", torch.float32 if each.is_floating_point() else None) for each in outputs]
        if not self._outputs:
            if sum(each[0].nbytes for each in outputs) * len(self._is_known) > MAX_BYTES:
                return
            self._outputs = [each.new_zeros(len(self._is_known), *each.shape[1:]) for each in outputs]
        for kept, each in zip(self._outputs, outputs, strict=True):
            kept[rows] = each
        self._is_known[rows] = True
        self._is_stored = False

    def save(self) -> None:
        """Stores what is new."""
        from safetensors.torch import save_file

        if self._is_stored:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"is_known": self._is_known, **{f"outputs.{k}": each for k, each in enumerate(self._outputs)}}
        with replacing(self.file) as file:
            save_file(tensors, file)
        self._is_stored = True

    def _load(self) -> None:
        """Reads the file; what cannot be read, or is of another training set, is computed again."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(self.file)
        except (OSError, SafetensorError):
            return
        is_known = tensors.pop("is_known", torch.zeros(0, dtype=torch.bool))
        if len(is_known) == len(self._is_known):
            self._is_known, self._outputs = is_known, [tensors[f"outputs.{k}"] for k in range(len(tensors))]


class KeptStates:
    """Hidden states of a fixed teacher on training examples, in bfloat16 in memory, for all trainings of a stage.

    What does not fit in `MAX_STATE_BYTES` is not kept.
    """

    def __init__(self) -> None:
        self._by_row: dict[int, dict[int, list[torch.Tensor]]] = {}
        self._n_bytes = 0

    @property
    def n_known(self) -> int:
        """Number of examples whose states are kept."""
        return len(self._by_row)

    def get(self, rows: torch.Tensor) -> dict[int, list[torch.Tensor]] | None:
        """States (tokens, channels) of each layer, for each text of each example; None if some are not known."""
        known = [self._by_row[row] for row in rows.tolist() if row in self._by_row]
        if not known or len(known) < len(rows):
            return None
        return {layer: [text for each in known for text in each[layer]] for layer in known[0]}

    def put(self, rows: torch.Tensor, states: Mapping[int, Sequence[torch.Tensor]]) -> None:
        """Keeps the states (tokens, channels) of each layer, for each text of one example after another."""
        new = {
            row: {layer: _texts_of(each, place, len(rows)) for layer, each in states.items()}
            for place, row in enumerate(rows.tolist())
            if row not in self._by_row
        }
        n_bytes = sum(text.nbytes for of_row in new.values() for texts in of_row.values() for text in texts)
        if self._n_bytes + n_bytes <= MAX_STATE_BYTES:
            self._by_row |= new
            self._n_bytes += n_bytes


def _texts_of(states: Sequence[torch.Tensor], place: int, n_examples: int) -> list[torch.Tensor]:
    """The states of one of some examples that have equally many texts."""
    n_texts = len(states) // n_examples
    return [text.to("cpu", STATE_DTYPE, copy=True) for text in states[place * n_texts : (place + 1) * n_texts]]
