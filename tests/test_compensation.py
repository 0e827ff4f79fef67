"""Compensation: what remains of a narrower layer takes over what is left out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toys import TOYS, logits

from nas.pipeline import locked_run, run_stages
from nas.recipe.schema import Recipe
from nas.stages.search import _parent_metrics
from nas.supernets import compensation
from nas.supernets.calibration import calibrate
from nas.supernets.compensation import DAMPING, compensated
from nas.supernets.load import load_supernet
from nas.supernets.low_rank import CalibrationStatistics
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from search_spaces import SubnetConfig


@pytest.mark.parametrize("kept", [slice(5), torch.tensor([0, 2, 6])])
def test_the_shares_are_those_of_a_ridge_regression(kept: slice | torch.Tensor) -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(200, 8) @ torch.randn(8, 8), torch.randn(3, 8)
    moment = inputs.T @ inputs / 200
    damping = (200 * DAMPING * moment.diagonal().mean()).sqrt() * torch.eye(8)[kept][:, kept]
    others = torch.ones(8, dtype=torch.bool)
    others[kept] = False
    targets = torch.cat([inputs[:, others] @ weight[:, others].T, torch.zeros(len(damping), 3)])
    expected = torch.linalg.lstsq(torch.cat([inputs[:, kept], damping]), targets).solution.T
    found = compensated(lambda: moment, 8, kept)
    assert found is not None
    torch.testing.assert_close(found.select(weight, 1), weight[:, kept] + expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "mixtral", "qwen2_moe"])
def test_a_slice_that_compensates_is_closer_to_the_parent(family: str) -> None:
    """Random weights: neurons and heads have little in common, but some."""
    toy = TOYS[family]
    supernet, inputs = Supernet(toy.model()), toy.inputs()
    parent, statistics = logits(supernet.model, inputs), calibrate(supernet, [inputs], ranks=False, compensates=True)
    heads = supernet.parent.num_attention_heads[0] // 2
    for sizes in ({"intermediate_size": 48}, {"num_attention_heads": heads, "num_key_value_heads": 2}):
        subnet = supernet.parent.with_values(**{name: (size,) * 4 for name, size in sizes.items()})
        errors = []
        for supernet.calibration in (None, statistics):
            supernet.activate(subnet)
            errors.append(float((logits(supernet.model, inputs) - parent).norm()))
        assert errors[1] < 0.9 * errors[0], (sizes, errors)
        torch.testing.assert_close(logits(supernet.model, inputs), logits(supernet.extract(subnet), inputs))


def test_narrower_weights_are_kept_up_to_a_limit_and_as_long_as_the_weight_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is computed again is the same, and follows the weight."""
    toy, solved = TOYS["llama"], list[int]()
    supernet, inputs = Supernet(toy.model().eval()), toy.inputs()
    supernet.calibration = calibrate(supernet, [inputs], ranks=False, compensates=True)
    shares = compensation._shares
    monkeypatch.setattr(compensation, "_shares", lambda *parts: solved.append(1) or shares(*parts))
    narrow, other = (supernet.parent.with_values(intermediate_size=(size,) * 4) for size in (48, 32))

    def outputs(subnet: SubnetConfig) -> torch.Tensor:
        supernet.activate(subnet)
        with torch.inference_mode():
            return logits(supernet.model, inputs)

    first = outputs(narrow)
    outputs(other), supernet.extract(narrow)
    assert torch.equal(outputs(narrow), first) and len(solved) == 8
    monkeypatch.setattr(compensation, "KEPT", 0)
    outputs(other)
    assert torch.equal(outputs(narrow), first) and len(solved) > 8
    with torch.no_grad():
        supernet.linear_layers["model.layers.0.mlp.down_proj.weight"]._parameters["weight"].mul_(2)
    assert not torch.equal(outputs(narrow), first)
    torch.testing.assert_close(logits(supernet.extract(narrow), inputs), outputs(narrow))


def test_statistics_without_ranks_hold_what_compensates_only(tmp_path: Path) -> None:
    supernet = Supernet(TOYS["llama"].model())
    calibrate(supernet, [TOYS["llama"].inputs()], ranks=False, compensates=True).save(tmp_path)
    restored = CalibrationStatistics.load(tmp_path)
    assert restored is not None and restored.compensates and not restored.weights and restored.embedding is None
    assert {name.split(".")[-2] for name in restored.moments} == {"o_proj", "down_proj"}


def test_a_supernet_without_a_training_is_the_parent_in_order(
    text_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["parent.epochs=0.1", "supernet.strategy=none", "space.num_hidden_layers=[3, 4]"]
    with locked_run(Recipe.load(text_recipe, overrides), tmp_path / "run") as (context, run):
        run_stages(run, context, last="supernet")
        assert run.recipe.supernet.order == "activation"
        supernet, space = load_supernet(run, context)
        parent = context.load_model(run.parent).eval()
    batch = {name: values for name, values in context.splits.test.batches[0].items() if name != "labels"}
    torch.testing.assert_close(logits(supernet.model, batch), logits(parent, batch))
    assert supernet.calibration is not None and supernet.calibration.compensates
    supernet.activate(space.smallest)
    monkeypatch.setattr(TaskContext, "load_model", None)  # the parent is in the supernet
    found = _parent_metrics(run, context, SimpleNamespace(supernet=supernet), ["loss"])  # type: ignore[arg-type]
    assert found["loss"] == pytest.approx(score(parent, context.splits.search, ["loss"])["loss"].value, rel=1e-5)
    supernet.activate(space.smallest)
    torch.testing.assert_close(logits(supernet.model, batch), logits(supernet.extract(space.smallest), batch))
