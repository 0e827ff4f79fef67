"""Search spaces: sizes, parameters and points agree with plain enumeration."""

from __future__ import annotations

from itertools import combinations, product
from random import Random
from typing import Any

import numpy as np
import optuna
import pytest

from search_spaces import InputError, SearchSpace, SubnetBatch, SubnetConfig
from search_spaces.dimensions import DIMENSIONS, PER_LAYER, PER_SUBNET
from search_spaces.subnet import NUMERIC

PARENT = SubnetConfig.uniform((0, 1, 2), num_attention_heads=4, intermediate_size=96, hidden_size=48)


def make_space(scope: str = "per-layer", **changes: object) -> SearchSpace:
    choices = {"num_hidden_layers": [1, 2, 3], "num_attention_heads": [1, 2, 4], "intermediate_size": [32, 64, 96]}
    return SearchSpace(PARENT, **{**choices, **changes}, scope=scope, layer_order=[2, 0, 1])  # type: ignore[arg-type]


def test_the_size_is_what_enumeration_counts() -> None:
    small = make_space(num_attention_heads=[1, 2], intermediate_size=[32])
    widths = list(product([1, 2], [32]))
    points = {
        SubnetConfig(layers, *zip(*chosen, strict=True), hidden_size=48)  # type: ignore[arg-type]
        for depth in (1, 2, 3)
        for layers in combinations(range(3), depth)
        for chosen in product(widths, repeat=depth)
    }
    assert small.size == len(points)
    assert all(point in small for point in points)
    rng = Random(0)
    assert {small.sample(rng) for _ in range(3000)} == points
    uniform = make_space("uniform")
    assert uniform.size == len(set(uniform)) == 27


@pytest.mark.parametrize("scope", ["uniform", "per-layer"])
def test_parameters_and_subnetworks_are_the_same_thing(scope: str) -> None:
    space, rng = make_space(scope), Random(0)
    for _ in range(200):
        subnet = space.sample(rng)
        assert subnet in space
        assert space.parameters.to_subnet(space.parameters.from_subnet(subnet)) == subnet
        assert SubnetConfig.from_dict(subnet.to_dict()) == subnet
        for neighbour in space.neighbours(subnet):
            assert neighbour in space and neighbour != subnet


@pytest.mark.parametrize("scope", ["uniform", "per-layer"])
def test_a_study_suggests_points_of_the_space(scope: str) -> None:
    space = make_space(scope)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(100):
        trial = study.ask()
        assert space.parameters.suggest(trial) in space
        assert trial.distributions == space.parameters.distributions()


def test_evenly_spaced_choices_are_ordered_for_the_sampler() -> None:
    distributions = make_space().parameters.distributions()
    assert isinstance(distributions["intermediate_size.0"], optuna.distributions.IntDistribution)
    assert isinstance(distributions["num_attention_heads.0"], optuna.distributions.CategoricalDistribution)
    assert set(make_space(num_hidden_layers=[3]).parameters) == {
        f"{field}.{i}" for field in ("num_attention_heads", "intermediate_size") for i in range(3)
    }


def test_a_set_of_layers_of_a_forbidden_size_is_repaired_by_importance() -> None:
    space = make_space(num_hidden_layers=[2])
    assert space.parameters.to_subnet({f"layers.{i}": False for i in range(3)}).layers == (0, 2)
    assert space.parameters.to_subnet({f"layers.{i}": True for i in range(3)}).layers == (0, 2)
    assert space.parameters.to_subnet({"layers.0": False, "layers.1": True, "layers.2": False}).layers == (1, 2)


def test_uniform_scalings_run_from_the_largest_to_the_smallest() -> None:
    for scope in ("uniform", "per-layer"):
        scalings = make_space(scope).uniform_scalings()
        assert scalings[0] == make_space(scope).largest and scalings[-1] == make_space(scope).smallest
        assert all(subnet.is_uniform and subnet in make_space(scope) for subnet in scalings)


def test_the_encoding_tells_subnetworks_apart() -> None:
    space, rng = make_space(), Random(0)
    points = list({space.sample(rng) for _ in range(300)})
    assert len({tuple(row) for row in space.parameters.encode(points)}) == len(points)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"num_attention_heads": []}, "at least one choice"),
        ({"intermediate_size": [128]}, "between 1 and the parent's 96"),
        ({"num_hidden_layers": [0, 1]}, "between 1 and the parent's 3"),
    ],
)
def test_impossible_choices_are_refused(choices: dict[str, list[int]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_space(**choices)


def test_a_subnet_checks_itself() -> None:
    with pytest.raises(InputError, match="ascending"):
        SubnetConfig((1, 0), (1, 1), (8, 8), 48)
    with pytest.raises(InputError, match="one value for each"):
        SubnetConfig((0, 1), (1,), (8, 8), 48)


def widths_of(space: SearchSpace) -> list[tuple[int, ...]]:
    """Attention heads, key and value heads and neurons of every choice for one layer, all of full rank."""
    layers = [dict(zip(PER_LAYER, values, strict=True)) for values in space.layer_choices]
    others = [name for name in PER_LAYER if DIMENSIONS[name].neutral is not None]
    assert all({values[name] for name in others} <= {0, 100, "full", "float32"} for values in layers)
    return [tuple(value for field, value in values.items() if field not in others) for values in layers]


def test_grouped_queries_and_skipped_blocks_are_counted_and_never_empty() -> None:
    parent = SubnetConfig.uniform(
        (0, 1), num_attention_heads=4, num_key_value_heads=2, intermediate_size=8, hidden_size=16
    )
    space = SearchSpace(
        parent,
        num_attention_heads=[0, 2, 4],
        num_key_value_heads=[1, 2],
        intermediate_size=[0, 8],
        hidden_size=[8, 16],
    )
    widths = {(0, 0, 8), (2, 1, 8), (2, 2, 8), (4, 2, 8), (2, 1, 0), (2, 2, 0), (4, 2, 0)}
    assert set(widths_of(space)) == widths and space.size == 2 * len(widths) ** 2
    rng = Random(0)
    samples = {space.sample(rng) for _ in range(3000)}
    assert len(samples) == space.size and all(subnet in space for subnet in samples)
    for subnet in list(samples)[:50]:
        assert space.parameters.to_subnet(space.parameters.from_subnet(subnet)) == subnet
    assert space.parameters.to_subnet({"num_attention_heads.0": 0, "intermediate_size.0": 0}).intermediate_size[0] == 8
    assert (
        space.parameters.to_subnet({"num_attention_heads.0": 4, "num_key_value_heads.0": 1}).num_key_value_heads[0]
        == 2
    )
    assert min(space.smallest.num_attention_heads) == 2 and min(space.smallest.intermediate_size) == 8


def test_heads_per_group_are_the_parents_where_key_and_value_heads_are_not_searched() -> None:
    parent = SubnetConfig.uniform(
        (0, 1), num_attention_heads=8, num_key_value_heads=4, intermediate_size=8, hidden_size=16
    )
    space = SearchSpace(parent, num_attention_heads=[2, 4, 8])
    assert set(widths_of(space)) == {(2, 1, 8), (4, 2, 8), (8, 4, 8)}
    with pytest.raises(InputError, match="got 3 with"):
        SearchSpace(parent, num_attention_heads=[3, 8])


def test_an_encoder_decoder_has_two_depths() -> None:
    parent = SubnetConfig.uniform(tuple(range(5)), num_attention_heads=2, intermediate_size=8, hidden_size=16)
    space = SearchSpace(
        parent, num_hidden_layers=[1, 3], num_decoder_layers=[2], depths=(3, 2), layer_order=[4, 1, 0, 3, 2]
    )
    assert space.size == 3 + 1 and space.most_important_layers((1, 2)) == (1, 3, 4)
    assert {subnet.layers for subnet in map(space.sample, [Random(0)] * 200)} == {
        (0, 3, 4),
        (1, 3, 4),
        (2, 3, 4),
        (0, 1, 2, 3, 4),
    }
    assert [subnet.layers for subnet in space.uniform_scalings()] == [(0, 1, 2, 3, 4), (1, 3, 4)]
    with pytest.raises(InputError, match="the depths of this model are num_hidden_layers;"):
        SearchSpace(parent, num_decoder_layers=[1])


def reference(space: SearchSpace, params: dict[str, Any]) -> SubnetConfig:
    """What `Parameters.to_subnet` documents, one layer at a time."""
    names = [name for name in (*NUMERIC, "bits") if name in space.layer_fields]
    if space.scope == "uniform":
        layers = sorted([layer for layer in space.layer_order][: params["num_hidden_layers"]])
        values = {name: [params[name]] * len(layers) for name in names}
    else:
        kept = [layer for layer in space.layer_order if params[f"layers.{layer}"]]
        dropped = [layer for layer in space.layer_order if not params[f"layers.{layer}"]]
        allowed = space.choices["num_hidden_layers"]
        depth = max(allowed, key=lambda d: (-abs(d - len(kept)), d))
        layers = sorted([*kept, *dropped][:depth])
        values = {name: [params[f"{name}.{layer}"] for layer in layers] for name in names}
    for k in range(len(layers)):
        heads, groups = values["num_attention_heads"][k], values["num_key_value_heads"][k]
        fits = [g for g in space.choices["num_key_value_heads"] if heads and heads % g == 0 and heads // g <= 2]
        values["num_key_value_heads"][k] = min(fits, key=lambda g: (abs(g - groups), -g)) if fits else 0
        if not heads and not values["intermediate_size"][k]:
            values["intermediate_size"][k] = min(v for v in space.choices["intermediate_size"] if v)
    global_values = {name: params[name] for name in PER_SUBNET if name in params}
    return SubnetConfig(tuple(layers), **global_values, **{name: tuple(column) for name, column in values.items()})


@pytest.mark.parametrize("scope", ["uniform", "per-layer"])
def test_many_at_once_are_the_same_as_one_at_a_time(scope: str) -> None:
    parent = SubnetConfig.uniform(
        (0, 1, 2), num_attention_heads=8, num_key_value_heads=4, intermediate_size=96, hidden_size=48
    )
    skips = [0] * (scope == "per-layer")
    space = SearchSpace(
        parent,
        num_hidden_layers=[1, 3],
        num_attention_heads=[*skips, 2, 4, 8],
        num_key_value_heads=[1, 2, 4],
        intermediate_size=[*skips, 32, 96],
        hidden_size=[24, 48],
        attention_rank=[50, 100],
        mlp_rank=[25, 50, 100],
        embedding_rank=[25, 50, 100],
        bits=["float32", "int8", "int4-weight"],
        scope=scope,  # type: ignore[arg-type]
        layer_order=[2, 0, 1],
    )
    parameters = space.parameters
    names, choices = list(parameters.distributions()), list(parameters.values())
    vectors = np.random.default_rng(0).integers(0, [len(values) for values in choices], (500, len(names)))
    batch = parameters.to_batch(vectors)
    expected = [
        reference(space, {n: c[g] for n, c, g in zip(names, choices, row, strict=True)}) for row in vectors.tolist()
    ]
    assert list(batch) == expected and list(batch[100:200]) == expected[100:200]
    assert all(subnet in space for subnet in batch)
    rebuilt = SubnetBatch.from_subnets(expected, 3)
    assert rebuilt.row_keys() == batch.row_keys()
    assert len(set(batch.row_keys())) == len(set(expected))
    assert (parameters.encode(batch) == parameters.encode(expected)).all()
