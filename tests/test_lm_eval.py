"""Tasks of lm-eval as metrics: a local task with its YAML file and questions in JSON."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_tasks import SENTENCES, causal

from nas.commands.dry_run import counted_work
from nas.exports.export import reload_in_process, save_subnet
from nas.exports.runtime_model import RuntimeModel
from nas.recipe.schema import Recipe
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score, score_in_slices
from predictors.measurement.runtimes import FORMATS
from search_spaces import InputError, SubnetConfig

SMALL = SubnetConfig.uniform((0,), num_attention_heads=2, intermediate_size=96, hidden_size=48)
TASK = {
    "task": "moods",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "test": "test.jsonl"}},
    "training_split": "train",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{start}} #{{id}}#",
    "doc_to_choice": ["good", "bad", "very"],
    "doc_to_target": "answer",
    "num_fewshot": 1,
    "metric_list": [{"metric": "acc", "aggregation": "mean"}, {"metric": "brier_score"}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    causal(tmp_path / "lm")
    (tmp_path / "lm.txt").write_text("".join(f"{sentence}\n" for sentence in SENTENCES))
    rows = [{"start": text.rpartition(" ")[0], "answer": k % 3, "id": k} for k, text in enumerate(SENTENCES)]
    for name, part in (("train", rows[::2]), ("test", rows[1::2])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (tmp_path / "moods.yaml").write_text(yaml.safe_dump(TASK))
    return tmp_path


def recipe(folder: Path, **task: Any) -> Recipe:
    section = {
        "type": "text-generation",
        "train": "lm.txt",
        "test": "lm.txt",
        "max_length": 8,
        "search_examples": 9,
        "metrics": {"moods": "lm_eval:moods.yaml", "brier": "lm_eval:moods.yaml:brier_score"},
        **task,
    }
    objectives = {"moods": "maximize", "brier": "minimize", "loss": "minimize", "latency_ms": "minimize"}
    data = {"model": "lm", "task": section, "space": {"num_hidden_layers": [1, 2]}, "objectives": objectives}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(data))
    return Recipe.load(folder / "recipe.yaml")


def test_a_slice_and_its_export_have_the_value_and_the_error_of_lm_eval(folder: Path) -> None:
    context = TaskContext(recipe(folder, lm_eval_limit=40))
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = ["moods", "brier", "loss"]
    supernet, test = Supernet(context.load_model()), context.splits.test
    supernet.activate(SMALL)
    active = score(supernet.model, test, names)
    save_subnet(supernet, SMALL, context, folder / "small")
    exported = reload_in_process(folder / "small", supernet, SMALL, context)
    extracted = score(exported, test, names)
    assert [extracted[n].value for n in names] == pytest.approx([active[n].value for n in names], rel=1e-5)
    assert score(context.load_model(), test, ["brier"])["brier"].value != pytest.approx(
        active["brier"].value, rel=1e-6
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        harness = HFLM(pretrained=exported, tokenizer=context.processor)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        found = simple_evaluate(harness, tasks=["moods"], task_manager=manager, limit=40, fewshot_random_seed=1234)
    values = found["results"]["moods"]
    assert active["moods"].value == pytest.approx(values["acc,none"])
    assert active["brier"].value == pytest.approx(values["brier_score,none"], rel=1e-5)
    assert active["moods"].standard_error == pytest.approx(values["acc_stderr,none"], rel=0.2)
    assert len(test.beside[0]) == 40 and 0 < active["moods"].value < 1


def test_the_search_has_other_questions_than_the_held_out_split(folder: Path) -> None:
    splits = TaskContext(recipe(folder)).splits
    (questions,), (held_out,) = splits.search.beside, splits.test.beside
    asked, kept = (
        {request.doc["id"] for of in part.requests for request in of}
        for part in (questions.task.parts[True], held_out.task.parts[False])
    )
    assert len(questions) == 9 and len(held_out) == len(SENTENCES) // 2
    assert len(asked) == 18 and not asked & kept
    prompts = [(r.args[0], r.doc["id"]) for part in questions.task.parts.values() for of in part.requests for r in of]
    assert all(prompt.count(f"#{own}#") == 1 for prompt, own in prompts)  # no question is among its own shots
    model, names = TaskContext(recipe(folder)).load_model(), ["brier", "loss"]
    *_, (total, whole) = score_in_slices(model, splits.search, names, (0.25,))
    assert whole == score(model, pickle.loads(pickle.dumps(splits.search)), names)
    assert total == len(questions) + len(splits.search)


def test_near_ties_share_the_questions_that_there_are(folder: Path) -> None:
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:10]))
    splits = TaskContext(recipe(folder, max_length=4)).splits
    assert splits.more is not None
    assert [len(part.beside[0]) for part in (splits.search, splits.more)] == [5, 5]


def test_an_estimate_counts_a_pass_for_each_choice_of_a_question(folder: Path) -> None:
    context = TaskContext(recipe(folder, lm_eval_limit=4), sample=5)
    assert context.num_beside == {"search": 9 * 3, "test": 4 * 3}
    assert counted_work(context)["search"] == "9 examples and 27 passes over what is beside them an evaluation"


def test_names_are_no_folders_and_files_may_move(folder: Path) -> None:
    (folder / "moods").mkdir()
    before = recipe(folder, metrics={"moods": "lm_eval:moods:acc", "brier": "lm_eval:moods.yaml:brier_score"})
    assert before.task.metrics == {"moods": "lm_eval:moods:acc", "brier": f"lm_eval:{folder}/moods.yaml:brier_score"}
    moved = folder.rename(folder.with_name("moved"))
    now = recipe(moved, metrics=before.task.metrics | {"brier": "lm_eval:moods.yaml:brier_score"})
    assert "task.metrics.brier" in now.moved_keys(before) and "task.metrics.moods" not in now.moved_keys(before)


@pytest.mark.slow
def test_an_onnx_file_is_scored_without_a_mask(folder: Path) -> None:
    context = TaskContext(recipe(folder))
    model = context.load_model()
    FORMATS["onnx"].write(model, context.dummy_inputs(context.recipe.workload), folder / "model.onnx")
    run = RuntimeModel.load("onnx", folder / "model.onnx", context)
    found, own = (score(each, context.splits.test, ["loss", "brier"]) for each in (run, model))
    assert [each.value for each in found.values()] == pytest.approx([each.value for each in own.values()], rel=1e-4)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("moods.yaml:f2", r"`lm_eval:.*moods.yaml` has no metric `f2`; .*acc"),
        ("alone.yaml", "must have questions to search on beside those of `test`"),
        ("no.yaml", r"`lm_eval:no.yaml` must be a task of lm-eval or its YAML file"),
    ],
)
def test_what_lm_eval_cannot_read_is_said_in_one_line(source: str, message: str, folder: Path) -> None:
    (folder / "alone.yaml").write_text(yaml.safe_dump({**TASK, "task": "alone", "training_split": None}))
    with pytest.raises(InputError, match="tasks of lm-eval are for text-generation"):
        recipe(folder, type="fill-mask")
    context = TaskContext(recipe(folder, metrics={"moods": f"lm_eval:{source}", "brier": "lm_eval:moods.yaml"}))
    with pytest.raises(InputError, match=message):
        context.splits  # noqa: B018
