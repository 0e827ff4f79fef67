"""Low rank: optimal factors for real inputs, fewer operations, gradients that reach the weights, useful choices."""

from __future__ import annotations

import copy
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from toys import TOYS, logits
from transformers import AutoModelForSequenceClassification

from nas.modeling.elastic import low_rank_factors
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.studies.study import evaluated_points, open_studies
from nas.supernets.calibration import calibrate
from nas.supernets.load import load_supernet
from nas.supernets.low_rank import STATISTICS_FILE, CalibrationStatistics, output_basis
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from predictors.latency.features import feature_names, features
from predictors.latency.models import LeastSquares
from search_spaces import InputError, SearchSpace, SubnetConfig
from search_spaces.dimension import Facts
from search_spaces.useful_choices import useful_choices


def inputs_and_weight(outputs: int, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (400, inputs) that lie mostly in a few directions, and a weight, both float64."""
    x = torch.randn(400, inputs, dtype=torch.float64) * torch.logspace(0, -2, inputs, dtype=torch.float64)
    return x @ torch.randn(inputs, inputs, dtype=torch.float64), torch.randn(outputs, inputs, dtype=torch.float64)


def best(weight: torch.Tensor, moment: torch.Tensor, rank: int) -> torch.Tensor:
    """The optimum, in another way: truncated singular values of the weight for whitened inputs."""
    values, vectors = torch.linalg.eigh(moment)
    root = vectors * values.clamp(min=1e-14).sqrt()
    u, s, vt = torch.linalg.svd(weight @ root, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank] @ torch.linalg.pinv(root)


@pytest.mark.parametrize("shape", [(20, 32), (32, 20), (24, 24)])
def test_the_truncation_error_is_the_least_possible_and_below_that_of_plain_svd(shape: tuple[int, int]) -> None:
    x, weight = inputs_and_weight(*shape)
    moment = x.T @ x / len(x)
    basis = output_basis(weight, moment, min(shape))
    assert torch.allclose(basis.T @ basis, torch.eye(min(shape), dtype=torch.float64), atol=1e-10)
    tails = torch.linalg.svdvals(x @ weight.T) ** 2
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    for rank in range(1, min(shape)):
        up, down = low_rank_factors(weight, basis[:, :rank])
        error = ((x @ weight.T - x @ down.T @ up.T) ** 2).sum()
        plain = ((x @ (weight - (u[:, :rank] * s[:rank]) @ vt[:rank]).T) ** 2).sum()
        assert error.item() == pytest.approx(tails[rank:].sum().item(), rel=1e-6) and error < plain


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "modernbert"])
def test_a_rank_computes_with_the_best_matrix_of_that_rank(family: str) -> None:
    """The reference is the stock parent with other weights, computed without our basis."""
    toy = TOYS[family]
    parent, batch = toy.model(), toy.inputs()
    supernet = Supernet(copy.deepcopy(parent))
    supernet.calibration = calibrate(supernet, [batch])
    layers = supernet.parent.num_hidden_layers
    subnet = supernet.parent.with_values(attention_rank=(60,) * layers, mlp_rank=(30,) * layers)
    shapes, locate = supernet.layout.shapes, supernet.layout.locate
    blueprint = supernet.layout.blueprint(subnet).layers[0]
    ranks = {name: shapes.low_rank(locate(name), blueprint).rank for name in supernet.linear_layers}
    for name, moment in supernet.calibration.moments.items():
        weight = parent.get_parameter(name)
        matrix = weight.T if supernet.family.conv1d else weight
        optimum = best(matrix.double(), moment.double(), ranks[name] or 0).float()  # type: ignore[operator]
        weight.data = (optimum.T if supernet.family.conv1d else optimum).contiguous()
    supernet.activate(subnet)
    assert len(supernet.calibration.moments) == len(ranks) > 4 * layers - 1 and None not in ranks.values()
    assert torch.allclose(logits(supernet.model, batch), logits(parent, batch), atol=2e-4)


def calibrated_bert() -> tuple[Supernet, dict[str, torch.Tensor]]:
    supernet, batch = Supernet(TOYS["bert"].model()), TOYS["bert"].labelled()
    supernet.calibration = calibrate(supernet, [batch])
    return supernet, batch


def with_rank(subnet: SubnetConfig, percent: int) -> SubnetConfig:
    layers = subnet.num_hidden_layers
    return subnet.with_values(attention_rank=(percent,) * layers, mlp_rank=(percent,) * layers)


def test_an_active_rank_takes_fewer_operations() -> None:
    supernet, _ = calibrated_bert()
    tokens = {"input_ids": torch.ones(8, 64, dtype=torch.long)}
    counts = {}
    for percent in (100, 50, 20):
        supernet.activate(with_rank(supernet.parent, percent))
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            supernet.model(**tokens)
        counts[percent] = flops.get_total_flops()
    assert counts[20] < 0.75 * counts[50] < 0.75 * counts[100]


def test_gradients_reach_the_weight_through_a_fixed_basis() -> None:
    supernet, batch = calibrated_bert()
    supernet.activate(with_rank(supernet.parent, 50))
    supernet.model(**batch).loss.backward()
    name, module = next(iter(supernet.linear_layers.items()))
    gradient, basis = supernet.model.get_parameter(name).grad, module.basis
    assert gradient is not None and isinstance(basis, torch.Tensor) and not basis.requires_grad
    assert gradient.norm() > 0 and torch.allclose(basis @ (basis.T @ gradient), gradient, atol=1e-6)


def test_a_basis_is_cached_until_the_calibration_changes() -> None:
    supernet, batch = calibrated_bert()
    low = with_rank(supernet.parent, 50)
    supernet.activate(low)
    module = next(iter(supernet.linear_layers.values()))
    before = module.basis
    for parameter in supernet.model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    supernet.activate(supernet.parent)
    supernet.activate(low)
    assert torch.equal(module.basis, before)  # type: ignore[arg-type]
    supernet.calibration = calibrate(supernet, [batch])
    supernet.activate(low)
    assert not torch.allclose(module.basis, before, atol=1e-2)  # type: ignore[arg-type]


def test_ranks_are_nested() -> None:
    supernet, _ = calibrated_bert()
    module, bases = next(iter(supernet.linear_layers.values())), {}
    for percent in (30, 80):
        supernet.activate(with_rank(supernet.parent, percent))
        bases[percent] = module.basis
    narrow = bases[30].shape[1]  # type: ignore[union-attr]
    assert torch.equal(bases[80][:, :narrow], bases[30])  # type: ignore[index]


def test_padding_is_ignored_in_calibration() -> None:
    supernet, batch = calibrated_bert()
    name, inputs = "bert.encoder.layer.0.attention.self.query.weight", []
    module = supernet.linear_layers[name]
    handle = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].double()))
    logits(supernet.model, {n: batch[n] for n in ("input_ids", "attention_mask")})
    handle.remove()
    rows = inputs[0][batch["attention_mask"].bool()]
    calibration = calibrate(supernet, [batch])
    assert torch.allclose(calibration.moments[name].double(), rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)


def test_calibration_statistics_are_restored_from_disk(tmp_path: Path) -> None:
    supernet, _ = calibrated_bert()
    assert supernet.calibration is not None and CalibrationStatistics.load(tmp_path) is None
    supernet.calibration.save(tmp_path)
    loaded = CalibrationStatistics.load(tmp_path)
    assert loaded is not None and loaded.moments.keys() == supernet.calibration.moments.keys()
    assert all(torch.equal(loaded.weights[n], w) for n, w in supernet.calibration.weights.items())
    assert list(loaded.moments) == list(supernet.calibration.moments)
    for name, moment in supernet.calibration.moments.items():
        assert torch.equal(loaded.moments[name], moment.float().double())
    stored = sum(moment.numel() * 8 for moment in loaded.moments.values())
    weights = sum(weight.numel() * 4 for weight in loaded.weights.values())
    assert (tmp_path / "activations.safetensors").stat().st_size - weights < 0.22 * stored


def test_full_moment_matrices_of_older_runs_are_still_read(tmp_path: Path) -> None:
    supernet, _ = calibrated_bert()
    assert supernet.calibration is not None
    tensors = {f"moments:{name}": moment for name, moment in supernet.calibration.moments.items()}
    tensors |= {f"weights:{name}": weight.contiguous() for name, weight in supernet.calibration.weights.items()}
    save_file(tensors, tmp_path / STATISTICS_FILE)
    loaded = CalibrationStatistics.load(tmp_path)
    assert loaded is not None and all(
        torch.equal(loaded.moments[n], m) for n, m in supernet.calibration.moments.items()
    )


def test_a_rank_without_calibration_is_refused() -> None:
    supernet = Supernet(TOYS["bert"].model())
    with pytest.raises(InputError, match="calibrated"):
        supernet.activate(with_rank(supernet.parent, 50))


# -- the space --------------------------------------------------------------------------------------------------------


def test_a_subnetwork_written_before_there_were_ranks_is_read_with_the_same_key() -> None:
    old = {"layers": [1, 3], "num_attention_heads": [4, 0], "intermediate_size": [0, 16], "hidden_size": 24}
    subnet = SubnetConfig.from_dict({**old, "num_key_value_heads": [4, 0]})
    assert subnet.key == "d7dd2aa82f" and subnet.attention_rank == (100, 0) and subnet.mlp_rank == (0, 100)
    low = SubnetConfig.from_dict({**subnet.to_dict(), "mlp_rank": [0, 50]})
    assert low.key != subnet.key and SubnetConfig.from_dict(low.to_dict()) == low and "50" in str(low)


def test_ranks_from_break_even_on_are_dropped_with_a_reason() -> None:
    ranks = {"attention_rank": ["full", 0.75, 1.0, 1.5, 0.1], "mlp_rank": ["full", 0.5]}
    choices, reasons = useful_choices(ranks, Facts(64))
    assert choices == {"attention_rank": [100, 75, 10], "mlp_rank": [100, 50]}
    assert len(reasons) == 1 and reasons[0].startswith("attention_rank 1, 1.5 dropped: ")
    with pytest.raises(InputError, match=r"at least 0\.01"):
        useful_choices({"mlp_rank": [0.001]}, Facts(64))


def test_uniform_scaling_keeps_full_ranks() -> None:
    parent = SubnetConfig.uniform((0, 1, 2), num_attention_heads=4, intermediate_size=16, hidden_size=24)
    space = SearchSpace(parent, intermediate_size=[4, 8, 16], attention_rank=[25, 50, 100], mlp_rank=[50, 100])
    assert all({*s.attention_rank, *s.mlp_rank} == {100} for s in space.uniform_scalings())
    assert {*space.smallest.attention_rank} == {25} and {*space.largest.mlp_rank} == {100}


def assert_features_explain(space: SearchSpace, subnets: list[SubnetConfig], law: np.ndarray) -> None:
    """A law of 300 subnetworks is a weighted sum of the features, also for subnetworks it was not fitted on."""
    table, names = features(space, subnets), feature_names(space)
    assert table.shape == (300, len(names))
    columns = [i for i, name in enumerate(names) if ":" in name or name == "num_hidden_layers"]
    model = LeastSquares(columns).fit(table[:200], law[:200])
    assert np.allclose(model.predict(table[200:]), law[200:], rtol=1e-3)


def test_latency_features_depend_on_width_and_rank() -> None:
    """A law that multiplies a width by its rank is a sum of the features, on subnetworks it was not fitted on."""
    parent = SubnetConfig.uniform(tuple(range(4)), num_attention_heads=8, intermediate_size=64, hidden_size=48)
    choices: dict[str, Any] = {"intermediate_size": [0, 16, 32, 64], "mlp_rank": [25, 50, 100]}
    space = SearchSpace(parent, num_hidden_layers=[1, 2, 3, 4], **choices)
    subnets = [space.sample(Random(k)) for k in range(300)]
    law = np.array(
        [1 + sum(0.5 + u * r / 1600 for u, r in zip(s.intermediate_size, s.mlp_rank, strict=True)) for s in subnets]
    )
    assert_features_explain(space, subnets, law)


@pytest.mark.full
def test_a_search_with_ranks_end_to_end(text_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["space.attention_rank=[full, 0.5, 2]", "space.mlp_rank=[full, 0.25]", "space.num_hidden_layers=[4]"]
    run = search(
        Recipe.load(text_recipe, [*overrides, "search.evaluations=20", "supernet.epochs=1"]), tmp_path / "run"
    )
    assert "attention_rank 2 dropped" in capsys.readouterr().out
    assert any(50 in p.subnet.attention_rank for p in evaluated_points(open_studies(run.study, run.recipe)["search"]))
    stored = CalibrationStatistics.load(run.supernet)
    assert stored is not None
    model = AutoModelForSequenceClassification.from_pretrained(run.supernet)
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in stored.weights.items())
    assert isinstance(model.bert.encoder.layer[0].attention.self.query, nn.Linear)
    assert_workers_score_ranks_alike(run)


def assert_workers_score_ranks_alike(run: Run) -> None:
    """A Ray worker scores low ranks as the driver does, from the files that it is sent."""
    from nas.ray.search_worker import WorkerPayload
    from nas.studies.racing import Scorer

    context = TaskContext(run.recipe)
    supernet, space = load_supernet(run, context)
    driver = Scorer(supernet, context.splits.search, ["loss"])
    payload = WorkerPayload.from_folder(run.supernet, driver)
    assert "activations.safetensors" in payload.digests
    worker = payload.load(payload.local_folder())
    assert space.smallest.attention_rank == (50,) * 4
    assert worker(space.smallest, None).scores == driver(space.smallest, None).scores
