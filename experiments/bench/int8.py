"""Cost and gain of int8: a run's parent at full rank, with half rank and with low-rank embeddings, as float32 and int8
ONNX files, and with quantized layers only.

    python experiments/bench/int8.py RUN [--rounds 11]

Size is that of the file. The metric is measured on the recipe's held-out split with the ONNX file, at the examples'
own lengths; latency in ONNX Runtime on the recipe's workload, in interleaved rounds, as a ratio to the full parent in
float32. Half ranks are truncated without further training.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnxruntime
import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers.exporters.utils import onnx_feed
from transformers.modeling_outputs import SequenceClassifierOutput

from nas.runs.progress import quiet_libraries
from nas.runs.run import Run
from nas.supernets.calibration import calibrate
from nas.supernets.load import calibration_set
from nas.supernets.supernet import Supernet
from nas.tasks.context import TaskContext
from nas.tasks.evaluation import score
from predictors import Workload, measure
from predictors.measurement.onnx_export import write_onnx
from predictors.measurement.runtimes import RUNTIMES
from search_spaces import SubnetConfig
from search_spaces.dimensions.bits import DTYPES


class OnnxClassifier(torch.nn.Module):
    """An ONNX file of a classifier with the interface of its model."""

    device = torch.device("cpu")

    def __init__(self, file: Path, config: transformers.PreTrainedConfig) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self.session, self.config = onnxruntime.InferenceSession(str(file), options), config
        self.names = [spec.name for spec in self.session.get_inputs()]

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> SequenceClassifierOutput:
        """Logits (batch, classes)."""
        logits = torch.from_numpy(self.session.run(None, onnx_feed(self.names, inputs))[0])
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def half_rank(parent: SubnetConfig) -> SubnetConfig:
    """The full model with all linear layers of its layers at half of the break-even rank."""
    ranks = (50,) * parent.num_hidden_layers
    return parent.with_values(attention_rank=ranks, mlp_rank=ranks)


def with_bits(parent: SubnetConfig, bits: str) -> SubnetConfig:
    """The full model with all linear layers of its layers in a dtype."""
    return parent.with_values(bits=(bits,) * parent.num_hidden_layers)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    quiet_libraries()
    run = Run(arguments.run)
    context, metric = TaskContext(run.recipe), run.recipe.primary_metric
    supernet = Supernet(context.load_model(run.parent).eval())
    supernet.calibration = calibrate(supernet, calibration_set(context).batches)
    parent = supernet.parent
    subnets = {
        "full": parent,
        "half rank": half_rank(parent),
        "low-rank embeddings": parent.with_values(embedding_rank=50),
    }
    models = {name: supernet.extract(subnet) for name, subnet in subnets.items()}
    variants = [(name, dtype) for name in models for dtype in ("float32", "int8")]
    models |= {f"layers {bits}": supernet.extract(with_bits(parent, bits)) for bits in DTYPES[2:]}
    variants += [(name, "float32") for name in models if name.startswith("layers")]
    workload = Workload(runtime="onnxruntime", sequence_length=run.recipe.workload.sequence_length)
    inputs = context.dummy_inputs(workload)
    table = Table("model", "dtype", "size MB", metric, "latency ratio", title=f"{workload}")
    with tempfile.TemporaryDirectory() as folder:
        files = {variant: Path(folder) / f"{' '.join(variant)}.onnx" for variant in variants}
        for (name, dtype), file in files.items():
            write_onnx(models[name], inputs, file, int8=dtype == "int8")
        feed = {name: tensor.numpy() for name, tensor in inputs.items()}
        onnx_call = RUNTIMES["onnxruntime"].call
        calls = {" ".join(variant): onnx_call(file, feed, workload) for variant, file in files.items()}
        timed = measure(calls, calls["full float32"], workload, rounds=arguments.rounds)
        for (name, dtype), file in files.items():
            result = score(OnnxClassifier(file, models[name].config), context.splits.test, [metric])[metric]  # type: ignore[arg-type]
            cells = f"{file.stat().st_size / 1e6:.1f}", f"{result.value:.4f} ± {result.standard_error:.4f}"
            table.add_row(name, dtype, *cells, f"{timed[f'{name} {dtype}'].ratio:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
