"""The worked notebook runs from its first cell to its last, on a small run of its own recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nas.pipeline import search
from nas.recipe.schema import Recipe

FOLDER = Path(__file__).parent.parent / "experiments" / "quickstart"
QUICK = ["parent.epochs=1", "supernet.epochs=1", "profile={samples: 12, precision: 0.5}", "search.evaluations=12"]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel (extra dev)")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel (extra dev)")
    run = search(Recipe.load(FOLDER / "recipe.yaml", QUICK), tmp_path / "run")
    monkeypatch.setenv("RUN", str(run.folder))
    notebook = nbformat.read(FOLDER / "front.ipynb", 4)
    assert all(outputs_of(cell) for cell in notebook.cells), "it is kept with its outputs"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()
    front = run.front()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [output["data"].get("text/html", "") for cell in code for output in outputs_of(cell)]
    assert all(point.key in shown[0] for point in front) and f"<code>{front.knee().key}</code>" in shown[2]
    assert (run.folder / "small" / "model.safetensors").exists()


def outputs_of(cell: Any) -> list[Any]:
    """What a cell displays; a text stands for itself."""
    if cell.cell_type == "markdown":
        return [{"data": {}}]
    return [output for output in cell.outputs if "data" in output]
