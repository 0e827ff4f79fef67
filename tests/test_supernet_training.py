"""Supernet training: strategies, teachers, several processes and resuming."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from toys import bert, logits, text_inputs
from transformers import TrainerCallback

from nas.recipe.schema import Recipe
from nas.runs.run import Run
from nas.stages import supernet as trainings
from nas.stages.parent import run_parent
from nas.stages.profile import profile_sample
from nas.stages.supernet import make_strategy, run_supernet
from nas.supernets.importance import order_by_importance
from nas.supernets.load import load_supernet
from nas.supernets.strategies import STRATEGIES, SUBNET_SAMPLERS, Strategy, stratified_sampler
from nas.supernets.supernet import Supernet
from nas.supernets.supernet_trainer import SupernetTrainer
from nas.supernets.training import last_complete_checkpoint, train, training_arguments
from nas.tasks.context import TaskContext
from nas.tasks.kept_outputs import KeptOutputs
from predictors import AnalyticCosts
from search_spaces import SearchSpace

CHOICES = {"num_hidden_layers": [1, 2, 3, 4], "num_attention_heads": [1, 2, 4], "intermediate_size": [24, 48, 96]}


def space_of(supernet: Supernet, scope: str = "per-layer") -> SearchSpace:
    return supernet.layout.search_space({**CHOICES, "scope": scope})


def passes(name: str, space: SearchSpace, progress: float = 0.0, seed: int = 0) -> list[Any]:
    strategy: Strategy = STRATEGIES[name](space, SUBNET_SAMPLERS["mixed"](space), 2)
    return strategy.passes(progress, Random(seed))


# -- strategies -------------------------------------------------------------------------------------------------------


def test_the_roles_of_each_strategy() -> None:
    space = space_of(Supernet(bert()))
    roles = {name: [training_pass.role for training_pass in passes(name, space)] for name in STRATEGIES}
    assert roles["sandwich"] == ["largest", "smallest", "sampled", "sampled"]
    assert roles["single-path"] == roles["granularity"] == ["sampled"]
    assert passes("sandwich", space)[0].subnet == space.largest
    assert passes("sandwich", space)[1].subnet == space.smallest
    assert {passes("granularity", space, seed=k)[0].subnet for k in range(200)} == set(space.uniform_scalings())


def test_a_stratified_sample_covers_the_cost_more_evenly() -> None:
    supernet = Supernet(bert())
    space, counts = space_of(supernet), AnalyticCosts.from_model(supernet.model, supernet.layout)

    def cost(subnets: Any) -> np.ndarray:
        return counts.count(["num_parameters"], subnets)["num_parameters"]

    low, high = cost([space.smallest, space.largest])
    spread = {}
    for name, sample in (("mixed", space.sample_mixed), ("stratified", stratified_sampler(space, cost))):
        rng = Random(0)
        shares = (cost([sample(rng) for _ in range(300)]) - low) / (high - low)
        spread[name] = np.abs(np.histogram(shares, bins=5, range=(0, 1))[0] / 300 - 0.2).max()
    assert spread["stratified"] < 0.8 * spread["mixed"]


def test_a_recipe_chooses_the_strategy_and_the_sampler(text_recipe: Path) -> None:
    supernet = Supernet(bert())
    for sampler in ("mixed", "uniform", "num_parameters", "macs"):
        recipe = Recipe.load(text_recipe, ["supernet.strategy=single-path", f"supernet.sampler={sampler}"])
        (training_pass,) = make_strategy(recipe.supernet, supernet, space_of(supernet)).passes(0.0, Random(0))
        assert training_pass.uses_labels and training_pass.subnet in space_of(supernet)


def test_latencies_are_predicted_before_the_training_that_samples_by_them(
    text_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.load(text_recipe, ["supernet.sampler=latency_ms", "supernet.epochs=1", "parent.epochs=1"])
    run, context, costs = Run.open(tmp_path / "run", recipe), TaskContext(recipe), []
    monkeypatch.setattr(
        trainings, "stratified_sampler", lambda space, cost: costs.append(cost) or stratified_sampler(space, cost)
    )
    run_parent(run, context)
    run_supernet(run, context)
    measured = run.measurements.read_bytes()
    predictor, (_, space) = run.target.load_predictor(), load_supernet(run, context)
    subnets = profile_sample(space, recipe.profile.samples, recipe.seed)
    assert run.measurements.read_bytes() == measured
    assert [subnet.key for subnet in predictor.subnets] == [subnet.key for subnet in subnets]
    assert costs[0](subnets) == pytest.approx(predictor.predict(subnets))


# -- one step ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def context(text_recipe: Path) -> TaskContext:
    return TaskContext(Recipe.load(text_recipe))


def model_without_dropout() -> Any:
    """A toy without dropout."""
    torch.manual_seed(0)
    return bert(num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def make_trainer(context: TaskContext, folder: Path, strategy: str = "sandwich", **changes: Any) -> SupernetTrainer:
    supernet = Supernet(model_without_dropout())
    settings = context.recipe.supernet.model_copy(update={"strategy": strategy, **changes.pop("settings", {})})
    torch.manual_seed(1)
    trainer = SupernetTrainer(
        supernet=supernet,
        strategy=make_strategy(settings, supernet, space_of(supernet)),
        task=context.splits.task,
        args=training_arguments(settings, folder, 0, by_length=True),
        train_dataset=context.splits.train,
        **{"teacher": bert(num_labels=2), **changes},
    )
    trainer.args.logging_steps = 1
    return trainer


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    target = teacher.softmax(-1)
    return (target * (target.log() - student.log_softmax(-1))).sum(-1).mean()


@pytest.mark.parametrize("in_place", [False, True])
def test_a_sandwich_step_is_the_sum_of_its_passes(in_place: bool, context: TaskContext, tmp_path: Path) -> None:
    trainer = make_trainer(context, tmp_path, **({"teacher": None} if in_place else {}))
    batch = {**text_inputs(), "labels": torch.tensor([0, 1, 1])}
    loss = trainer.training_step(trainer.model, dict(batch))
    step_gradients = gradients(trainer.supernet.model)
    step_passes = trainer.passes(0)

    supernet, expected = trainer.supernet, torch.zeros(())
    supernet.model.zero_grad()
    for number, training_pass in enumerate(step_passes):
        supernet.activate(training_pass.subnet)
        outputs = supernet.model(**batch)
        if number == 0:
            with torch.no_grad():
                inputs = {name: value for name, value in batch.items() if name != "labels"}
                teacher_logits = outputs.logits.detach() if in_place else trainer.teacher(**inputs).logits
            expected = expected + outputs.loss
        if number or not in_place:
            expected = expected + kl(outputs.logits, teacher_logits)
    (expected / len(step_passes)).backward()
    assert loss == pytest.approx(float(expected.detach()) / len(step_passes), rel=1e-5)
    for name, gradient in gradients(supernet.model).items():
        assert torch.allclose(step_gradients[name], gradient, atol=1e-6), name


def test_a_single_path_learns_in_place_from_the_parent(context: TaskContext, tmp_path: Path) -> None:
    trainer = make_trainer(context, tmp_path, "single-path", teacher=None)
    batch = {**text_inputs(), "labels": torch.tensor([0, 1, 1])}
    loss = trainer.training_step(trainer.model, dict(batch))
    (training_pass,) = trainer.passes(0)
    with torch.no_grad():
        parent_logits = trainer.supernet.model(**batch).logits
        trainer.supernet.activate(training_pass.subnet)
        outputs = trainer.supernet.model(**batch)
    assert float(loss) == pytest.approx(float(outputs.loss + kl(outputs.logits, parent_logits)), rel=1e-5)


# -- trainings --------------------------------------------------------------------------------------------------------


def test_a_teacher_runs_each_example_once(context: TaskContext, tmp_path: Path) -> None:
    logs, teacher_examples = [], []
    for caches in (True, False):
        trainer = make_trainer(context, tmp_path / str(caches), settings={"epochs": 3.0})
        batch_sizes: list[int] = []
        assert trainer.teacher is not None
        trainer.teacher.register_forward_hook(
            lambda module, inputs, outputs, sizes=batch_sizes: sizes.append(len(outputs.logits))
        )
        if not caches:
            trainer.kept = None
        trainer.train()
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        teacher_examples.append(sum(batch_sizes))
    examples = len(context.splits.train)
    assert teacher_examples == [examples, 3 * examples]
    assert logs[0] == pytest.approx(logs[1], rel=1e-3)


def test_trainings_on_the_same_examples_share_the_outputs_of_their_teacher(
    context: TaskContext, tmp_path: Path
) -> None:
    examples, folder = len(context.splits.train), tmp_path / "outputs"
    for runs in (examples, 0):
        trainer = make_trainer(context, tmp_path / str(runs), settings={"epochs": 1.0})
        trainer.kept, batch_sizes = KeptOutputs(folder, examples), list[int]()
        assert trainer.teacher is not None
        trainer.teacher.register_forward_hook(lambda *call, sizes=batch_sizes: sizes.append(len(call[-1].logits)))
        train(trainer, lambda *_: None, tmp_path / "logs")
        assert sum(batch_sizes) == runs


def test_bfloat16_trains_without_a_gpu_too(text_recipe: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(text_recipe, ["parent.bf16=true", "parent.epochs=1"])
    run, context = Run.open(tmp_path / "run", recipe), TaskContext(recipe)
    run_parent(run, context)
    assert all(parameter.isfinite().all() for parameter in context.load_model(run.parent).parameters())


def test_an_interrupted_training_has_the_same_losses(context: TaskContext, tmp_path: Path) -> None:
    class Interrupt(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = True

    def losses(trainer: SupernetTrainer) -> list[float]:
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    def new(folder: str) -> SupernetTrainer:
        return make_trainer(context, tmp_path / folder, settings={"epochs": 4.0})

    uninterrupted = new("uninterrupted")
    uninterrupted.train()
    first = new("cut")
    first.add_callback(Interrupt())
    first.train()
    second = new("cut")
    second.train(resume_from_checkpoint=str(last_complete_checkpoint(tmp_path / "cut")))
    assert 0 < first.state.global_step < uninterrupted.state.global_step == second.state.global_step
    assert losses(second) == losses(uninterrupted) and len(losses(uninterrupted)) > 3
    resumed_state = second.supernet.model.state_dict()
    assert all(
        torch.equal(value, resumed_state[name]) for name, value in uninterrupted.supernet.model.state_dict().items()
    )


def test_a_training_in_minutes_times_its_steps_once_and_leaves_weights_as_they_are(
    context: TaskContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(context, tmp_path)
    before = {name: value.clone() for name, value in trainer.supernet.model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert trainer.steps_within(1e9) > trainer.steps_within(1e6) > 1 == trainer.steps_within(1e-9)
    assert torch.equal(state, torch.random.get_rng_state()) and trainer._losses == {}
    after = trainer.supernet.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    monkeypatch.setattr(SupernetTrainer, "steps_within", lambda self, seconds, *_: int(seconds / 20))
    log = train(trainer, lambda *_: None, tmp_path / "logs", minutes=1.0)
    assert trainer.state.global_step == 3 and log[-1]["train_runtime"] > 0
    monkeypatch.setattr(SupernetTrainer, "steps_within", lambda self, seconds, *_: 99)
    for checkpoint in tmp_path.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    train(resumed := make_trainer(context, tmp_path), lambda *_: None, tmp_path / "logs", minutes=1.0)
    assert resumed.state.global_step == 3, "a resumed training has the schedule that it began with"


def test_minutes_are_split_between_supernet_and_finish(text_recipe: Path) -> None:
    recipe = Recipe.load(text_recipe, ["minutes=10"])
    assert (recipe.supernet.minutes, recipe.finish.minutes) == (pytest.approx(1), pytest.approx(9))
    untrained = Recipe.load(text_recipe, ["minutes=10", "supernet.strategy=none"])
    assert (untrained.supernet.minutes, untrained.finish.minutes) == (None, 10)
    assert Recipe.load(text_recipe, ["minutes=10", "finish.minutes=1"]).finish.minutes == 1


def test_progress_shows_the_loss_of_each_role(context: TaskContext, tmp_path: Path) -> None:
    trainer = make_trainer(context, tmp_path, settings={"epochs": 1.0})
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert {"loss_largest", "loss_smallest", "loss_sampled"} <= entry.keys()


DISTRIBUTED = """
import json, os, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
import test_supernet_training as here
from nas.recipe.schema import Recipe
from nas.tasks.context import TaskContext

context = TaskContext(Recipe.load(sys.argv[2]))
size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
trainer = here.make_trainer(context, Path(sys.argv[3]),
    settings={"epochs": 1.0, "batch_size": 8 // size}, teacher=here.teacher())
trainer.args.max_steps = 3
trainer.train()
if rank == 0:
    torch.save(trainer.supernet.model.state_dict(), sys.argv[4])
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def teacher() -> Any:
    torch.manual_seed(2)
    return bert(num_labels=2)


@pytest.mark.slow
def test_two_processes_train_as_one_with_both_batches(text_recipe: Path, tmp_path: Path) -> None:
    script, tests = tmp_path / "train.py", Path(__file__).parent
    script.write_text(DISTRIBUTED)
    states = []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.pt"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc-per-node={processes}",
            f"--master-port={free_port()}",
        ]
        command += [
            "--master-addr=127.0.0.1",
            str(script),
            str(tests),
            str(text_recipe),
            str(tmp_path / f"run{processes}"),
            str(out),
        ]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        process = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tests.parent, timeout=300
        )
        assert process.returncode == 0, process.stderr[-3000:]
        states.append(torch.load(out))
    start = model_without_dropout().state_dict()
    moved = max((states[0][name] - value).abs().max() for name, value in start.items())
    apart = max((states[0][name] - states[1][name]).abs().max() for name in start)
    assert apart < 0.02 * moved


# -- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["gradient", "activation"])
def test_heads_and_neurons_without_output_are_ordered_last(by: Any) -> None:
    supernet = Supernet(bert(num_labels=2).eval())
    layer = supernet.model.bert.encoder.layer[1]
    with torch.no_grad():
        unit = supernet.layout.head_dim
        layer.attention.self.value.weight[:unit] = 0.0
        layer.attention.self.value.bias[:unit] = 0.0
        layer.intermediate.dense.weight[5] = 0.0
        layer.intermediate.dense.bias[5] = 0.0
    batch = {**text_inputs(), "labels": torch.tensor([0, 1, 1])}
    inputs = text_inputs()
    before = logits(supernet.model, inputs)
    order = order_by_importance(supernet, [batch], by=by)
    assert order.units["heads"][1][-1] == 0 and order.units["ffn"][1][-1] == 5
    assert torch.allclose(logits(supernet.model, inputs), before, atol=1e-5)


def test_without_an_order_nothing_moves() -> None:
    supernet = Supernet(bert(num_labels=2).eval())
    before = {name: value.clone() for name, value in supernet.model.state_dict().items()}
    order = order_by_importance(supernet, [{**text_inputs(), "labels": torch.tensor([0, 1, 1])}], by="none")
    assert order.layers == supernet.parent.layers and not order.units
    assert all(torch.equal(value, before[name]) for name, value in supernet.model.state_dict().items())
