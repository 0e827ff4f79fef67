"""Values of a recipe: what YAML holds is read as it is written, and what no key can mean is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from nas.recipe import strict_yaml
from nas.recipe.objectives import COSTS, METRICS, Bound
from nas.recipe.schema import Recipe
from nas.recipe.secrets import secrets_of, without_secrets
from nas.recipe.text import apply_overrides
from search_spaces import InputError

MINIMAL = {"model": "m", "task": {"type": "text-classification", "train": "a.csv", "test": "b.csv"}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12:30:45", "12:30:45"),
        ("no", "no"),
        ("on", "on"),
        ("010", 10),
        ("0x1F", 31),
        ("1_000", 1000),
        ("5e-5", 5e-5),
        ("1e3", 1000.0),
        ("2024-01-01", "2024-01-01"),
        (".inf", math.inf),
        ("~", None),
        ("", None),
        ("true", True),
        ("[1, a, .5]", [1, "a", 0.5]),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    read = strict_yaml.load(f"key: {text}")["key"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: {c: 1, d: 2, c: 3}", "line 2: a key must be given once, but `c`"),
        ("a: 1\na: 2", "line 2"),
        ("true: 1", "a key must be a text, but got `true`"),
        ("3: 1", "`3`"),
        ("~: 1", "`~`"),
        ("? [1, 2]\n: 3", "a list or mapping"),
        ("a: &x [*x]", "must not be part of itself"),
        ("&x {a: {b: *x}}", "must not be part of itself"),
        ("[" * 1000 + "]" * 1000, "nested at most"),
        ("a: " + "{b: " * 30 + "1" + "}" * 30, "nested at most"),
        ("a: &a [0,0,0,0,0,0,0,0,0,0]\n" + "".join(
            f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcd", "bcde", strict=True)
        ), "at most 20,000 values"),
        ("a: !!int x", "a tag must fit"),
        ("a: !!bool maybe", "a tag must fit"),
        ("a: !!timestamp 2024-01-01", "timestamp"),
        ("a: !!set {b, c}", "set"),
        ("a: !!python/object/apply:os.getcwd []", "python/object"),
        ("a: " + "9" * 5000, "a tag must fit"),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: b: c", "mapping values"),
    ],
)  # fmt: skip
def test_what_no_reader_expects_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says.replace("[", r"\[")) as refused:
        strict_yaml.load(text)
    assert len(str(refused.value)) < 400


def test_what_is_written_is_read_again_by_any_reader() -> None:
    data = {"a": "yes", "b": "1e5", "c": 2e-5, "d": "12:30", "e": None, "f": "", "g": "010", "h": 1e23, "i": ["<= 8"]}
    text = strict_yaml.dump(data)
    assert strict_yaml.load(text) == data == yaml.safe_load(text)


def parsed(dotted: str, value: Any) -> Recipe:
    """A recipe with one value."""
    data: dict[str, Any] = {"model": MINIMAL["model"], "task": dict(MINIMAL["task"])}  # type: ignore[call-overload]
    data["supernet"] = {"strategy": "sandwich"}
    *sections, key = dotted.split(".")
    target = data
    for section in sections:
        target = target.setdefault(section, {})
    target[key] = value
    return Recipe.parse(data)


NUMBERS = (
    "search.evaluations",
    "parent.epochs",
    "profile.samples",
    "supernet.temperature",
    "workload.batch_size",
    "seed",
)


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [True, math.inf, math.nan, 1e23, "12:30:45", [], {}, -1, 10**400, "", None])
def test_what_is_no_number_is_refused(key: str, value: Any) -> None:
    if key in ("parent.epochs", "search.evaluations") and value is None:
        return  # their default
    with pytest.raises(InputError, match=rf"`{key}`"):
        parsed(key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 2**32),
        ("task.max_length", 10**9),
        ("workload.threads", 10**6),
        ("workload.sequence_length", 10**9),
        ("supernet.learning_rate", math.inf),
        ("supernet.temperature", 1e-300),
        ("space.hidden_size", []),
        ("space.attention_rank", []),
        ("space.attention_rank", [math.nan]),
        ("space.intermediate_size", [True]),
        ("task.text", []),
        ("task.text", [""]),
        ("model", ""),
        ("model", "a\0b"),
        ("model", "\ud800"),
        ("model", "x" * 5000),
        ("task.train", "  "),
        ("search.storage", "sqlite"),
        ("search.sampler_options.gamma", math.nan),
        ("objectives", {"accuracy": "maximize", "latency_ms": "minimize", "latency": "minimize"}),
        ("task.metrics.a.b", 1),
        ("profile.earlier", [""]),
    ],
)
def test_values_of_no_use_are_refused(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"`{key.rpartition('.')[0] or key}"):
        parsed(key, value)


def test_a_supernet_is_trained_only_with_a_strategy() -> None:
    assert not Recipe.parse(MINIMAL).supernet.is_trained and Recipe.parse(MINIMAL).supernet.order == "activation"
    trained = Recipe.parse({**MINIMAL, "supernet": {"strategy": "sandwich", "epochs": 2}}).supernet
    assert trained.is_trained and trained.order == "gradient"
    assert Recipe.parse({**MINIMAL, "supernet": {"order": "none"}}).supernet.order == "none"
    with pytest.raises(InputError, match=r"`supernet.epochs` needs a training, .* add `supernet.strategy=sandwich`"):
        Recipe.parse({**MINIMAL, "supernet": {"epochs": 2}})
    with pytest.raises(InputError, match=r"`supernet\.epoch`"):
        Recipe.parse({**MINIMAL, "supernet": {"epoch": 2}})


@pytest.mark.parametrize(
    ("name", "bound", "possible"),
    [
        ("accuracy", ">= 1", True),
        ("accuracy", "> 1", False),
        ("accuracy", ">= 2", False),
        ("accuracy", "<= -0.1", False),
        ("matthews_correlation", "<= -0.1", True),
        ("latency_ms", "<= 0", False),
        ("latency_ms", "< 0", False),
        ("latency_ms", "== 0", False),
        ("latency_ms", "<= 0.5", True),
        ("latency_ms", ">= 5", True),
        ("size_mb", "<= -3", False),
        ("loss", "< 0", False),
        ("loss", "<= 0", True),
        ("perplexity", "<= 0.5", False),
        ("sacrebleu", ">= 101", False),
        ("my_metric", ">= 1000", True),
    ],
)
def test_bounds_that_nothing_can_meet(name: str, bound: str, possible: bool) -> None:
    assert Bound.parse(bound).is_possible(name) is possible
    if name in (*METRICS, *COSTS) and not possible:
        with pytest.raises(InputError, match=rf"`constraints.{name}` must be a bound that a value between"):
            parsed("constraints", {name: bound})


@pytest.mark.parametrize("text", ["<= 1e999", "<= 1_", "<= ٣", "<=", "<= nan", "=< 3", "<= 3 4"])
def test_texts_that_are_no_bound(text: str) -> None:
    with pytest.raises(InputError, match="A bound must be"):
        Bound.parse(text)


@pytest.mark.parametrize("name", ["", "x" * 300, "x/" * 3000, "no\0name"])
def test_files_that_cannot_be(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a recipe must be"):
        Recipe.load(tmp_path / name)


def test_a_recipe_that_is_no_text_of_a_size(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"# " + b"x" * strict_yaml.MAX_BYTES)
    with pytest.raises(InputError, match="at most 1,000,000 bytes"):
        Recipe.load(tmp_path / "recipe.yaml")


def test_a_model_whose_name_no_file_can_have_stays_as_it_is(tmp_path: Path) -> None:
    recipe = {**MINIMAL, "model": "y" * 300}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert Recipe.load(tmp_path / "recipe.yaml").model == "y" * 300


@pytest.mark.parametrize(
    ("url", "shown", "secrets"),
    [
        ("postgresql://nas:p@w/x@host/db", "postgresql://nas:***@host/db", ["p@w/x"]),
        ("https://tok3n@host/x", "https://***@host/x", ["tok3n"]),
        ("mysql://host/db?user=me&password=s%20x&a=1", "mysql://host/db?user=me&password=***&a=1", ["s%20x", "s x"]),
        ("mysql://host/db?sslkey=abc#x", "mysql://host/db?sslkey=***#x", ["abc"]),
        ("sqlite:////home/me/study.db", "sqlite:////home/me/study.db", []),
    ],
)
def test_secrets_are_hidden(url: str, shown: str, secrets: list[str]) -> None:
    assert without_secrets(f"the URL `{url}` fails") == f"the URL `{shown}` fails"
    assert secrets_of(url) == secrets


@pytest.mark.parametrize(
    ("text", "parent", "holds", "misses"),
    [
        ("<= 50%", 10.0, 5.0, 5.01),
        (">= parent - 0.01", 0.9, 0.89, 0.8899),
        ("> parent", 0.9, 0.91, 0.9),
        ("<= parent + 2", 3.0, 5.0, 5.1),
        (">= 20%, <= 3", 10.0, 2.0, 1.9),
        (">= 20%, <= 3", 10.0, 3.0, 3.1),
    ],
)
def test_bounds_in_the_parents_terms_are_resolved(text: str, parent: float, holds: float, misses: float) -> None:
    bound = Bound.parse(text)
    assert bound.is_relative and str(bound) == text and Bound.parse(bound.exact) == bound
    resolved = bound.resolve(parent)
    assert not resolved.is_relative and Bound.parse(resolved.exact) == resolved
    assert resolved.violation(holds) <= 0 < resolved.violation(misses)
    assert (resolved.verdict(holds), resolved.verdict(misses)) == ("holds", "misses")
    with pytest.raises(ValueError, match="in terms of the parent's value"):
        bound.violation(holds)


@pytest.mark.parametrize("bound", [">= 0.9", ">0.5", ">= parent - 0.01", ">= 2, <= 5", "<= 50%", "'>= 0.9'"])
def test_a_bound_is_typed_as_it_is_written(bound: str) -> None:
    """YAML takes a value that begins with > for a folded text."""
    data = apply_overrides({}, [f"constraints.accuracy={bound}"])
    assert data == {"constraints": {"accuracy": bound.strip("'")}}


def test_two_bounds_on_one_figure_must_leave_room() -> None:
    assert Bound.parse(">= 1, <= 5").is_possible("latency_ms") and Bound.parse(">= 1, <= 5").upper == 5
    assert not Bound.parse(">= 5, <= 1").is_possible("latency_ms")
    assert Bound.parse("<= 5, >= 5").is_possible("latency_ms") and not Bound.parse("< 5, >= 5").is_possible(
        "latency_ms"
    )


@pytest.mark.parametrize("text", ["<= -5%", "<= 0%", "<= parent * 2", ">= 1, <= 5, <= 6", "<= parents", "<= 50 %%"])
def test_bounds_that_say_nothing_clear_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="a percentage of the parent's value"):
        Bound.parse(text)
