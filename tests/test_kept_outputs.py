"""The parent's outputs on the training data: computed once, stored in the run, shared by its trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nas.tasks import kept_outputs
from nas.tasks.kept_outputs import KeptOutputs


def test_outputs_are_kept_and_read_again(tmp_path: Path) -> None:
    rows = torch.tensor([4, 0])
    kept, outputs = KeptOutputs(tmp_path, 6), [torch.randn(2, 3), torch.randn(2, 5)]
    assert kept.get(rows) is None
    kept.put(rows, outputs)
    assert kept.n_known == 2 and kept.get(torch.tensor([0, 1])) is None, "one of these was not computed"
    kept.save()
    again = KeptOutputs(tmp_path, 6).get(torch.tensor([0, 4]))
    assert again is not None and all(torch.equal(a, b.flip(0)) for a, b in zip(again, outputs, strict=True))
    assert KeptOutputs(tmp_path, 7).n_known == 0, "those of another training set are no use"


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    (kept := KeptOutputs(tmp_path, 2)).put(torch.arange(2), [torch.ones(2, 1)])
    kept.save()
    kept.file.write_bytes(kept.file.read_bytes()[:-3])
    assert KeptOutputs(tmp_path, 2).n_known == 0


def test_large_outputs_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_outputs, "MAX_BYTES", 4 * 10 * 3 - 1)
    (kept := KeptOutputs(tmp_path, 10)).put(torch.arange(2), [torch.ones(2, 3)])
    kept.save()
    assert kept.n_known == 0 and not any(tmp_path.iterdir())
