"""Attention patterns: parsing, order, cost, and the choices that are dropped."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from toys import TOYS

from predictors.latency.features import feature_names, features
from search_spaces import FAMILIES, InputError, Layout, SearchSpace, SubnetConfig
from search_spaces.dimension import Facts
from search_spaces.dimensions.attention import ATTENTION, AttentionPattern, decode_pattern, encode_pattern
from search_spaces.useful_choices import useful_choices
from search_spaces.validation import check_subnet

TEXTS = ("full", "local:64", "bigbird:64,1,2", "bigbird:64,1,2,7", "local:1")
PARENT = SubnetConfig.uniform((0, 1, 2), num_attention_heads=4, intermediate_size=96, hidden_size=48)


def make_space(scope: str = "per-layer") -> SearchSpace:
    """A space with several attention patterns and blocks that may be skipped."""
    heads = [2, 4] if scope == "uniform" else [0, 2, 4]
    order, patterns = [2, 0, 1], ["full", "bigbird:16,1,1", "local:8"]
    return SearchSpace(PARENT, num_attention_heads=heads, attention=patterns, scope=scope, layer_order=order)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", TEXTS)
def test_a_pattern_is_its_text_and_its_code(text: str) -> None:
    assert decode_pattern(encode_pattern(text)) == text
    pattern = AttentionPattern.parse(text)
    assert (pattern is None) == (text == "full") and (pattern is None or str(pattern) == text)
    assert len({encode_pattern(other) for other in TEXTS}) == len(TEXTS)


@pytest.mark.parametrize(
    "text", ["local", "local:0", "local:-1", "bigbird:64", "bigbird:0,1,1", "sliding:4", "", "local:1.5"]
)
def test_what_is_no_pattern_gets_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"`local:w`.*but got") as error:
        AttentionPattern.parse(text)
    assert len(str(error.value).splitlines()) == 1


def test_only_sparse_attention_is_written_into_a_subnetwork() -> None:
    sparse = PARENT.with_values(attention=("full", "local:8", "bigbird:16,1,1,0"))
    assert sparse.attention[2] == "bigbird:16,1,1" and not sparse.is_uniform and sparse.key != PARENT.key
    assert SubnetConfig.from_dict(sparse.to_dict()) == sparse and "local:8" in str(sparse)
    assert "attention" not in PARENT.to_dict() and "attention" not in PARENT.parts
    skipped = sparse.with_values(num_attention_heads=(4, 0, 4), num_key_value_heads=(4, 0, 4))
    assert skipped.attention[1] == "full"


@pytest.mark.parametrize("scope", ["uniform", "per-layer"])
def test_a_space_samples_counts_and_encodes_patterns(scope: str) -> None:
    space, rng = make_space(scope), Random(0)
    assert (
        space.choices["attention"]
        == ATTENTION.sort(("bigbird:16,1,1", "full", "local:8"))
        == ("local:8", "bigbird:16,1,1", "full")
    )
    assert space.largest.attention[0] == "full" and space.smallest.attention[0] == "local:8"
    assert {subnet.attention for subnet in space.uniform_scalings()} == {("full",) * 3}
    per_layer = len(space.block_choices("attention"))
    assert per_layer == (6 if scope == "uniform" else 7) and space.size == (6 if scope == "uniform" else 7**3)
    samples = [space.sample(rng) for _ in range(60)]
    assert len({pattern for subnet in samples for pattern in subnet.attention}) == 3
    for subnet in samples:
        assert subnet in space and space.parameters.to_subnet(space.parameters.from_subnet(subnet)) == subnet
        assert all(neighbour in space for neighbour in space.neighbours(subnet))
    encoded = space.parameters.encode(samples)
    assert len(np.unique(encoded, axis=0)) == len(set(samples)) and encoded.min() >= 0 and encoded.max() <= 1
    assert PARENT.with_values(attention=("local:9",) * 3) not in space


def test_features_let_time_grow_with_the_heads_of_each_pattern() -> None:
    """A latency that is a sum of heads times a price of their pattern is a weighted sum of the features."""
    space, rng = make_space(), Random(0)
    subnets = [space.sample(rng) for _ in range(200)]
    price = {"local:8": 1.0, "bigbird:16,1,1": 1.7, "full": 3.1}
    latency = [sum(h * price[p] for h, p in zip(s.num_attention_heads, s.attention, strict=True)) for s in subnets]
    table = features(space, subnets)
    assert table.shape == (200, len(feature_names(space)))
    fitted = np.linalg.lstsq(table, np.array(latency), rcond=None)[0]
    assert np.allclose(table @ fitted, latency)


def test_patterns_slower_than_full_attention_are_dropped_with_a_reason() -> None:
    choices = {"scope": "uniform", "attention": ["full", "local:4", "local:16"], "hidden_size": None}
    kept, (reason,) = useful_choices(choices, Facts(63))
    assert kept == {**choices, "attention": ["full", "local:4"]}
    assert "local:16 (faster from 64 tokens)" in reason and "local:4" not in reason and "63" in reason
    assert useful_choices(choices, Facts(64)) == (choices, [])
    assert useful_choices({**choices, "attention": ["local:16"]}, Facts(8))[0]["attention"] == ["full"]
    assert useful_choices({**choices, "attention": None}, Facts(8)) == ({**choices, "attention": None}, [])


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if "attention" not in family.dimensions])
def test_families_with_attention_of_their_own_refuse_patterns(family: str) -> None:
    layout = Layout(TOYS[family].model().config)
    with pytest.raises(InputError, match="attention"):
        layout.search_space({"scope": "per-layer", "attention": ["full", "local:4"]})
    with pytest.raises(InputError, match="attention interface"):
        check_subnet(layout, layout.parent.with_values(attention=("local:4",) * layout.parent.num_hidden_layers))


def test_sliding_decoders_keep_no_keys_for_global_tokens() -> None:
    with pytest.raises(InputError, match="sliding window"):
        Layout(TOYS["mistral"].model().config).search_space({"attention": ["full", "bigbird:2,1,1"]})


def test_wider_patterns_compute_more_pairs_and_all_of_them_linearly_many() -> None:
    for causal in (False, True):
        for text in ("local:8", "bigbird:8,1,1"):
            pattern = AttentionPattern.parse(text)
            assert pattern is not None
            assert pattern.kind.computed_pairs(256, causal=causal) == 2 * pattern.kind.computed_pairs(
                128, causal=causal
            )
    pairs = [AttentionPattern(w).kind.computed_pairs(128, causal=False) for w in (4, 8, 16)]
    assert pairs == sorted(pairs)
