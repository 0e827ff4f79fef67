"""Vocabulary in every task: the same texts in fewer pieces, what the teacher says of them, bits per byte."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers_of_every_kind import KINDS, TEXTS_OF_FIVE
from toy_tasks import SENTENCES
from transformers import AutoTokenizer, pipeline

from nas.exports.export import export_subnet, save_model
from nas.pipeline import search
from nas.recipe.schema import Recipe
from nas.stages.check import check_recipe
from nas.supernets.distillation_trainer import DistillationTrainer, of_input_size
from nas.supernets.supernet import Supernet
from nas.supernets.training import training_arguments
from nas.tasks.blocks import Tokens
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from nas.tasks.losses import divergence
from search_spaces import InputError

CASES = {
    "single label": "WordPiece",
    "tags": "Unigram",
    "answers": "WordPiece",
    "masks": "WordPiece",
    "vectors": "character BPE",
    "scored pairs": "Unigram",
    "ranked": "WordPiece",
    "next words": "byte BPE",
    "pairs": "Unigram",
}
"""Case of `toy_tasks` -> a kind of tokenizer."""
Make = Callable[..., TaskContext]


@pytest.fixture
def spelled(make: Make) -> Make:
    """Makes a context for a case, with a tokenizer that spells what it has no pieces for."""

    def build(case: str, kind: str = "", metric: str | None = None, **task: Any) -> TaskContext:
        context = make(case, metric=metric, **{"max_length": 48, **task})
        path = Path(context.recipe.model).parent / f"{case.replace(' ', '-')}.yaml"
        give_tokenizer(Path(context.recipe.model), context, KINDS[kind or CASES[case]]([*TEXTS_OF_FIVE, *SENTENCES]))
        return TaskContext(Recipe.load(path))

    return build


def give_tokenizer(folder: Path, context: TaskContext, tokenizer: Any) -> None:
    """Puts another tokenizer into a model folder, and a table of its size into the model."""
    import transformers

    if context.has_no_weights:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(tokenizer)}))
    else:
        model = getattr(transformers, context.auto_class).from_pretrained(folder)
        model.resize_token_embeddings(len(tokenizer))
        shutil.rmtree(folder)
        model.save_pretrained(folder)
    for file in folder.glob("*token*"):
        file.unlink()
    if tokenizer.mask_token is None and context.recipe.task.type == "fill-mask":
        tokenizer.mask_token = tokenizer.convert_ids_to_tokens(len(tokenizer) - 1)
    tokenizer.save_pretrained(folder)


def smaller(context: TaskContext, spare: int = 9) -> str:
    """A vocabulary with so many pieces beyond those that always stay."""
    return str(context.vocabulary.stay + spare)


def trainer_on(context: TaskContext, size: str, folder: Path, teacher: Any) -> DistillationTrainer:
    settings = context.recipe.supernet
    return DistillationTrainer(
        model=teacher,
        task=context.splits.task,
        teacher=teacher,
        args=training_arguments(settings, folder, 0, by_length=False),
        train_dataset=context.training_set(settings),
        other_sizes=context.of_sizes([size], settings),
        input_size=size,
    )


@pytest.mark.parametrize("case", CASES)
def test_a_model_with_fewer_pieces_learns_and_is_scored_on_its_own_tokens(
    case: str, spelled: Make, tmp_path: Path
) -> None:
    """With the teacher's own weights it has nothing to learn from it: outputs of tokens compare on the same ones."""
    context = spelled(case)
    size, model = smaller(context, 1), context.load_model().eval()
    supernet = Supernet(model, vocabulary=context.vocabulary)
    trainer = trainer_on(context, size, tmp_path / "work", context.load_model())
    batch = trainer.data_collator([trainer.train_dataset[k] for k in (0, 1, 2)])
    inputs, _ = trainer.pop_row_index(batch)
    own = of_input_size(inputs, size)
    assert own["input_ids"].shape[1] > of_input_size(inputs, "full")["input_ids"].shape[1]
    supernet.activate(supernet.parent.with_values(vocabulary=size))
    with torch.no_grad():
        outputs = trainer.task.forward(model, own)
    assert math.isfinite(float(outputs.loss))
    found = trainer.logits_and_labels(outputs, own)
    if context.task.labels_tokens:
        assert trainer.teacher is not None
        teacher, _ = trainer.teacher_on_pieces(inputs, size, trainer.teacher)
        distance = divergence(found, teacher, trainer.task.activation, 1.0)
        assert abs(float(distance)) < 1e-5
        other = [(logits.flip(-1), labels) for logits, labels in teacher]
        assert float(divergence(found, other, trainer.task.activation, 1.0)) > 1e-4
    metrics = [name for name in context.recipe.metric_names if name not in ("accuracy", "exact_match")]
    for name, one in score(model, context.of_size(size).splits.search, metrics or ["loss"]).items():
        assert math.isfinite(one.value), name
    assert float(trainer.compute_loss(model, batch)) >= 0


@pytest.mark.parametrize("case", ["vectors", "scored pairs"])
def test_labels_from_the_parent_are_those_of_its_own_tokens(case: str, spelled: Make) -> None:
    context = spelled(case)
    own = context.of_size(smaller(context, 2)).splits.search
    labels = [torch.cat([batch["labels"] for batch in each.batches]) for each in (context.splits.search, own)]
    longest = [max(batch["input_ids"].shape[1] for batch in each.batches) for each in (context.splits.search, own)]
    assert longest[1] > longest[0]
    norms = [each.norm(dim=1).sort().values for each in labels]
    assert torch.allclose(*norms, atol=1e-5) and norms[0].std() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_with_fewer_pieces_loads_everywhere(kind: str, spelled: Make, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    context = spelled("vectors", kind)
    supernet = Supernet(context.load_model().eval(), vocabulary=context.vocabulary)
    subnet = supernet.parent.with_values(vocabulary=smaller(context, 2))
    save_model(supernet.extract(subnet), context, tmp_path)
    context.save_processor(tmp_path, subnet)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == int(subnet.vocabulary) and type(tokenizer) is type(context.of(subnet).processor)
    for text in TEXTS_OF_FIVE:
        same = context.processor.decode(context.processor(text)["input_ids"], skip_special_tokens=True)
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == same
    (tokens,) = pipeline("feature-extraction", str(tmp_path), trust_remote_code=True)(SENTENCES[0])
    vector = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True).encode(SENTENCES[0])
    assert len(tokens) == len(tokenizer(SENTENCES[0])["input_ids"])
    assert np.allclose(np.mean(tokens, 0), vector, atol=1e-4), "the mean over tokens"


# -- language models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_hold_the_same_texts_and_their_bytes(kind: str) -> None:
    from nas.tasks.trimmed_tokenizer import trimmed_tokenizer
    from nas.tasks.vocabulary import Vocabulary

    tokenizer, texts = KINDS[kind](), [*SENTENCES[:9], "zwölf Größen 今日は", "", "a  b"]
    vocabulary = Vocabulary.by_use(tokenizer, np.zeros(1))
    small = trimmed_tokenizer(tokenizer, vocabulary.kept(str(vocabulary.stay + 9)))
    full, own = Tokens.of(tokenizer, texts), Tokens.of(small, texts)
    blocks = full.blocks(10)
    same = own.same_text(full, blocks, None)
    assert len(own.ids) > len(full.ids) and len(blocks) == len(same) and same[0].start == 0
    assert all(one.stop == two.start for one, two in pairwise(same))
    total = sum(len(text.encode()) for text in texts)
    assert full.ends[-1] <= total and own.ends[-1] == full.ends[-1] >= total - 1
    for one, two in zip(blocks, same, strict=True):
        assert own.starts[two.start] == full.starts[one.start]
        ends = [tokens.ends[block][-1] for tokens, block in ((full, one), (own, two))]
        assert abs(ends[0] - ends[1]) <= 4, "a character may be cut in the middle"
        assert full.bytes_after(1, one) == full.ends[one][-1] - full.ends[one][0]
    assert max(block.stop - block.start for block in own.same_text(full, blocks, 12)) == 12


def test_bits_per_byte_are_those_of_the_text(spelled: Make) -> None:
    context = spelled("next words", metric="bits_per_byte", max_length=16)
    size = smaller(context, 9)
    model = context.load_model().eval()
    supernet, found = Supernet(model, vocabulary=context.vocabulary), []
    for each, vocabulary in ((context, "full"), (context.of_size(size), size)):
        supernet.activate(supernet.parent.with_values(vocabulary=vocabulary))
        examples = each.splits.search
        value = score(model, examples, ["bits_per_byte"])["bits_per_byte"].value
        bits = n_bytes = 0.0
        for batch in examples.batches:
            for ids in batch["labels"]:
                ids = ids[ids >= 0]
                with torch.no_grad():
                    scores = model(input_ids=ids[None, :-1]).logits.log_softmax(-1)[0]
                bits -= float(scores.gather(1, ids[1:, None]).sum()) / math.log(2)
                n_bytes += len(each.processor.decode(ids[1:]).encode())
        assert value == pytest.approx(bits / n_bytes, rel=0.02)
        found.append((value, score(model, examples, ["loss"])["loss"].value))
    assert found[1][1] > 0 and found[0][0] != found[1][0]


def test_a_mean_over_tokens_does_not_compare_between_vocabularies(spelled: Make) -> None:
    context = spelled("next words", metric="loss")
    space = context.recipe.space.model_copy(update={"vocabulary": [smaller(context), "full"]})
    values = {"loss": "minimize", "size_mb": "minimize"}
    recipe = context.recipe.model_copy(update={"space": space, "objectives": values})
    with pytest.raises(InputError, match=r"`space.vocabulary` must be left out .* name `loss`.* `bits_per_byte`"):
        check_recipe(recipe)


# -- runs -------------------------------------------------------------------------------------------------------------


METRICS = {"next words": "bits_per_byte", "masks": "bits_per_byte", "tags": "f1", "vectors": "cosine_similarity"}


@pytest.mark.full
@pytest.mark.parametrize("case", METRICS)
def test_a_search_over_vocabularies_in_other_tasks(case: str, spelled: Make, tmp_path: Path) -> None:
    metric = METRICS[case]
    context = spelled(case, metric=metric)
    sizes = [int(smaller(context)), int(smaller(context, 18))]
    text = yaml.safe_load((Path(context.recipe.model).parent / f"{case.replace(' ', '-')}.yaml").read_text())
    text["space"] = {"num_hidden_layers": [1, 2], "intermediate_size": [16, 32, 96], "vocabulary": [*sizes, "full"]}
    text["objectives"] = {metric: "minimize" if metric == "bits_per_byte" else "maximize", "size_mb": "minimize"}
    text |= {"finish": {"models": 2, "epochs": 2, "batch_size": 8}, "search": {"evaluations": 16}}
    text |= {"profile": {"samples": 10, "precision": 0.5}, "parent": {} if case == "vectors" else text["parent"]}
    run = search(Recipe.parse(text), tmp_path / "run")
    points = [point for point in run.verified_points() if point.subnet.changes("vocabulary")]
    assert points
    point = min(points, key=lambda each: each.values["size_mb"])
    folder = export_subnet(run, point, tmp_path / "export", [])
    size = (folder / "model.safetensors").stat().st_size
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert size == round(1e6 * point.values["size_mb"]) and len(tokenizer) == int(point.subnet.vocabulary)
    if case in ("next words", "tags", "vectors"):
        settings = {"max_new_tokens": 4} if case == "next words" else {}
        use = pipeline(context.recipe.task.type, str(folder), trust_remote_code=True)
        answer = use("the film is very good", **settings)
        assert len(answer) >= 1
    if case == "vectors":
        from sentence_transformers import SentenceTransformer

        vectors = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True).encode(SENTENCES[:2])
        assert vectors.shape[0] == 2 and np.isfinite(vectors).all()
