"""`nas init`: a model and its data become a recipe that `nas search` takes unedited."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from refusals import Refused, contents
from samples import one_slow
from toy_tasks import SENTENCES, csv, jsonl, parquet, sound, tags, tokenizer, txt
from toys import TOYS, VARIANTS, WORDS, Toy, variant

from nas.cli import main
from nas.commands.init import init_recipe, propose_recipe, recipe_of_run
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.check import check_recipe
from search_spaces import InputError, Layout
from search_spaces.dimension import Facts
from search_spaces.dimensions import depth_names
from search_spaces.dimensions.bits import PROPOSED
from search_spaces.proposal import Proposal, propose_choices
from search_spaces.useful_choices import useful_choices
from search_spaces.validation import check_subnet

SIZE = len(WORDS) + 2
"""Tokens of the tokenizer of `toy_tasks`."""


def words(folder: Path) -> None:
    tokenizer(folder, pad_token="[PAD]")


def images(folder: Path) -> None:
    from transformers import ViTImageProcessor

    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)


def sounds(folder: Path) -> None:
    from transformers import WhisperFeatureExtractor, WhisperProcessor

    features = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    WhisperProcessor(features, tokenizer(folder, pad_token="[PAD]")).save_pretrained(folder)


def picture_folder(path: Path, rows: list[dict[str, Any]]) -> str:
    """A folder of images, one folder a class, that tell the classes apart by their brightness."""
    from PIL import Image

    for k, _ in enumerate(rows):
        name = "abc"[k % 3]
        (path / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 80, (8, 8, 3)) + 80 * (k % 3)
        Image.fromarray(pixels.astype("uint8")).save(path / name / f"{k}.png")
    return str(path)


@dataclass(frozen=True)
class Case:
    """A toy, what reads its inputs, data in one format, and what of the recipe is known."""

    toy: Toy
    processor: Callable[[Path], None]
    write: Callable[[Path, list[dict[str, Any]]], str]
    row: Callable[[str], dict[str, Any]]
    task: dict[str, Any]


CASES = {
    "bert": Case(
        variant("bert", vocab_size=SIZE),
        words,
        csv,
        lambda s: {"id": len(s), "sentence": s, "label": int(s.split()[-1] in ("good", "great", "fine"))},
        {"type": "text-classification", "text": "sentence", "label": "label", "max_length": 8, "search_examples": 27},
    ),
    "vit": Case(
        TOYS["vit"],
        images,
        picture_folder,
        lambda s: {},
        {"type": "image-classification", "label": "label", "search_examples": 27},
    ),
    "llama": Case(
        variant("llama", vocab_size=SIZE),
        words,
        txt,
        lambda s: {"text": s},
        {"type": "text-generation", "text": "text", "max_length": 16},
    ),
    "t5": Case(
        variant("t5", vocab_size=SIZE),
        words,
        jsonl,
        lambda s: {"input": s, "output": s.split()[-1]},
        {"type": "text2text-generation", "text": "input", "label": "output", "max_length": 8, "search_examples": 27},
    ),
    "whisper": Case(
        variant("whisper", vocab_size=SIZE, max_source_positions=50),
        sounds,
        parquet,
        lambda s: {"audio": sound(s), "text": s},
        {"type": "automatic-speech-recognition", "label": "text", "max_length": 8, "search_examples": 27},
    ),
}

MakeInputs = Callable[[str], tuple[str, str, str]]


@pytest.fixture
def make_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeInputs:
    """Writes model and data of a case into the working directory; returns words of the command line."""
    monkeypatch.chdir(tmp_path)

    def make(name: str) -> tuple[str, str, str]:
        case = CASES[name]
        case.toy.model().save_pretrained(tmp_path / "model")
        case.processor(tmp_path / "model")
        rows = [case.row(sentence) for sentence in SENTENCES]
        data = [case.write(tmp_path / split, part) for split, part in (("train", rows), ("test", rows[::3]))]
        return "model", Path(data[0]).name, Path(data[1]).name

    return make


def nas(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["nas", *map(str, arguments)])
    main()


def written(model: str, train: str, test: str) -> dict[str, Any]:
    init_recipe(model, train, test, None, {}, Path("recipe.yaml"))
    return dict(yaml.safe_load(Path("recipe.yaml").read_text()))


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_passes_the_checks_of_a_search_unedited(make_inputs: MakeInputs, name: str) -> None:
    model, train, test = make_inputs(name)
    recipe = written(model, train, test)
    assert recipe["model"] == "model" and (recipe["task"]["train"], recipe["task"]["test"]) == (train, test)
    assert recipe["task"].items() >= CASES[name].task.items()
    assert recipe["workload"].get("sequence_length") == recipe["task"].get("max_length")
    space = check_recipe(Recipe.load("recipe.yaml")).recipe.space
    assert space != "auto" and {"num_hidden_layers", "num_attention_heads"} <= recipe["space"].keys()
    auto = check_recipe(Recipe.load("recipe.yaml", ["space=auto"])).recipe.space
    assert auto == space, "auto is another space than the one that was written"


SMALL = ("parent.epochs=1", "profile={samples: 10, precision: 0.5}", "search.evaluations=3", "baselines=[]")


@pytest.mark.parametrize("name", one_slow(CASES, "bert"))
def test_a_search_takes_a_written_recipe(make_inputs: MakeInputs, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, train, test = make_inputs(name)
    nas(monkeypatch, "init", model, "--train", train, "--test", test)
    nas(monkeypatch, "search", "recipe.yaml", *SMALL, "--run", "run")
    run = Run("run")
    assert len(run.front()) and not run.recipe.differences(Recipe.load("recipe.yaml", SMALL))
    nas(monkeypatch, "search", model, "--train", train, "--test", test, *SMALL, "--run", "run")
    auto = search(Recipe.load("recipe.yaml", ["space=auto", *SMALL]), "run")
    assert auto.recipe.space == run.recipe.space


def test_a_search_without_a_recipe_has_the_one_that_init_writes(
    make_inputs: MakeInputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, train, test = make_inputs("bert")
    written(model, train, test)
    proposed = recipe_of_run(model, Path("run"), train, test, None, ["search.evaluations=3"])
    assert not proposed.differences(Recipe.load("recipe.yaml", ["search.evaluations=3"]))
    nas(monkeypatch, "search", "recipe.yaml", "space=auto", "--dry-run")
    assert "num_hidden_layers:\n  - 1\n" in capsys.readouterr().out, "a dry run does not show the proposed space"
    assert not Path("run").exists() and not Path("runs").exists()
    with pytest.raises(InputError, match="--test"):
        recipe_of_run(model, Path("run"), train, None, None, [])


def test_bounds_become_constraints_and_their_dimensions_open(make_inputs: MakeInputs) -> None:
    model, train, test = make_inputs("bert")
    proposed = propose_recipe(model, train, test, bounds={"latency_ms": 5, "size_mb": 0.2})
    assert proposed.data["constraints"] == {"latency_ms": "<= 5", "size_mb": "<= 0.2"}
    assert "which is neither an objective" not in proposed.comments.get("space.embedding_rank", "")


def test_subnetworks_are_trained_together_only_if_the_model_has_no_weights(make_inputs: MakeInputs) -> None:
    model, train, test = make_inputs("bert")
    pretrained = propose_recipe(model, train, test)
    assert "supernet" not in pretrained.data and not Recipe.parse(pretrained.data).supernet.is_trained
    (Path(model) / "model.safetensors").unlink()
    assert propose_recipe(model, train, test).data["supernet"] == {"strategy": "single-path", "order": "none"}


def test_every_comment_stands_behind_its_key(make_inputs: MakeInputs) -> None:
    model, train, test = make_inputs("bert")
    written(model, train, test)
    lines = Path("recipe.yaml").read_text().splitlines()
    assert any(line.startswith("  max_length: 8 ") and "95 % of 108 examples" in line for line in lines)
    assert any(line.startswith("  # bits: ") for line in lines), "a dimension that was left out goes unsaid"
    assert max(map(len, lines)) < 130


def test_without_data_placeholders_are_to_be_filled_in(make_inputs: MakeInputs) -> None:
    make_inputs("bert")
    lines = init_recipe("model", None, None, None, {}, Path("recipe.yaml"))
    assert "fill in `task.train` and `task.test`" in lines[-1]
    assert Recipe.load("recipe.yaml").task.type == "text-classification"


# -- what the data says -----------------------------------------------------------------------------------------------

ROWS: dict[str, tuple[Callable[[str], dict[str, Any]], dict[str, Any]]] = {
    "a pair": (
        lambda s: {"premise": s, "hypothesis": s[::-1], "label": "yes" if "very" in s else "no"},
        {"type": "text-classification", "text": ["premise", "hypothesis"], "label": "label"},
    ),
    "classes in words, under another name": (
        lambda s: {"review": s, "verdict": s.split()[-1] in ("good", "fine"), "n": s.count("very") / 7},
        {"type": "text-classification", "text": "review", "label": "verdict"},
    ),
    "several labels": (
        lambda s: {"text": s, "labels": [w for w in ("very", "good") if w in s]},
        {"type": "text-classification", "text": "text", "label": "labels"},
    ),
    "numbers": (
        lambda s: {"text": s, "score": s.count("very") + 0.5},
        {"type": "text-classification", "text": "text", "label": "score"},
    ),
    "tags": (
        lambda s: {"tokens": s.split(), "ner_tags": tags(s)},
        {"type": "token-classification", "text": "tokens", "label": "ner_tags"},
    ),
    "answers": (
        lambda s: {"question": "good", "context": s, "answers": {"text": ["the"], "answer_start": [0]}},
        {"type": "question-answering", "text": ["question", "context"], "label": "answers"},
    ),
    "texts only": (lambda s: {"text": s}, {"type": "fill-mask", "text": "text"}),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_task_and_the_columns_follow_from_the_data(make_inputs: MakeInputs, name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, BertTokenizerFast

    row, task = ROWS[name]
    make_inputs("bert")
    config = AutoConfig.from_pretrained("model")
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained("bare")
    Path("vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast("vocab.txt").save_pretrained("bare")
    source = jsonl(tmp_path / "rows", [row(sentence) for sentence in SENTENCES])
    proposed = propose_recipe("bare", source, source)
    assert proposed.data["task"].items() >= task.items()
    metric = {"several labels": "f1", "numbers": "pearsonr", "tags": "f1", "answers": "f1", "texts only": "loss"}
    assert next(iter(proposed.data["objectives"])) == metric.get(name, "accuracy")


# -- bad input --------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "misspelt model": (("no-such/bert", "--train", "train.csv"), ("no-such/bert", "spelling")),
    "missing data": (("model", "--train", "nowhere.csv", "--test", "test.csv"), ("nowhere.csv",)),
    "unknown task": (("model", "--task", "text-clasification"), ("--task", "did you mean `text-classification`")),
    "a task of other models": (("model", "--task", "text-generation"), ("--task", "bert", "fill-mask")),
    "columns of no task": (
        ("model", "--train", "numbers.csv", "--test", "numbers.csv"),
        ("numbers.csv", "['a', 'b']", "--task"),
    ),
    "columns of another task": (
        ("model", "--task", "question-answering", "--train", "train.csv", "--test", "test.csv"),
        ("question-answering", "`answers`", "train.csv"),
    ),
    "a file that is there": (("model", "--out", "train.csv"), ("--out", "train.csv", "new")),
    "a folder that is not": (("model", "--out", "no/recipe.yaml"), ("--out", "no/recipe.yaml")),
    "no time at all": (("model", "--latency-ms", "0"), ("--latency-ms", "above 0")),
    "a size out of reach": (
        ("model", "--train", "train.csv", "--test", "test.csv", "--size-mb", "0.0001"),
        ("constraints.size_mb", "0.0001"),
    ),
}


def test_a_search_of_nothing_is_refused(make_inputs: MakeInputs, refused: Refused) -> None:
    model, train, test = make_inputs("bert")
    refused("search", model, "--train", train, says=("--test", "nas init"))
    refused("search", "recipe.yaml", "--train", train, "--test", test, says=("recipe.yaml", "task.train="))
    refused("search", "no-such/bert", "--train", train, "--test", test, says=("no-such/bert",))
    refused("search", model, says=("a recipe must be", "nas init"))
    assert not Path("runs").exists()


@pytest.mark.parametrize("case", BAD)
def test_bad_input_writes_nothing(make_inputs: MakeInputs, refused: Refused, case: str, tmp_path: Path) -> None:
    make_inputs("bert")
    csv(tmp_path / "numbers", [{"a": k / 7, "b": k / 3} for k in range(30)])
    before = contents(tmp_path)
    arguments, says = BAD[case]
    refused("init", *arguments, says=says)
    assert contents(tmp_path) == before


# -- the proposed space -----------------------------------------------------------------------------------------------

ALL_TOYS = {**TOYS, **VARIANTS}


@pytest.mark.parametrize("name", ALL_TOYS)
def test_a_proposed_space_holds_its_parent(name: str) -> None:
    from transformers import AutoConfig

    toy = ALL_TOYS[name]
    layout = Layout(AutoConfig.for_model(toy.model_type, **toy.config))
    tokens = layout.inputs.longest_sequence(512)
    facts = Facts(tokens, frozenset({"size_mb"}))
    choices = propose_choices(layout, facts).choices
    useful, dropped = useful_choices(choices, facts)
    space = layout.search_space(useful)
    assert not dropped and layout.parent in space and space.size >= 10
    for subnet in (space.smallest, space.largest):
        check_subnet(layout, subnet)
    widths = {"num_attention_heads", "intermediate_size"} - layout.family.fixed_reasons.keys()
    depths = depth_names(len(layout.depths))
    assert {*depths, *widths} <= choices.keys()


def layout_of(model_type: str, **config: Any) -> Layout:
    from transformers import AutoConfig

    return Layout(AutoConfig.for_model(model_type, **config))


def proposal(layout: Layout, tokens: int, **facts: Any) -> Proposal:
    return propose_choices(layout, Facts(tokens, frozenset({"size_mb"}), **facts))


def test_the_choices_follow_from_the_config_and_the_workload() -> None:
    bert = proposal(layout_of("bert"), 128, ties_embedding=True)
    assert bert.choices["num_hidden_layers"] == [4, 6, 8, 10, 12]
    assert bert.choices["num_attention_heads"] == [3, 6, 9, 12]
    assert bert.choices["intermediate_size"] == [768, 1536, 2304, 3072]
    assert bert.choices["hidden_size"] == [512, 640, 768]
    assert bert.choices["bits"] == ["int8", "float32"] and "shares the table" in bert.left_out["embedding_rank"]
    assert "3%" in bert.left_out["attention"]
    long = proposal(layout_of("bert"), 1024, unsupported_dtypes=dict.fromkeys(PROPOSED, "no kernels"))
    assert long.choices["attention"] == ["full", "local:128", "local:256"]
    assert long.choices["embedding_rank"] == [0.25, 0.5, "full"] and "no kernels" in long.left_out["bits"]
    assert "attention" in proposal(layout_of("bert"), 1024, is_decoding=True).left_out
    assert {"bits", "mlp_rank"} <= proposal(layout_of("bert", hidden_size=192), 128).left_out.keys()


def test_activations_of_a_decoder_are_not_proposed_to_be_integers() -> None:
    assert proposal(layout_of("llama"), 128).choices["bits"] == ["int8-weight", "float32"]
    slow = proposal(layout_of("llama"), 128, unsupported_dtypes={"int8-weight": "no size", "bfloat16": "no kernels"})
    assert slow.left_out["bits"] == "int8-weight: no size"


def test_heads_go_in_whole_groups() -> None:
    grouped = proposal(layout_of("llama", num_attention_heads=32, num_key_value_heads=8), 128).choices
    assert grouped["num_attention_heads"] == [8, 16, 24, 32] and "num_key_value_heads" not in grouped
    single = proposal(layout_of("llama", num_attention_heads=8, num_key_value_heads=1), 128).choices
    assert single["num_attention_heads"] == [2, 4, 6, 8] and single["num_key_value_heads"] == [1]


# -- the schema -------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent


def test_the_schema_fits_every_recipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    nas(monkeypatch, "schema")
    schema = json.loads(capsys.readouterr().out)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid({"model": "m", "task": {"type": "fill-mask", "train": "a", "test": "b"}})
    assert not validator.is_valid({"model": "m", "task": {"type": "fill-mask", "train": "a", "test": "b"}, "spce": 1})
    folder = ROOT / "experiments"
    recipes = [*folder.glob("*/recipe.yaml"), *folder.glob("compression-benchmark/[!f]*.yaml")]
    assert len(recipes) > 10
    for file in recipes:
        named = file.read_text().splitlines()[0].removeprefix("# yaml-language-server: $schema=")
        assert json.loads((file.parent / named).read_text()) == schema, file
        assert not list(validator.iter_errors(yaml.safe_load(file.read_text()))), file
