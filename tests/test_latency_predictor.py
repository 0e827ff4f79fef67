"""The latency predictor of subnetworks: recovers a known law, chooses its model, and is the same after reloading."""

from __future__ import annotations

import json
from random import Random

import numpy as np
import pytest

from predictors import MODELS, SubnetPredictor, Workload
from predictors.latency.errors import errors
from predictors.latency.features import feature_names, features
from search_spaces import InputError, SearchSpace, SubnetConfig

PARENT = SubnetConfig.uniform(tuple(range(6)), num_attention_heads=12, intermediate_size=1536, hidden_size=384)
SPACE = SearchSpace(
    PARENT,
    num_hidden_layers=[2, 3, 4, 5, 6],
    num_attention_heads=[2, 4, 8, 12],
    intermediate_size=[192, 384, 768, 1152, 1536],
)


def law(subnet: SubnetConfig) -> float:
    """Milliseconds: a floor, a cost per layer, heads in pairs, and a kink in the feed-forward width."""
    ffn = sum(0.002 * u + 0.004 * max(u - 768, 0) for u in subnet.intermediate_size)
    return 2.0 + 0.8 * subnet.num_hidden_layers + 0.15 * sum(subnet.num_attention_heads) + ffn


def macs(subnet: SubnetConfig) -> float:
    return float(
        sum(
            384 * (4 * 32 * h + 2 * u)
            for h, u in zip(subnet.num_attention_heads, subnet.intermediate_size, strict=True)
        )
    )


def sampled(n: int, noise: float = 0.03, seed: int = 0) -> tuple[list[SubnetConfig], np.ndarray]:
    rng, draws = Random(seed), np.random.default_rng(seed)
    subnets = [SPACE.sample(rng) for _ in range(n)]
    return subnets, np.array([law(s) for s in subnets]) * draws.normal(1, noise, n)


def fitted(n: int = 100, **arguments) -> SubnetPredictor:
    subnets, latency_ms = sampled(n)
    return SubnetPredictor.fit(SPACE, subnets, latency_ms, Workload(), macs=[macs(s) for s in subnets], **arguments)


@pytest.fixture(scope="module")
def predictor() -> SubnetPredictor:
    return fitted()


def test_it_recovers_an_additive_law(predictor):
    unseen, _ = sampled(200, seed=1)
    e = errors(np.array([law(s) for s in unseen]), predictor.predict(unseen))
    assert e.kendall_tau > 0.9 and e.mape_percent < 4


def test_cross_validation_chooses_the_model_that_fits_the_law(predictor):
    report = predictor.report
    assert report.model == "additive" == min(report.cv_mape_percent, key=lambda n: report.cv_mape_percent[n])
    assert set(report.held_out) == set(MODELS) | {"depth-only", "macs"}
    assert report.held_out["additive"].mape_percent < report.held_out["macs"].mape_percent
    assert report.held_out["macs"].mape_percent < report.held_out["depth-only"].mape_percent
    assert (report.n_train, report.n_test) == (80, 20)


def test_a_law_with_interactions_chooses_a_model_with_interactions():
    subnets, _ = sampled(150)
    step = [10.0 if max(s.intermediate_size) > 1200 and s.num_hidden_layers > 3 else 5.0 for s in subnets]
    report = SubnetPredictor.fit(SPACE, subnets, step, Workload(), macs=[macs(s) for s in subnets]).report
    assert report.model not in ("additive", "linear")
    assert report.held_out[report.model].mape_percent < report.held_out["additive"].mape_percent


def test_held_out_measurements_are_never_fitted():
    subnets, latency_ms = sampled(50)
    held_out = np.random.default_rng(0).permutation(50)[:10]
    spoiled = latency_ms.copy()
    spoiled[held_out] *= 7
    reports = [
        SubnetPredictor.fit(SPACE, subnets, y, Workload(), macs=[macs(s) for s in subnets]).report
        for y in (latency_ms, spoiled)
    ]
    assert reports[0].cv_mape_percent == reports[1].cv_mape_percent
    assert reports[1].held_out["additive"].mape_percent > 80


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_and_is_deterministic(name):
    subnets, latency_ms = sampled(120)
    x, names = features(SPACE, subnets), feature_names(SPACE)
    first, second = (MODELS[name](names).fit(x, latency_ms).predict(x) for _ in range(2))
    assert (first == second).all()
    assert errors(latency_ms, first).kendall_tau > 0.8


def test_the_same_seed_gives_the_same_predictor(predictor):
    again, other = fitted(), fitted(seed=1)
    assert again.report == predictor.report != other.report
    assert (again.predict(SPACE.uniform_scalings()) == predictor.predict(SPACE.uniform_scalings())).all()


def test_features_do_not_depend_on_which_layers_are_kept():
    a, b = SubnetConfig((0, 3), (4, 8), (192, 700), 384), SubnetConfig((1, 5), (8, 4), (700, 192), 384)
    x = features(SPACE, [a, b, SPACE.largest])
    assert x.shape == (3, len(feature_names(SPACE)))
    assert (x[0] == x[1]).all()
    columns = [i for i, name in enumerate(feature_names(SPACE)) if name.startswith("intermediate_size:")]
    assert x[0, columns].sum() * 1536 == pytest.approx(700 - 192)
    assert features(SPACE, []).shape == (0, len(feature_names(SPACE)))


def test_a_wider_model_is_never_predicted_faster_even_if_measured_so():
    subnets, latency_ms = sampled(25)
    model = MODELS["additive"](feature_names(SPACE)).fit(features(SPACE, subnets), 100 / latency_ms)
    for subnet in sampled(20, seed=2)[0]:
        for field, widest in (("intermediate_size", 1536), ("num_attention_heads", 12)):
            changed = {field: (widest,) * subnet.num_hidden_layers}
            groups = changed.get("num_attention_heads", subnet.num_key_value_heads)
            wider = subnet.with_values(**changed, num_key_value_heads=groups)
            narrow, wide = model.predict(features(SPACE, [subnet, wider]))
            assert wide >= narrow - 1e-9


def test_the_interval_contains_nine_in_ten():
    predictor = fitted(300)
    subnets, latency_ms = sampled(400, seed=3)
    inside = np.abs(latency_ms - predictor.predict(subnets)) <= predictor.spread_ms(subnets)
    assert 0.8 < inside.mean() < 0.99


def test_save_and_load_predict_the_same(predictor, tmp_path):
    predictor.save(tmp_path / "predictor")
    loaded = SubnetPredictor.load(tmp_path / "predictor", Workload())
    subnets, _ = sampled(50, seed=4)
    assert (loaded.predict(subnets) == predictor.predict(subnets)).all()
    assert (loaded.spread_ms(subnets) == predictor.spread_ms(subnets)).all()
    assert loaded.report == predictor.report and loaded.workload == predictor.workload
    assert [p.name for p in (tmp_path / "predictor").iterdir()] == ["predictor.json"]
    stored = json.loads((tmp_path / "predictor" / "predictor.json").read_text())["latency"]["report"]
    assert {"n_chosen", "around_ms", "n_near", "near"} < stored.keys(), "keys of before"


def test_a_file_that_is_incomplete_missing_or_for_another_workload_is_refused(predictor, tmp_path):
    with pytest.raises(InputError, match=r"predictor\.json"):
        SubnetPredictor.load(tmp_path)
    predictor.save(tmp_path)
    with pytest.raises(InputError, match="2 threads"):
        SubnetPredictor.load(tmp_path, Workload(threads=2))
    path = tmp_path / "predictor.json"
    text = path.read_text()
    data = json.loads(text)
    damaged = json.dumps({**data, "latency": {**data["latency"], "latency_ms": [1.0]}})
    for content in (text[:-50], "{}", "[]", damaged):
        path.write_text(content)
        with pytest.raises(InputError, match="profile again"):
            SubnetPredictor.load(tmp_path)


@pytest.mark.parametrize("latency_ms", [[5.0] * 10, [5.0] * 9 + [6.0], list(range(1, 11))])
def test_few_constant_or_equal_latencies_do_not_crash(latency_ms):
    subnets = [SPACE.largest] * 5 + [SPACE.smallest] * 5
    predictor = SubnetPredictor.fit(SPACE, subnets, latency_ms, Workload(), macs=[1.0] * 10)
    assert np.isfinite(predictor.predict(subnets)).all() and np.isfinite(predictor.spread_ms(subnets)).all()
    json.dumps(predictor.report.to_dict(), allow_nan=False)


def test_invalid_measurements_are_refused():
    subnets, latency_ms = sampled(12)
    for n, y, counts in (
        (9, latency_ms[:9], 9),
        (12, latency_ms[:11], 12),
        (12, latency_ms, 11),
        (12, -latency_ms, 12),
    ):
        with pytest.raises(InputError):
            SubnetPredictor.fit(SPACE, subnets[:n], y, Workload(), macs=[1.0] * counts)


def test_the_table_shows_every_model_and_baseline(predictor):
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as captured:
        console.print(predictor.report.table())
    shown = captured.get()
    assert all(name in shown for name in (*MODELS, "depth-only", "macs")) and "additive (chosen)" in shown
