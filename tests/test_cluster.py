"""The page on clusters: its manifest matches the schema, its recipe and its commands exist."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas.recipe.schema import Recipe, Search

ROOT = Path(__file__).parent.parent
PAGE, GUIDE = ROOT / "experiments" / "cluster", ROOT / "docs" / "guides" / "ray-cluster.md"
BASE = {"model": "m", "task": {"type": "text-classification", "train": "a", "test": "b"}, "space": {}}


def manifest() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((PAGE / "rayjob.yaml").read_text()))


def errors(document: dict[str, Any]) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads((PAGE / "rayjob.schema.json").read_text()))
    return [error.message for error in validator.iter_errors(document)]


def test_the_manifest_fits_its_schema() -> None:
    claim, job = manifest()
    assert errors(claim) == errors(job) == []
    volumes = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert volumes[0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


BREAKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a misspelt key": lambda spec: spec.update(entrypiont="nas"),
    "a number for a start parameter": lambda spec: head(spec)["rayStartParams"].update({"num-cpus": 0}),
    "no image": lambda spec: head(spec)["template"]["spec"]["containers"][0].pop("image"),
    "an unknown mode": lambda spec: spec["rayClusterSpec"]["authOptions"].update(mode="password"),
    "no largest number of workers": lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("maxReplicas"),
}


def head(spec: dict[str, Any]) -> dict[str, Any]:
    return spec["rayClusterSpec"]["headGroupSpec"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", BREAKS)
def test_the_schema_refuses(name: str) -> None:
    job = copy.deepcopy(manifest()[1])
    BREAKS[name](job["spec"])
    assert errors(job)


def test_the_manifest_runs_the_ray_that_is_pinned() -> None:
    pins = (PAGE.parent.parent / "constraints.txt").read_text()
    assert f"ray=={manifest()[1]['spec']['rayClusterSpec']['rayVersion']}\n" in pins


def test_the_recipe_and_the_commands_of_the_page_are_real() -> None:
    text = GUIDE.read_text()
    sections = [yaml.safe_load(section) for section in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    recipe = Recipe.parse({**BASE, **dict(item for section in sections for item in section.items())})
    assert (recipe.search.gpus_per_worker, recipe.supernet.workers) == (0.25, 4)
    for key in re.findall(r"`search\.(\w+)", text):
        assert key in Search.model_fields
    from nas.cli import search

    assert {"ray", "run"} <= set(search.__annotations__) and "--ray" in text
