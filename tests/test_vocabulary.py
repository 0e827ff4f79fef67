"""Vocabulary: tokenizers of every kind with fewer pieces, the rows of the table, training and a run with them."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from samples import sampled
from test_rank import assert_features_explain
from tokenizers import Tokenizer, models
from tokenizers_of_every_kind import KINDS, TEXTS_OF_FIVE, word_piece
from toys import TOYS, VARIANTS, WORDS, context_of
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from nas.exports.check import check_folder
from nas.exports.export import export_subnet
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.supernets.distillation_trainer import OTHER_SIZES, of_input_size
from nas.supernets.space import recipe_choices
from nas.supernets.supernet import Supernet
from nas.tasks.trimmed_tokenizer import parents_of, specification, trimmed_tokenizer
from nas.tasks.vocabulary import Vocabulary
from predictors import AnalyticCosts
from search_spaces import FAMILIES, TASKS, InputError, Layout, SearchSpace, SubnetConfig
from search_spaces.dimension import Facts
from search_spaces.proposal import propose_choices

HAVE_PIECES = ("text-generation", "text2text-generation", "fill-mask")
"""Tasks whose logits have one entry for each piece."""
PARENT = SubnetConfig.uniform((0, 1, 2), num_attention_heads=4, intermediate_size=16, hidden_size=24)


def by_use(tokenizer: Any, texts: list[str]) -> Vocabulary:
    ids = np.concatenate([tokenizer(text)["input_ids"] for text in texts])
    return Vocabulary.by_use(tokenizer, np.bincount(ids, minlength=len(tokenizer)))


def trimmed(tokenizer: Any, spare: int) -> tuple[Any, np.ndarray]:
    """A tokenizer with the pieces that stay and so many more, by their use in the first two texts."""
    vocabulary = by_use(tokenizer, TEXTS_OF_FIVE[:2])
    kept = vocabulary.kept(str(vocabulary.stay + spare))
    return trimmed_tokenizer(tokenizer, kept), kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spare", [0, 20])
def test_texts_of_five_languages_come_back_and_nothing_becomes_unknown(kind: str, spare: int, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    small, kept = trimmed(tokenizer, spare)
    assert len(small) == len(kept) < len(tokenizer) and type(small) is type(tokenizer)
    small.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS_OF_FIVE, "foxes größer булок jumpingly über", "dogs' lazily-quick"]:
        ids, own = tokenizer(text)["input_ids"], small(text)["input_ids"]
        assert small.decode(own) == tokenizer.decode(ids) and reloaded(text)["input_ids"] == own
        assert own.count(small.unk_token_id) == ids.count(tokenizer.unk_token_id)
        pieces = [tokenizer.convert_ids_to_tokens(int(kept[i])) for i in own]
        assert pieces == small.convert_ids_to_tokens(own), "id k is the k-th of the kept"
    for name in ("bos_token", "pad_token", "eos_token", "unk_token"):
        assert getattr(small, name) == getattr(tokenizer, name)


def test_pieces_are_kept_by_their_use() -> None:
    tokenizer = word_piece()
    counts = np.random.default_rng(0).integers(9, size=len(tokenizer))
    vocabulary = Vocabulary.by_use(tokenizer, counts)
    assert sorted(vocabulary.order) == list(range(len(tokenizer)))
    assert (np.diff(counts[vocabulary.order[vocabulary.stay :]]) <= 0).all()
    assert set(tokenizer.all_special_ids) <= set(vocabulary.kept(str(vocabulary.stay)))


@pytest.mark.parametrize("kind", ["byte BPE", "character BPE"])
def test_merges_stay_closed_at_every_size(kind: str) -> None:
    tokenizer = KINDS[kind]()
    vocabulary, parents = by_use(tokenizer, TEXTS_OF_FIVE[:2]), parents_of(specification(tokenizer))
    place = {tokenizer.convert_ids_to_tokens(int(i)): k for k, i in enumerate(vocabulary.order)}
    assert len(parents) > 50 and all(place[p] < place[piece] for piece, pair in parents.items() for p in pair)
    small, _ = trimmed(tokenizer, 30)
    spec = specification(small)
    for piece in set(spec["model"]["vocab"]) & parents.keys():
        assert small.backend_tokenizer.model.tokenize(piece)[0].value == piece, "every piece that is kept is reached"


def test_a_piece_with_a_character_that_has_none_of_its_own_stays() -> None:
    backend = Tokenizer(
        models.WordPiece({"<unk>": 0, "a": 1, "##a": 2, "b": 3, "##bx": 4, "aa": 5}, unk_token="<unk>")
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    vocabulary = Vocabulary.by_use(tokenizer, np.zeros(6))
    assert set(vocabulary.order[: vocabulary.stay]) == {0, 1, 2, 3, 4} and vocabulary.order[5] == 5
    with pytest.raises(InputError, match=r"`vocabulary` must lie between the 5 pieces that always stay .* but got 3"):
        vocabulary.kept("3")
    slow = SimpleNamespace()
    with pytest.raises(InputError, match="needs a fast tokenizer"):
        specification(slow)


# -- the model --------------------------------------------------------------------------------------------------------


WITH_PIECES = [name for name, family in FAMILIES.items() if family.has_vocabulary]


@pytest.mark.parametrize(
    ("name", "task"),
    sampled(
        [
            *((name, task) for name in WITH_PIECES for task in FAMILIES[name].tasks),
            *(
                (name, FAMILIES[toy.model_type].tasks[0])
                for name, toy in VARIANTS.items()
                if toy.model_type in WITH_PIECES
            ),
        ],
        lambda name, task: task in ("text-generation", "text2text-generation", "fill-mask") or name == "bert",
    ),
)
@pytest.mark.parametrize("changes", [{}, {"num_hidden_layers": 2, "num_decoder_layers": 3, "hidden_size": 24}])
def test_rows_of_the_table_and_of_the_head_follow_the_tokenizer(
    name: str, task: str, changes: dict[str, int], tmp_path: Path
) -> None:
    """The reference is the supernet with all pieces, on the same pieces under their old ids."""
    toy = {**TOYS, **VARIANTS}[name]
    model = toy.model(task)
    vocabulary = Vocabulary(np.array([0, 1, 2, 3, 4, 18, *range(17, 6, -1), 5, 6]), 5)
    supernet = Supernet(model, vocabulary=vocabulary)
    choices = {key: [value] for key, value in changes.items() if key in supernet.family.dimensions}
    full = supernet.layout.search_space({"scope": "uniform", **choices}).largest
    subnet, kept = full.with_values(vocabulary=12), torch.from_numpy(vocabulary.kept("12"))
    new = {n: ids.clamp(max=11) if n.endswith("input_ids") else ids for n, ids in toy.inputs().items()}
    old = {n: kept[ids] if n.endswith("input_ids") else ids for n, ids in new.items()}
    supernet.activate(full)
    with torch.inference_mode():
        expected = supernet.model(**old)
    supernet.activate(subnet)
    extracted = supernet.extract(subnet)
    extracted.save_pretrained(tmp_path)
    for other in (supernet.model, extracted):
        with torch.inference_mode():
            found = other(**new)
        for output in TASKS[task].outputs:
            target = expected[output][..., kept] if task in HAVE_PIECES else expected[output]
            assert torch.allclose(found[output], target, atol=1e-5)
        assert other.config.vocab_size == 12
    costs = AnalyticCosts.from_model(supernet.model, supernet.layout, task).count(
        ["size_mb", "num_parameters"], [subnet]
    )
    assert round(1e6 * costs["size_mb"][0]) == (tmp_path / "model.safetensors").stat().st_size
    assert costs["num_parameters"][0] == extracted.num_parameters()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ids_in_the_configs_follow_the_tokenizer(family: str) -> None:
    """GPT-2 pads with its last piece."""
    model = TOYS[family].model("text-generation")
    last = len(WORDS) - 1
    model.config.pad_token_id = last
    model.generation_config.update(eos_token_id=[2, last], pad_token_id=last, suppress_tokens=None)
    supernet = Supernet(model, vocabulary=Vocabulary(np.array([0, 1, 2, 3, last, *range(17, 3, -1), 18]), 5))
    subnet = supernet.parent.with_values(vocabulary=12)
    extracted = supernet.extract(subnet)
    assert extracted.config.pad_token_id == 11 and extracted.generation_config.eos_token_id == [2, 11]
    supernet.activate(subnet)
    assert supernet.model.generation_config.pad_token_id == supernet.model.config.pad_token_id == 11
    supernet.activate(supernet.parent)
    assert supernet.model.generation_config.eos_token_id == [2, last] and supernet.model.config.pad_token_id == last


def test_only_the_rows_that_are_kept_learn() -> None:
    supernet = Supernet(TOYS["bert"].model(), vocabulary=Vocabulary(np.array([0, 1, 2, 3, *range(19, 3, -1)]), 4))
    supernet.activate(supernet.parent.with_values(vocabulary="8"))
    supernet.model(input_ids=torch.tensor([[2, 5, 7, 3]]), labels=torch.tensor([1])).loss.backward()
    gradient = supernet.embedding._parameters["weight"].grad  # type: ignore[union-attr]
    assert gradient is not None and gradient.abs().sum(1).nonzero()[:, 0].tolist() == [2, 3, 17, 19]


def test_fewer_pieces_need_an_order() -> None:
    supernet = Supernet(TOYS["bert"].model())
    with pytest.raises(InputError, match="no order"):
        supernet.activate(supernet.parent.with_values(vocabulary="12"))


# -- the space --------------------------------------------------------------------------------------------------------


def test_values_that_cannot_be_say_so(text_recipe: Path) -> None:
    def useful(*overrides: str, **task: str) -> tuple[Any, list[str]]:
        recipe = Recipe.load(text_recipe, ["space.vocabulary=[full, 16, 12]", *overrides])
        recipe = recipe.model_copy(update={"task": recipe.task.model_copy(update=task)})
        layout = Supernet(TOYS["bert"].model()).layout
        choices, reasons = recipe_choices(context_of(recipe, layout))
        return layout.search_space(choices).choices["vocabulary"], reasons

    size = "objectives={accuracy: maximize, size_mb: minimize}"
    assert useful(size) == (("12", "16", "full"), [])
    assert useful()[0] == ("full",) and "vocabulary 16, 12 dropped: it only reduces" in useful()[1][0]
    with pytest.raises(InputError, match=r"`vocabulary` must be `full` or a number of pieces above 0, but got `few`"):
        useful(size, "space.vocabulary=[few]")
    with pytest.raises(InputError, match=r"at most the 20 pieces of the parent, but got 21"):
        useful(size, "space.vocabulary=[21]")


def test_it_is_one_choice_of_the_subnetwork_and_older_keys_stay() -> None:
    assert "vocabulary" not in PARENT.to_dict() and "vocabulary" not in str(PARENT)
    small = PARENT.with_values(vocabulary=8000)
    assert small.vocabulary == "8000" and "vocabulary 8000" in str(small) and small.key != PARENT.key
    assert SubnetConfig.from_dict(small.to_dict()) == small
    space = SearchSpace(PARENT, num_hidden_layers=[1, 2, 3], vocabulary=["full", 8000, 16000])
    assert space.parameters["vocabulary"] == ("8000", "16000", "full") and space.largest.vocabulary == "full"
    assert space.parameters.to_subnet(space.parameters.from_subnet(space.smallest)) == space.smallest
    subnets = [space.sample(Random(k)) for k in range(300)]
    growth = {"8000": 1.3, "16000": 1.1, "full": 1.0}
    law = np.array([1 + growth[s.vocabulary] * len(s.layers) for s in subnets])
    assert_features_explain(space, subnets, law)


def test_a_large_table_is_proposed_with_fewer_pieces() -> None:
    def proposed(vocabulary: int, fewest: int = 0) -> Any:
        config = copy.deepcopy(TOYS["bert"].model().config)
        config.vocab_size = vocabulary
        facts = Facts(tokens=16, value_names=frozenset({"size_mb"}), fewest_pieces=fewest)
        proposal = propose_choices(Layout(config), facts)
        return proposal.choices.get("vocabulary") or proposal.left_out["vocabulary"]

    assert proposed(8000) == [2000, 4000, "full"]
    assert proposed(8000, 3000) == [4000, "full"] and proposed(2400) == [1200, "full"]
    assert proposed(1000) == "of its 1000 pieces 1000 must stay" and "of the weights" in proposed(20)


# -- training and a run -----------------------------------------------------------------------------------------------

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def spelled_recipe(text_recipe: Path) -> Path:
    """The toy recipe with a tokenizer that can also spell every word, and a space of vocabularies."""
    from transformers import BertTokenizerFast

    folder = text_recipe.parent
    pieces = [*WORDS, *LETTERS.replace("a", ""), *(f"##{letter}" for letter in LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**config, "vocab_size": len(pieces)}))
    recipe = yaml.safe_load(text_recipe.read_text())
    recipe["space"] = {"num_hidden_layers": [2, 4], "intermediate_size": [24, 96], "vocabulary": [57, 62, "full"]}
    recipe["space"]["embedding_bits"] = ["full", 8, "pq:12"]
    recipe |= {"objectives": {"accuracy": "maximize", "size_mb": "minimize"}}
    recipe["task"]["max_length"] = 48
    text_recipe.write_text(yaml.safe_dump(recipe))
    return text_recipe


def test_a_context_has_the_same_rows_in_the_tokens_of_each_vocabulary(spelled_recipe: Path) -> None:
    from nas.supernets.training import model_trainer
    from nas.tasks.context import TaskContext

    context = TaskContext(Recipe.load(spelled_recipe))
    own = context.of_size("57")
    assert own is context.of_size("57") and context.of_size("full") is context and own.config.vocab_size == 57
    texts = [context.processor.decode(row, skip_special_tokens=True) for row in context.splits.train["input_ids"]]
    again = [own.processor.decode(row, skip_special_tokens=True) for row in own.splits.train["input_ids"]]
    assert texts == again and context.splits.train["labels"] == own.splits.train["labels"]
    subnet = context.layout.parent.with_values(vocabulary="57")
    longer = context.workload_inputs(subnet, context.recipe.workload)["input_ids"].shape[1]
    mean = [np.mean([len(row) for row in each.splits.train["input_ids"]]) for each in (context, own)]
    assert longer == math.ceil(16 * mean[1] / mean[0]) > 32

    settings = context.recipe.finish
    trainer = model_trainer(
        context.load_model(),
        settings,
        spelled_recipe.parent / "work",
        context.training_set(settings),
        context.splits.task,
        seed=0,
        other_sizes=context.of_sizes(["57", "full"], settings),
        input_size="57",
    )
    rows = [trainer.train_dataset[k] for k in (3, 1)]
    batch = trainer.data_collator(rows)
    assert batch[OTHER_SIZES].keys() == {"57"}
    for size, each in (("57", own), ("full", context)):
        ids = of_input_size(batch, size)["input_ids"]
        assert [each.processor.decode(row, skip_special_tokens=True) for row in ids] == [texts[3], texts[1]]


@pytest.mark.slow
def test_a_search_over_vocabularies_end_to_end(spelled_recipe: Path, tmp_path: Path) -> None:
    overrides = ["search.evaluations=24", "finish.models=2", "space.vocabulary=[57, 62]", "baselines=[layer-drop]"]
    run = search(Recipe.load(spelled_recipe, overrides), tmp_path / "run")
    points = [point for point in run.verified_points() if point.subnet.changes("vocabulary")]
    assert {point.subnet.vocabulary for point in points} <= {"57", "62"} and points
    assert (run.supernet / "vocabulary.json").is_file() and any(point.finished for point in points)
    for number, point in enumerate((points[0], next(point for point in points if point.finished))):
        folder = export_subnet(run, point, tmp_path / f"export{number}", ["onnx"])
        model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
        assert model.config.vocab_size == int(point.subnet.vocabulary) == len(AutoTokenizer.from_pretrained(folder))
        answer = pipeline("text-classification", str(folder), trust_remote_code=True)("the film is very good")
        assert answer[0]["score"] > 0
        size = (folder / "model.safetensors").stat().st_size
        assert size == round(1e6 * point.values["size_mb"])
    assert not check_folder(folder, run)[1], "of a finished model"
