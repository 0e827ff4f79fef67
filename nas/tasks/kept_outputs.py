"""Outputs of a fixed teacher on training examples, computed once for all trainings of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from nas.runs import processes
from nas.runs.files import replacing

MAX_BYTES = 1 << 30
"""Outputs that are larger are not kept."""


class KeptOutputs:
    """Outputs of a fixed teacher on the examples of a training set: one vector per example, kept once computed.

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
        """Outputs (rows, channels) of examples; None if those of some are not known."""
        return [each[rows] for each in self._outputs] if self._is_known[rows].all() else None

    def put(self, rows: torch.Tensor, outputs: Sequence[torch.Tensor]) -> None:
        """Keeps the outputs (rows, channels) of examples, unless all together would be larger than `MAX_BYTES`."""
        outputs = [each.detach().float().cpu() for each in outputs]
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
