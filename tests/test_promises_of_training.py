"""What is promised of training: resumed equals uninterrupted; micro-batches change neither gradients nor losses."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from samples import sampled
from toys import HEADLESS, TOYS, feature_loss, labelled_outputs
from transformers import Trainer, TrainerCallback, TrainingArguments

from nas.recipe.schema import SupernetTraining, Training
from nas.supernets.checkpoint import load_checkpoint
from nas.supernets.distillation_trainer import DistillationTrainer, is_causal
from nas.supernets.strategies import Sandwich
from nas.supernets.supernet import Supernet
from nas.supernets.supernet_trainer import SupernetTrainer
from nas.supernets.training import train, training_arguments
from nas.tasks.batches import IGNORE_INDEX
from nas.tasks.losses import divergence
from search_spaces import InputError

KINDS = ("plain", "supernet", "export")
DAILY = ("bert", "vit", "gpt_neox", "t5")
Weights = dict[str, torch.Tensor]


class TinyTask:
    """The part of a task that a trainer uses."""

    activation = "softmax"

    def __init__(self, model: Any) -> None:
        self.is_causal, self.labels_tokens = is_causal(model), model.can_generate()

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}

    def forward(self, model: Any, batch: Any) -> Any:
        return labelled_outputs(model, batch)

    def logits_and_labels(self, outputs: Any, batch: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if self.is_causal:
            return [(outputs.logits[:, :-1], batch["labels"][:, 1:])]
        return [(outputs.logits, batch["labels"])]

    def divergence(self, student: Any, teacher: Any, temperature: float) -> torch.Tensor:
        return divergence(student, teacher, self.activation, temperature)


def weights(model: Any) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def toy_model(family: str, kind: str, seed: int) -> Any:
    """A random model; as a supernet, or as an export whose layers differ."""
    torch.manual_seed(seed)
    model = TOYS[family].model()
    if kind == "plain":
        return model
    supernet = Supernet(model)
    if kind == "supernet":
        return supernet.model
    widths = supernet.parent.intermediate_size
    halved = len(widths) if supernet.family.shared_layers else 1
    narrow = (*(width // 2 for width in widths[:halved]), *widths[halved:])
    return supernet.extract(supernet.parent.with_values(intermediate_size=narrow))


def rows_of(family: str, batches: int = 6) -> Dataset:
    """Examples without padding, so that any of them fit together."""
    rows = []
    for _ in range(batches):
        batch = TOYS[family].labelled()
        batch |= {name: torch.ones_like(mask) for name, mask in batch.items() if name.endswith("attention_mask")}
        rows += [{name: value[row].tolist() for name, value in batch.items()} for row in range(3)]
    return Dataset.from_list(rows)


def make_trainer(model: Any, kind: str, settings: dict[str, Any], folder: Path, rows: Dataset, **more: Any) -> Any:
    arguments = {"learning_rate": 5e-3, "batch_size": 6, **settings}
    if kind != "supernet":
        args = training_arguments(Training(**arguments), folder, 0, by_length=False)
        return DistillationTrainer(
            model=model, task=TinyTask(model), teacher=None, args=args, train_dataset=rows, **more
        )
    supernet = Supernet(model)
    scope = "uniform" if supernet.family.shared_layers else "per-layer"
    space = supernet.layout.search_space({"intermediate_size": [48, 96], "scope": scope})
    args = training_arguments(SupernetTraining(strategy="sandwich", **arguments), folder, 0, by_length=False)
    strategy = Sandwich(space, space.sample, 1)
    trained = {"supernet": supernet, "strategy": strategy, "task": TinyTask(model), "teacher": None}
    return SupernetTrainer(**trained, args=args, train_dataset=rows, **more)


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in DAILY))
def test_a_checkpoint_restores_every_weight(family: str, kind: str, tmp_path: Path) -> None:
    saved, other = (toy_model(family, kind, seed) for seed in (0, 1))
    saved.save_pretrained(tmp_path)
    expected = weights(saved)
    load_checkpoint(other, tmp_path)
    found = weights(other)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("change", ["dropped", "invented", "reshaped"])
@pytest.mark.parametrize("family", ["bert", "vit"])
def test_a_checkpoint_with_other_weights_is_refused(family: str, change: str, tmp_path: Path) -> None:
    model, file = toy_model(family, "plain", 0), tmp_path / "model.safetensors"
    model.save_pretrained(tmp_path)
    stored = load_file(file)
    name = next(name for name in stored if "layer.1" in name and name.endswith("weight"))
    if change == "invented":
        stored["invented.weight"] = torch.zeros(2)
    else:
        removed = stored.pop(name)
        stored |= {name: removed[:-1].contiguous()} if change == "reshaped" else {}
    save_file(stored, file, {"format": "pt"})
    with pytest.raises(InputError, match="must hold the weights"):
        load_checkpoint(model, tmp_path)


@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in ("vit", "gpt_neox")))
def test_the_trainer_of_transformers_reloads_the_best_export(family: str, tmp_path: Path) -> None:
    for greater in (True, False):  # of two epochs, the first is the best in one of these senses
        made = plain_trainer(family, greater, tmp_path / str(greater))
        made.train()
        last = made.state.log_history[-2]["eval_loss"]
        if made.state.best_metric != pytest.approx(last, rel=1e-3):
            break
    else:
        pytest.fail("the last epoch is the best one: nothing is reloaded")
    assert made.evaluate()["eval_loss"] == pytest.approx(made.state.best_metric, rel=1e-5)


@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in ("vit", "gpt_neox")))
def test_the_trainer_of_transformers_resumes_the_training_of_an_export(family: str, tmp_path: Path) -> None:
    found = []
    for name, kills in (("whole", [None]), ("killed", [2, None])):
        for kill in kills:
            made = plain_trainer(family, True, tmp_path / name)
            made.args.load_best_model_at_end = False
            made.add_callback(Kill(kill))
            with suppress(KeyboardInterrupt):
                made.train(resume_from_checkpoint=kill is None and len(kills) > 1)
        found.append(weights(made.model))
    start = weights(toy_model(family, "export", 0))
    assert any(not torch.equal(found[0][name], start[name]) for name in start)
    assert [name for name in start if not torch.equal(found[0][name], found[1][name])] == []


def plain_trainer(family: str, greater: bool, folder: Path) -> Trainer:
    """The Trainer of transformers with an export; the best model has the greater loss, or the smaller."""
    model, rows = toy_model(family, "export", 0), rows_of(family, batches=2)
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        learning_rate=5e-3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=greater,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=LABELS if family in HEADLESS else None,
    )
    loss = feature_loss if family in HEADLESS else None
    data = {"train_dataset": rows, "eval_dataset": rows}
    return Trainer(model, args, TinyTask(model).collate, compute_loss_func=loss, **data)


LABELS = ["labels"]


class Kill(TrainerCallback):
    """Ends a training in the middle of a step, as a signal does."""

    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in ("vit",)))
def test_a_killed_training_ends_with_the_weights_of_one_that_was_not(family: str, kind: str, tmp_path: Path) -> None:
    rows, found = rows_of(family), []
    for name, kills in (("whole", ()), ("killed", (4,))):
        for killed in (*kills, None):
            callbacks = [] if killed is None else [Kill(killed)]
            model = toy_model(family, kind, 0)
            torch.manual_seed(0)
            made = make_trainer(model, kind, {"epochs": 2}, tmp_path / name, rows, callbacks=callbacks)
            try:
                train(made, lambda *_: None, tmp_path / "logs")
            except KeyboardInterrupt:
                continue
        found.append(weights(model))
    start = weights(toy_model(family, kind, 0))
    assert any(not torch.equal(found[0][name], start[name]) for name in start)
    assert [name for name in start if not torch.equal(found[0][name], found[1][name])] == []


@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in ("vit",)))
def test_the_best_model_is_the_one_that_was_scored(family: str, tmp_path: Path) -> None:
    rows = rows_of(family)
    made = make_trainer(toy_model(family, "plain", 0), "plain", {"epochs": 2}, tmp_path, rows, eval_dataset=rows)
    made.args.eval_strategy, made.args.save_strategy, made.args.save_total_limit = "epoch", "epoch", None
    made.args.load_best_model_at_end, made.args.metric_for_best_model = True, "loss"
    made.label_names = LABELS if family in HEADLESS else made.label_names
    made.args.greater_is_better = True  # the first epoch is the best, and must be reloaded
    made.train()
    assert made.state.best_model_checkpoint is not None
    assert made.evaluate()["eval_loss"] == pytest.approx(made.state.best_metric, rel=1e-5)


# -- micro-batches ----------------------------------------------------------------------------------------------------


class Gradient(TrainerCallback):
    """Remembers the gradient of an optimizer step."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def without_dropout(model: Any) -> Any:
    for name in ("shift", "jitter", "rescale"):  # DINOv3 augments positions in training
        setattr(model.config, f"pos_embed_{name}", None)
    for module in model.modules():
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("kind", ["plain", "supernet"])
@pytest.mark.parametrize("family", sampled(TOYS, lambda family: family in ("bert", "gpt2", "t5")))
def test_gradients_and_logged_losses_do_not_depend_on_micro_batches(family: str, kind: str, tmp_path: Path) -> None:
    rows = rows_of(family, batches=4).select(range(10))
    labels = [list(x) if isinstance(x, list) else x for x in rows["labels"]]
    if isinstance(labels[0], list):  # parts of a batch have different numbers of labels
        labels = [[IGNORE_INDEX] * min(k, 9) + each[min(k, 9) :] for k, each in enumerate(labels)]
        rows = rows.remove_columns("labels").add_column("labels", labels)
    found = []
    for parts in (1, 3):
        gradient = Gradient()
        settings = {"epochs": 1, "learning_rate": 1e-9, "batch_size": 12 // parts}
        settings["gradient_accumulation_steps"] = parts
        model = without_dropout(toy_model(family, "plain", 0))
        made = make_trainer(model, kind, settings, tmp_path / str(parts), rows, callbacks=[gradient])
        made.args.max_grad_norm, made.args.logging_steps, made.args.save_strategy = 0.0, 1, "no"
        made.train()
        log = next(entry for entry in made.state.log_history if "loss" in entry)
        losses = {name: value for name, value in log.items() if name.startswith("loss")}
        found.append((gradient.found, losses))
    (whole, losses), (split, split_losses) = found
    assert float(whole.norm()) > 0 and losses
    assert torch.allclose(whole, split, atol=1e-4 * float(whole.abs().max()))
    assert split_losses == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize("kind", ["plain", "supernet"])
def test_a_loss_that_is_not_finite_stops_the_training(kind: str, tmp_path: Path) -> None:
    model = toy_model("bert", "plain", 0)
    with torch.no_grad():
        next(model.classifier.parameters()).fill_(float("nan"))
    made = make_trainer(model, kind, {"epochs": 1}, tmp_path, rows_of("bert"))
    made.args.logging_steps = 1
    with pytest.raises(InputError, match="loss must be finite"):
        made.train()
