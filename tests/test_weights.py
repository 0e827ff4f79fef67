"""A model whose weights are not those of its config is refused with what differs; none of them is random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import DAILY_FAMILIES, sampled
from toy_tasks import Make, causal
from toys import TOYS, WORDS, bert

from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages.check import check_recipe
from nas.stages.parent import run_parent
from nas.supernets.training import model_trainer, train
from nas.tasks.context import TaskContext
from nas.tasks.weights import load_weights
from search_spaces import InputError

Weights = dict[str, torch.Tensor]
FIRST = "bert.encoder.layer.0.attention.self.query.weight"


def refusal(context: TaskContext) -> str:
    with pytest.raises(InputError) as error:
        context.load_model()
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def changed(text_recipe: Path) -> Callable[..., TaskContext]:
    """A context over a trained tiny BERT whose stored weights or config a function changes."""

    def change(weights: Callable[[Weights], Weights] | None = None, **config: Any) -> TaskContext:
        folder = text_recipe.parent / "model"
        bert(num_labels=2).save_pretrained(folder)
        if weights is not None:
            file = folder / "model.safetensors"
            save_file(weights(load_file(file)), file, metadata={"format": "pt"})
        stored = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**stored, **config}))
        return TaskContext(Recipe.load(text_recipe))

    return change


def test_whole_weights_load(changed: Callable[..., TaskContext]) -> None:
    assert changed().load_model().config.num_labels == 2


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [("_orig_mod", "torch.compile"), ("module", "DataParallel"), ("model", "Lightning"), ("base_model.model", "peft")],
)
def test_weights_under_the_names_of_a_wrapper_are_refused(
    prefix: str, wrapper: str, changed: Callable[..., TaskContext]
) -> None:
    message = refusal(changed(lambda weights: {f"{prefix}.{name}": value for name, value in weights.items()}))
    assert (
        "lacks weights that the model needs (all of them, they are called " + prefix in message and wrapper in message
    )


@pytest.mark.parametrize("name", [FIRST, "classifier.weight", "bert.pooler.dense.bias"])
def test_a_missing_weight_is_refused(name: str, changed: Callable[..., TaskContext]) -> None:
    message = refusal(changed(lambda weights: {key: value for key, value in weights.items() if key != name}))
    assert "lacks" in message and f"1 of {len(bert(num_labels=2).state_dict())}: {name}" in message


def test_a_language_model_without_its_head_is_refused(make: Make, text_folder: Path) -> None:
    context = make("next words")
    model = causal(text_folder / "model")
    model.config.tie_word_embeddings = False
    model.config.save_pretrained(text_folder / "model")
    assert "lm_head.weight" in refusal(TaskContext(context.recipe))


def test_only_a_new_head_may_be_random(text_recipe: Path) -> None:
    TOYS["bert"].model("fill-mask").save_pretrained(text_recipe.parent / "model")
    assert TaskContext(Recipe.load(text_recipe)).load_model().config.num_labels == 2
    file = text_recipe.parent / "model" / "model.safetensors"
    weights = {name: value for name, value in load_file(file).items() if name != FIRST}
    save_file(weights, file, metadata={"format": "pt"})
    assert FIRST in refusal(TaskContext(Recipe.load(text_recipe)))


def test_weights_of_more_layers_than_the_config_has_are_refused(changed: Callable[..., TaskContext]) -> None:
    message = refusal(changed(num_hidden_layers=3))
    assert "bert.encoder.layer.3." in message and "has 4 layers, and the config 3" in message
    assert "lacks" in refusal(changed(num_hidden_layers=5))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"intermediate_size": 64}, ("intermediate.dense", "96 rows against 64")),
        ({"vocab_size": 40}, ("word_embeddings", f"{len(WORDS)} rows against 40")),
        ({"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}}, ("classifier", "2 rows against 3")),
    ],
)
def test_weights_of_other_shapes_are_refused_with_both(
    config: dict[str, Any], says: tuple[str, ...], changed: Callable[..., TaskContext]
) -> None:
    message = refusal(changed(**config))
    assert all(text in message for text in says), message


def test_buffers_of_old_checkpoints_are_no_weights(changed: Callable[..., TaskContext]) -> None:
    layer = "bert.encoder.layer.0.attention."
    old = {f"{layer}self.position_ids": torch.zeros(1, 64), f"{layer}masked_bias": torch.zeros(1)}
    old |= {f"{layer}bias": torch.zeros(1, 1, 64, 64), "bert.embeddings.position_ids": torch.zeros(1, 64)}
    assert changed(lambda weights: {**weights, **old}).load_model()


def test_a_layer_without_some_heads_is_refused(changed: Callable[..., TaskContext]) -> None:
    def prune(weights: Weights) -> Weights:
        attention = "bert.encoder.layer.0.attention.self."
        rows = {name: value[:24].clone() for name, value in weights.items() if name.startswith(attention)}
        return {**weights, **rows}

    message = refusal(changed(prune, pruned_heads={"0": [2, 3]}))
    assert "encoder.layer.0.attention" in message and "24 rows against 48" in message and "here whole" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, changed: Callable[..., TaskContext]) -> None:
    message = refusal(changed(lambda weights: {**weights, FIRST: torch.full_like(weights[FIRST], value)}))
    assert FIRST in message and "must be finite" in message


def test_quantized_weights_are_refused(changed: Callable[..., TaskContext]) -> None:
    eight_bits = changed(lambda weights: {**weights, FIRST: weights[FIRST].to(torch.int8)})
    assert FIRST in (message := refusal(eight_bits)) and "I8" in message
    with pytest.raises(InputError, match="quantized \\(gptq\\)"):
        _ = changed(quantization_config={"quant_method": "gptq", "bits": 4}).config


def test_weights_stored_in_half_precision_are_trained_in_float32(changed: Callable[..., TaskContext]) -> None:
    context = changed(lambda weights: {n: w.bfloat16() for n, w in weights.items()}, dtype="bfloat16")
    assert {weight.dtype for weight in context.load_model().parameters()} == {torch.float32}


def test_an_adapter_is_refused_with_how_to_merge_it(text_recipe: Path) -> None:
    folder = text_recipe.parent / "model"
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    )
    with pytest.raises(InputError, match=r"LORA adapter of `org/base`.*merge_and_unload"):
        check_recipe(Recipe.load(text_recipe))


@pytest.mark.parametrize("name", ["tf_model.h5", "flax_model.msgpack", "model.gguf", "last.ckpt", "weights.pt"])
def test_weights_that_would_not_be_loaded_are_refused(name: str, text_recipe: Path) -> None:
    (text_recipe.parent / "model" / name).write_bytes(b"weights")
    with pytest.raises(InputError, match=name):
        check_recipe(Recipe.load(text_recipe))
    bert(num_labels=2).save_pretrained(text_recipe.parent / "model")
    check_recipe(Recipe.load(text_recipe))


def test_a_pointer_in_place_of_weights_is_named(text_recipe: Path) -> None:
    (text_recipe.parent / "model" / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    assert "git lfs pull" in refusal(TaskContext(Recipe.load(text_recipe)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"intermediate_size": 0}, "intermediate_size"),
        ({"hidden_size": "48"}, "hidden_size"),
        ({"attn_implementation": 5}, "config.json"),
    ],
)
def test_a_config_that_defines_no_model_is_refused(changes: dict[str, Any], says: str, text_recipe: Path) -> None:
    file = text_recipe.parent / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(InputError, match=says):
        check_recipe(Recipe.load(text_recipe)).load_model()


def test_a_config_that_asks_for_tuples_is_read_by_name(text_recipe: Path) -> None:
    file = text_recipe.parent / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "return_dict": False}))
    context = check_recipe(Recipe.load(text_recipe))
    assert context.load_model()(**context.splits.test.batches[0]).logits.shape[1] == 2


def test_a_config_that_contradicts_itself_is_refused(text_recipe: Path) -> None:
    toy = TOYS["gemma3_text"].model().config
    (text_recipe.parent / "model" / "config.json").write_text(json.dumps({**toy.to_dict(), "num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"config\.json.*cannot be used.*num_hidden_layers"):
        check_recipe(Recipe.load(text_recipe))


# -- the tokenizer ------------------------------------------------------------------------------------------------


def test_a_tokenizer_with_more_tokens_than_the_table_has_rows_is_refused(text_recipe: Path) -> None:
    from transformers import AutoTokenizer

    folder = text_recipe.parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["superb"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match=f"{len(WORDS) + 1} tokens, and the model's table {len(WORDS)} rows; resize"):
        check_recipe(Recipe.load(text_recipe))


def test_token_types_without_a_row_are_refused(text_recipe: Path) -> None:
    import pandas as pd

    folder = text_recipe.parent
    bert(type_vocab_size=1).config.save_pretrained(folder / "model")
    check_recipe(Recipe.load(text_recipe))
    for file, read, write in (("train.parquet", pd.read_parquet, "to_parquet"), ("test.csv", pd.read_csv, "to_csv")):
        rows = read(folder / file).assign(other="film")
        getattr(rows, write)(folder / file, index=False)
    with pytest.raises(InputError, match="token types 0 to 1, and the model's table has 1 row"):
        check_recipe(Recipe.load(text_recipe))


# -- trainings that diverge ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "epochs", "what"), [(1e30, 4, "loss"), (1e30, 0.3, "weights")])
def test_a_training_that_diverges_stops_with_the_step_and_the_cause(
    rate: float, epochs: float, what: str, text_recipe: Path, tmp_path: Path
) -> None:
    context = TaskContext(Recipe.load(text_recipe))
    settings = context.recipe.parent.model_copy(update={"learning_rate": rate, "epochs": epochs})
    data = context.training_set(settings)
    trainer = model_trainer(context.load_model(), settings, tmp_path / "out", data, context.splits.task, 0)
    notes: list[str] = []
    with pytest.raises(
        InputError, match=rf"the {what} must be finite, but by step \d+.*1e\+30.*lower `learning_rate`"
    ):
        train(trainer, lambda done, total, note: notes.append(note), tmp_path)
    assert not any("0.000" in note for note in notes)


# -- every family -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", sampled(TOYS, lambda name: name in DAILY_FAMILIES))
def test_only_the_head_is_new_when_a_model_changes_its_task(model_type: str, tmp_path: Path) -> None:
    import transformers

    from search_spaces import FAMILIES, TASKS, Layout

    first, *others = FAMILIES[model_type].tasks
    TOYS[model_type].model(first).save_pretrained(tmp_path / "given")
    layout = Layout(transformers.AutoConfig.from_pretrained(tmp_path / "given"))
    for task in others or (first,):
        auto = getattr(transformers, TASKS[task].auto_class)
        model = load_weights(auto, str(tmp_path / "given"), layout, dtype=torch.float32, new_head=task != first)
        model.save_pretrained(tmp_path / task)
        again = load_weights(auto, str(tmp_path / task), layout, dtype=torch.float32, new_head=False)
        for name, weight in model.state_dict().items():
            assert torch.equal(weight, again.state_dict()[name]), name


@pytest.mark.parametrize("has_more", [False, True])
def test_an_untouched_parent_is_linked_where_its_file_holds_just_its_weights(
    has_more: bool, changed: Callable[..., TaskContext], tmp_path: Path
) -> None:
    buffer = {"bert.embeddings.position_ids": torch.arange(64)} if has_more else {}
    recipe = changed(lambda weights: weights | buffer).recipe
    context = TaskContext(recipe.model_copy(update={"parent": recipe.parent.model_copy(update={"epochs": None})}))
    run = Run.open(tmp_path / "run", context.recipe)
    run_parent(run, context)
    given, stored = Path(recipe.model) / "model.safetensors", run.parent / "model.safetensors"
    assert stored.samefile(given) != has_more
    weights = context.load_model(run.parent).state_dict()
    assert all(torch.equal(weight, load_file(given)[name]) for name, weight in weights.items())
    assert {file.name for file in run.parent.iterdir()} >= {"config.json", "training.json", "tokenizer.json"}
