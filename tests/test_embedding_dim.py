"""Prefixes of a text's vector: the parent's first channels, nothing else computed, exported at their width."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from toy_tasks import SENTENCES, Make, encoder
from toys import TOYS, bert, context_of

from nas.commands.finetune import finetune
from nas.exports.export import enable_remote_code, export_subnet, save_subnet
from nas.exports.reload import run_onnx, run_openvino, run_program
from nas.pipeline import search
from nas.recipe.objectives import format_value
from nas.recipe.schema import Recipe
from nas.stages.check import check_recipe
from nas.studies.block_search import blocks
from nas.supernets.space import propose_space, recipe_choices
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from nas.tasks.losses import divergence
from nas.tasks.sentence_modules import SentenceModules
from predictors import AnalyticCosts
from predictors.measurement.runtimes import FORMATS
from search_spaces import InputError, SearchSpace, SubnetBatch, SubnetConfig
from search_spaces.svg import svg

PARENT = SubnetConfig.uniform((0, 1, 2), num_attention_heads=4, intermediate_size=16, hidden_size=24)
SMALL = SubnetConfig.uniform((1, 3), num_attention_heads=2, intermediate_size=24, hidden_size=48, embedding_dim=20)
SHORT = {"cosine_similarity": "maximize", "embedding_dim": "minimize"}


def hidden_states(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        hidden: torch.Tensor = model(**inputs).last_hidden_state
    return hidden


def with_recipe(context: TaskContext, **sections: Any) -> Recipe:
    data = context.recipe.model_dump(mode="json", exclude_none=True)
    del data["parent"]["epochs"]
    data["task"]["search_examples"] = 20
    return Recipe.parse({**data, **sections})


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "mpnet"])
def test_a_vector_is_the_start_of_the_parents_and_costs_nothing_else(family: str) -> None:
    toy = TOYS[family]
    parent = toy.model("feature-extraction")
    supernet, inputs = Supernet(copy.deepcopy(parent)), toy.inputs()
    for size in (12, 48, 20):
        supernet.activate(supernet.parent.with_values(embedding_dim=size))
        whole, cut = hidden_states(parent, inputs), hidden_states(supernet.model, inputs)
        assert torch.allclose(cut, whole[..., :size], atol=1e-6)
        assert torch.equal(supernet.model(**inputs, return_dict=False)[0], cut)
    costs = AnalyticCosts.from_model(supernet.model, supernet.layout, "feature-extraction")
    pair = [supernet.parent, supernet.parent.with_values(embedding_dim=20)]
    for name, (full, short) in costs.count(costs.cost_names, pair).items():
        assert (full, short) == (48, 20) if name == "embedding_dim" else full == short > 0


def test_a_head_reads_the_hidden_states_whole(tmp_path: Path) -> None:
    supernet = Supernet(bert())
    with pytest.raises(InputError, match="must stay whole: the head of BertForSequenceClassification reads them"):
        supernet.activate(supernet.parent.with_values(embedding_dim=24))
    bare, inputs = Supernet(TOYS["bert"].model("feature-extraction")), TOYS["bert"].inputs()
    whole = bare.parent.with_values(mlp_rank=(100,) * 4, intermediate_size=(96, 48, 96, 96))
    model = bare.extract(whole.with_values(embedding_dim=24))
    enable_remote_code(model, "AutoModel")
    model.save_pretrained(tmp_path)
    from transformers import AutoModel, AutoModelForTokenClassification

    options = {"trust_remote_code": True, "num_labels": 3}
    headed = AutoModelForTokenClassification.from_pretrained(tmp_path, **options).eval()
    assert headed(**inputs).logits.shape[-1] == 3
    bare.activate(whole)
    expected = hidden_states(bare.model, inputs)
    assert torch.allclose(hidden_states(headed.base_model, inputs), expected, atol=1e-5)
    reloaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert torch.allclose(hidden_states(reloaded, inputs), expected[..., :24], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "package", "run"),
    [("onnx", "onnxscript", run_onnx), ("program", "torch", run_program), ("openvino", "openvino", run_openvino)],
)
def test_files_of_runtimes_have_the_same_width(name: str, package: str, run: Any, tmp_path: Path) -> None:
    pytest.importorskip(package)
    supernet = Supernet(TOYS["bert"].model("feature-extraction"))
    model, inputs = supernet.extract(SMALL), TOYS["bert"].inputs()
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    expected = hidden_states(model, inputs)
    FORMATS[name].write(model, dict(inputs), tmp_path / Path(FORMATS[name].file).name)
    outputs = run(str(tmp_path / Path(FORMATS[name].file).name), "AutoModel", inputs)
    real = inputs["attention_mask"].bool()
    assert outputs["last_hidden_state"].shape == (3, 12, 20)
    assert torch.allclose(outputs["last_hidden_state"][real], expected[real], atol=1e-4)


# -- the task ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
def test_sentence_transformers_gives_the_short_vectors(make: Make, tmp_path: Path, normalize: bool) -> None:
    library = pytest.importorskip("sentence_transformers")
    context = make("vectors")
    folder = Path(context.recipe.model)
    SentenceModules().write(folder, 48, 64)
    modules = json.loads((folder / "modules.json").read_text())
    more = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}
    (folder / "modules.json").write_text(json.dumps([*modules, *[more] * normalize]))
    supernet, task = Supernet(context.load_model()), context.splits.task
    save_subnet(supernet, SMALL, context, tmp_path / "small")
    supernet.activate(SMALL)
    tokens = task.tokenize(SENTENCES[:5])
    batch = task.collate([{name: values[row] for name, values in tokens.items()} for row in range(5)])
    with torch.no_grad():
        expected = task.embeddings(supernet.model.eval()(**batch), batch).numpy()
    loaded = library.SentenceTransformer(str(tmp_path / "small"), device="cpu", trust_remote_code=True)
    assert loaded.get_embedding_dimension() == 20 == expected.shape[1]
    assert np.abs(loaded.encode(SENTENCES[:5]) - expected).max() < 1e-5
    assert not normalize or np.allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)


def test_the_teacher_of_a_short_vector_is_the_start_of_its_own_and_its_whole_similarities() -> None:
    teacher = torch.randn(6, 8)
    similarities = (F.normalize(teacher) @ F.normalize(teacher).T)[~torch.eye(6, dtype=torch.bool)].view(6, 5)

    def distance(student: torch.Tensor) -> float:
        return float(divergence([(student, student)], [(teacher, teacher)], "embedding", 1.0))

    assert distance(teacher) == pytest.approx(0, abs=1e-6)
    own = F.normalize(teacher[:, :3])
    found = F.log_softmax((own @ own.T)[~torch.eye(6, dtype=torch.bool)].view(6, 5) / 0.05, -1)
    target = F.log_softmax(similarities / 0.05, -1)
    lost = 1 - float((teacher[:, :3].norm(dim=1) / teacher.norm(dim=1)).mean())
    expected = lost + float((target.exp() * (target - found)).sum(1).mean())
    assert distance(teacher[:, :3]) == pytest.approx(expected, rel=1e-4)
    assert distance(teacher[:, 1:4]) > distance(teacher[:, :3]) + 0.1


def test_a_short_vector_is_as_near_to_the_parents_as_the_components_that_it_keeps(make: Make) -> None:
    context = make("vectors")
    supernet = Supernet(context.load_model())
    names = ["cosine_similarity", "top10_agreement", "loss"]
    supernet.activate(supernet.parent.with_values(embedding_dim=6))
    found = {name: each.value for name, each in score(supernet.model, context.splits.test, names).items()}
    whole = torch.cat([batch["labels"] for batch in context.splits.test.batches])
    kept = float((whole[:, :6].norm(dim=1) / whole.norm(dim=1)).mean())
    assert found["cosine_similarity"] == pytest.approx(kept, abs=1e-5)
    assert found["loss"] == pytest.approx(1 - kept, abs=1e-5)
    assert 0 < found["top10_agreement"] < 0.99  # neighbours by six components are not those by all


# -- the space --------------------------------------------------------------------------------------------------------


def test_a_subnetwork_of_older_runs_keeps_its_key() -> None:
    assert "embedding_dim" not in PARENT.to_dict() and "embedding" not in f"{PARENT} {svg(PARENT)}"
    assert PARENT.embedding_dim == 24 and PARENT.with_values(hidden_size=12).embedding_dim == 12
    short = PARENT.with_values(embedding_dim=6)
    assert short.key != PARENT.key and "embedding dim 6" in str(short) and "embedding dim" in svg(short)
    assert SubnetConfig.from_dict(short.to_dict()) == short and short.with_values(hidden_size=12).embedding_dim == 6
    for wrong in (0, 25):
        with pytest.raises(InputError, match="must lie between 1 and the hidden size, 24, but got"):
            PARENT.with_values(embedding_dim=wrong)


@pytest.mark.parametrize("scope", ["uniform", "per-layer"])
def test_it_is_one_choice_of_the_subnetwork(scope: Any) -> None:
    without = SearchSpace(PARENT, num_hidden_layers=[1, 2, 3], intermediate_size=[8, 16], scope=scope)
    space = SearchSpace(**{**without.arguments(), "embedding_dim": [6, 12, 24]})
    assert space.size == 3 * without.size and space.parameters["embedding_dim"] == (6, 12, 24)
    assert {space.sample(Random(k)).embedding_dim for k in range(40)} == {6, 12, 24}
    assert space.smallest.embedding_dim == 6 and space.largest == without.largest
    assert all(subnet.embedding_dim == 24 for subnet in space.uniform_scalings())
    assert space.smallest in space and space.smallest not in without and without.largest in space
    assert without.parameters.encode([PARENT]).shape[1] + 1 == space.parameters.encode([PARENT]).shape[1]
    assert space.parameters.encode([space.smallest, PARENT])[:, -1].tolist() == [0.25, 1]


@pytest.mark.parametrize("scope", ["uniform", "per-layer"])
def test_no_vector_is_wider_than_the_hidden_size(scope: Any) -> None:
    space = SearchSpace(PARENT, hidden_size=[12, 18, 24], embedding_dim=[6, 12, 24], scope=scope)
    found = [space.sample(Random(k)) for k in range(60)] + [space.sample_mixed(Random(k)) for k in range(60)]
    pairs = {(subnet.hidden_size, subnet.embedding_dim) for subnet in found}
    assert pairs == {(12, 6), (12, 12), (18, 6), (18, 12), (24, 6), (24, 12), (24, 24)}
    assert all(subnet in space for subnet in found)
    vectors = np.array([[hidden, dim] for hidden in range(3) for dim in range(3)])
    batch = space.parameters.to_batch(vectors)
    assert {(s.hidden_size, s.embedding_dim) for s in batch} == pairs
    again = SubnetBatch.from_subnets(list(batch), 3)
    assert all(np.array_equal(again.subnet_values[name], batch.subnet_values[name]) for name in batch.subnet_values)
    assert all(space.parameters.to_subnet(space.parameters.from_subnet(subnet)) == subnet for subnet in found)
    assert space.size == len(pairs)
    if scope == "uniform":
        assert len(list(space)) == len({*space}) == space.size
    fixed = SearchSpace(PARENT, hidden_size=[12, 24], scope=scope)
    assert {(s.hidden_size, s.embedding_dim) for s in (fixed.smallest, fixed.largest)} == {(12, 12), (24, 24)}
    assert fixed.smallest in fixed and fixed.smallest.with_values(embedding_dim=6) not in fixed
    assert [s.embedding_dim for s in fixed.parameters.to_batch(np.array([[0], [1]]))] == [12, 24]
    with pytest.raises(InputError, match=r"the smallest choice of `space.embedding_dim` must be at most every hidden"):
        SearchSpace(PARENT, hidden_size=[12, 24], embedding_dim=[18, 24])


def test_block_search_replaces_the_whole_vector_as_a_block() -> None:
    space = SearchSpace(PARENT, intermediate_size=[8, 16], embedding_dim=[12, 24])
    found = [block.subnet for block in blocks(space) if block.layer == "embedding_dim"]
    assert found == [PARENT.with_values(embedding_dim=12), PARENT]


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_short_vectors_are_for_tasks_of_vectors_and_where_something_asks_for_them(make: Make) -> None:
    context, space = make("vectors"), {"num_hidden_layers": [1, 2, 3, 4], "embedding_dim": [12, 24, 48]}

    def choices(**sections: Any) -> tuple[Any, list[str]]:
        recipe = with_recipe(context, space=space, **sections)
        useful, reasons = recipe_choices(context_of(recipe, context.layout))
        return useful["embedding_dim"], reasons

    assert choices(objectives=SHORT) == ([12, 24, 48], [])
    assert choices(constraints={"embedding_dim": "<= 24"}) == ([12, 24, 48], [])
    kept, (reason,) = choices()
    assert kept == [48] and reason == (
        "embedding_dim 12, 24 dropped: no objective or constraint names `embedding_dim`"
    )
    check_recipe(with_recipe(context, space=space, objectives=SHORT))
    proposed = propose_space(TaskContext(with_recipe(context, objectives=SHORT)))
    assert proposed.choices["embedding_dim"] == [16, 24, 48]
    assert "no objective" in propose_space(context).left_out["embedding_dim"]
    labelled = make("single label")
    with pytest.raises(InputError, match=r"`space.embedding_dim` must be left out for text-classification, because"):
        check_recipe(with_recipe(labelled, space=space))
    with pytest.raises(InputError, match=r"`embedding_dim` is no cost of text-classification, because the output of"):
        check_recipe(with_recipe(labelled, objectives={"accuracy": "maximize", "embedding_dim": "minimize"}))


def test_it_is_a_cost_of_tasks_of_vectors_only() -> None:
    supernet = Supernet(TOYS["bert"].model("feature-extraction"))
    costs = AnalyticCosts.from_model(supernet.model, supernet.layout, "sentence-similarity")
    assert "embedding_dim" in costs.cost_names
    assert "embedding_dim" not in replace(costs, task="text-classification").cost_names
    assert format_value("embedding_dim", 1024.0) == "1024"


@pytest.mark.full
def test_a_search_for_short_vectors_end_to_end(make: Make, tmp_path: Path) -> None:
    """The supernet trains every width, so the start of a vector says more than before."""
    context = make("vectors")
    encoder(Path(context.recipe.model))
    space = {"num_hidden_layers": [2, 3, 4], "embedding_dim": [4, 12, 48]}
    training = {**context.recipe.supernet.model_dump(exclude_none=True), "epochs": 6, "batch_size": 16}
    objectives = {"top10_agreement": "maximize", "embedding_dim": "minimize"}
    more = {"search": {"evaluations": 16}, "finish": {"models": 1, "epochs": 1}, "profile": {"minutes": 0.2}}
    recipe = with_recipe(context, space=space, supernet=training, objectives=objectives, **more)
    run = search(recipe, tmp_path / "run")
    widths = {point.subnet.embedding_dim for point in run.verified_points()}
    assert {4, 48} <= widths and all(point.measured for point in run.verified_points())
    before, after = Supernet(context.load_model()), Supernet(TaskContext(run.recipe).load_model(run.supernet))
    agreement = []
    for supernet in (before, after):
        supernet.activate(supernet.parent.with_values(embedding_dim=4))
        agreement.append(score(supernet.model, context.splits.test, ["top10_agreement"])["top10_agreement"].value)
    assert agreement[1] > agreement[0]
    finished = [point for point in run.verified_points() if (run.finished / point.key).exists()]
    for point in finished:
        pooling = json.loads((run.finished / point.key / "1_Pooling" / "config.json").read_text())
        assert pooling["word_embedding_dimension"] == point.subnet.embedding_dim
    assert finished
    short = next(point for point in run.verified_points() if point.subnet.embedding_dim == 4)
    folder = export_subnet(run, short, tmp_path / "short", parent_width=True)
    tuned = finetune(folder, with_recipe(context, parent={"epochs": 1}), run.folder, tmp_path / "tuned")[1]
    for mapped in (folder, tmp_path / "tuned"):
        assert json.loads((mapped / "2_Dense" / "config.json").read_text())["out_features"] == 48
    stated = json.loads((folder / "subnet.json").read_text())["parent_width"]["cosine_similarity"]
    assert 0 < stated < 1 and stated != tuned["parent_width"]["cosine_similarity"]
