"""What a tenth of the file costs: accuracy, bytes and latencies of searched models and of what one does by hand.

    nas search experiments/minilm-small-files/recipe.yaml --run RUN
    python experiments/minilm-small-files/table.py RUN OUT [--minutes 3.5] [--rounds 21]

Rows: the parent; the largest finished models of the run within 10 and 5 MB; the parent with int8 layers, with and
without an int8 table; only the table in fewer bits or rows; fewer bits and rows without any training; and architecture
first: whole layers dropped and distilled for as long as each finished model, then bits and rows. Bytes are those of
`model.safetensors`; accuracy is on the held-out split. Then all are timed in ONNX Runtime and in OpenVINO, in the same
rounds, as ratios to the parent. Model folders stay in OUT. Set threads: `OMP_NUM_THREADS=1`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nas.exports.export import save_model
from nas.exports.formats import load_export
from nas.fronts.point import Point
from nas.runs.files import write_json
from nas.runs.finished import read_finished
from nas.runs.progress import progress, quiet_libraries
from nas.runs.run import Run
from nas.supernets.calibration import calibrate
from nas.supernets.load import calibration_set
from nas.supernets.supernet import Supernet
from nas.supernets.training import model_trainer, train
from nas.tasks.context import TaskContext
from nas.tasks.dummy_inputs import dummy_inputs
from nas.tasks.evaluation import score
from nas.tasks.vocabulary import Vocabulary
from predictors import Workload, measure
from predictors.measurement.prepare import prepare
from predictors.measurement.rounds import benchmark_mode
from search_spaces import SubnetConfig
from search_spaces.layer_drop import drop_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIMITS_MB = (10, 5)
BY_HAND: dict[str, dict[str, str]] = {
    "parent, int8": {"bits": "int8"},
    "parent, int8, table int8": {"bits": "int8", "embedding_bits": "8"},
    "table int8": {"embedding_bits": "8"},
    "table pq-48": {"embedding_bits": "pq:48"},
    "4,000 pieces, table int8": {"embedding_bits": "8", "vocabulary": "4000"},
    "the same, layers int4": {"embedding_bits": "8", "vocabulary": "4000", "bits": "int4-weight"},
}
"""Row -> values of the whole parent, without any training."""
DROPS: tuple[tuple[tuple[int, ...], dict[str, str]], ...] = (
    ((1, 3, 5), {"bits": "int8", "vocabulary": "4000", "embedding_bits": "8"}),
    ((1, 5), {"bits": "int4-weight", "vocabulary": "4000", "embedding_bits": "pq:48"}),
)
"""Layers that are kept and distilled, and the values that the result is then stored with."""


class Table:
    """Scores and stores models, and prints a row for each."""

    def __init__(self, context: TaskContext, out: Path) -> None:
        self.context, self.out = context, out

    def add(self, name: str, model: PreTrainedModel, subnet: SubnetConfig) -> None:
        """Prints bytes and accuracy; the folder can be loaded as an export."""
        folder = self.out / name
        shutil.rmtree(folder, ignore_errors=True)
        value = score(model.eval(), self.context.of(subnet).splits.test, ["accuracy"])["accuracy"]
        save_model(model, self.context, folder)
        self.context.save_processor(folder, subnet)
        point = Point(subnet, {"accuracy": value.value}, {"accuracy": value.standard_error}, measured=True)
        write_json(folder / "subnet.json", {"task": self.context.recipe.task.type, **point.to_dict()})
        megabytes = (folder / "model.safetensors").stat().st_size / 1e6
        print(f"| {name} | {megabytes:.2f} | {value.value:.4f} ± {value.standard_error:.4f} | {subnet} |", flush=True)

    def add_variant(self, name: str, supernet: Supernet, values: dict[str, str]) -> None:
        """A model as it is, stored in fewer bits and rows."""
        changes: dict[str, Any] = dict(values)
        if "bits" in values:
            changes["bits"] = (values["bits"],) * supernet.parent.num_hidden_layers
        subnet = supernet.parent.with_values(**changes)
        self.add(name, supernet.extract(subnet), subnet)


def main() -> None:
    """Parses the command line, makes every model and times them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, help="Of a rival; default: those of a finished model.")
    parser.add_argument("--rounds", type=int, default=21)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    run = Run(arguments.run)
    context = TaskContext(run.recipe)
    context.vocabulary = Vocabulary.load(run.supernet) or context.vocabulary
    table = Table(context, arguments.out)
    supernet = calibrated(context.load_model(run.parent), context)
    table.add("parent", supernet.model, supernet.parent)
    sizes = {m: (m.folder(run) / "model.safetensors").stat().st_size / 1e6 for m in read_finished(run)}
    searched = {m: size for m, size in sizes.items() if m.source == "search"}
    for limit in LIMITS_MB:
        within = [m for m, size in searched.items() if size <= limit]
        if within:
            best = max(within, key=searched.__getitem__)
            table.add(f"search, {limit} MB", context.load_model(best.folder(run)), best.subnet)
    for name, values in BY_HAND.items():
        table.add_variant(name, supernet, values)
    minutes = arguments.minutes or (run.recipe.finish.minutes or 0.0) / run.recipe.finish.models
    for layers, values in DROPS:
        model = distilled(run, context, layers, minutes, arguments.out)
        rival = calibrated(model, context)
        name = f"layers {','.join(map(str, layers))}"
        table.add(name, model, rival.parent)
        table.add_variant(f"{name}, then {' '.join(values.values())}", rival, values)
    for runtime in ("onnxruntime", "openvino"):
        print_latencies(arguments.out, runtime, arguments.rounds)


def calibrated(model: PreTrainedModel, context: TaskContext) -> Supernet:
    """A model whose layers in four bits are calibrated on the training data."""
    supernet = Supernet(model.eval(), vocabulary=context.vocabulary)
    supernet.calibration = calibrate(supernet, calibration_set(context).batches)
    return supernet


def distilled(run: Run, context: TaskContext, layers: tuple[int, ...], minutes: float, out: Path) -> PreTrainedModel:
    """The parent with some whole layers, distilled from its logits for so many minutes."""
    parent = Supernet(context.load_model(run.parent))
    model = parent.extract(drop_layers(parent.parent, layers)).requires_grad_(True)
    settings = run.recipe.finish.model_copy(update={"minutes": minutes})
    examples, task = context.training_set(settings), context.splits.task
    options = {"teacher": context.load_model(run.parent), "temperature": settings.temperature}
    trainer = model_trainer(model, settings, out / "checkpoints", examples, task, run.recipe.seed, **options)
    with progress(f"layers {layers}") as report:
        train(trainer, report, out / "logs", settings.minutes)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return model.eval().requires_grad_(False)


def print_latencies(out: Path, runtime: str, rounds: int) -> None:
    """Prints the latency of every stored model, measured in the same rounds, and its ratio to the parent's."""
    workload = Workload(runtime=runtime, device="cpu", batch_size=1, sequence_length=16, threads=1)
    names = sorted(folder.parent.name for folder in out.glob("*/model.safetensors"))
    with benchmark_mode(workload):
        models = {name: load_export(out / name, "text-classification") for name in names}
        calls = {
            name: prepare(model, dummy_inputs("text-classification", model.config, workload), workload)
            for name, model in models.items()
        }
    timed = measure(calls, calls["parent"], workload, rounds=rounds)
    for name, timing in timed.items():
        low, high = timing.ratio_low, timing.ratio_high
        print(f"| {runtime} | {name} | {timing.latency_ms:.2f} ms | {timing.ratio:.3f} [{low:.3f}, {high:.3f}] |")


if __name__ == "__main__":
    main()
