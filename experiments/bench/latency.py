"""Predicted and measured latency of subnetworks of a BERT on this machine: 100 to fit on and 50 held out.

    python experiments/bench/latency.py MODEL FOLDER --runtime torch
    python experiments/bench/latency.py MODEL FOLDER --runtime onnxruntime

MODEL is a BERT of MiniLM's size or larger. Measurements are kept in FOLDER; those during which the full model was over
5 % slower than its median are repeated. With ``--seconds`` the script stops early; the same command resumes it. Twenty
of the held-out subnetworks are measured a second time for the noise floor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch
import transformers

from nas import Supernet
from nas.supernets.calibration import calibrate
from predictors import AnalyticCosts, MeasurementStore, SubnetPredictor, Workload, prepare, write_onnx
from predictors.latency.errors import errors
from predictors.measurement.groups import shuffled
from predictors.measurement.measure import measure
from predictors.measurement.runtime import Call
from predictors.measurement.runtimes import RUNTIMES
from predictors.measurement.timing import MAX_DRIFT, REFERENCE, Timing
from search_spaces import Layout, SearchSpace, SubnetConfig
from search_spaces.dimension import FULL_RANK

CHOICES = {
    "num_hidden_layers": [2, 3, 4, 5, 6],
    "num_attention_heads": [0, 2, 4, 6, 8, 10, 12],
    "intermediate_size": [0, 192, 384, 768, 1152, 1536],
    "hidden_size": [256, 320, 384],
    "attention_rank": [25, 50, 75, FULL_RANK],
    "mlp_rank": [25, 50, 75, FULL_RANK],
    "attention": ["local:16", "local:32", "full"],
    "bits": ["float32", "int8"],
}
FITTED, HELD_OUT, REPEATED = 100, 50, 20
PRECISION, GROUP_SIZE = 0.02, 8


class Benchmark:
    """A supernet, its search space, the subnetworks to measure, and the folder of the measurements."""

    def __init__(self, model: str, folder: Path, workload: Workload, seed: int) -> None:
        self.folder, self.workload = folder, workload
        self.supernet = Supernet(transformers.AutoModelForSequenceClassification.from_pretrained(model).eval())
        self.space: SearchSpace = Layout(self.supernet.model.config).search_space({**CHOICES, "scope": "per-layer"})
        rng = Random(seed)
        self.subnets = [self.space.sample(rng) for _ in range(FITTED + HELD_OUT)]
        ids = torch.randint(1000, 30000, (workload.batch_size, workload.sequence_length or 1))
        self.inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        self.supernet.calibration = calibrate(self.supernet, [self.inputs])

    def call(self, subnet: SubnetConfig) -> Call:
        """Returns a call that runs a subnetwork once; writes its ONNX file if it is missing."""
        if self.workload.runtime != "onnxruntime":
            return prepare(self.supernet.extract(subnet), self.inputs, self.workload)
        feed = {name: tensor.numpy() for name, tensor in self.inputs.items()}
        return RUNTIMES["onnxruntime"].call(self.onnx_file(subnet), feed, self.workload)

    def onnx_file(self, subnet: SubnetConfig) -> Path:
        """The ONNX file of a subnetwork."""
        file = self.folder / "onnx" / f"{subnet.key}.onnx"
        if not file.exists():
            write_onnx(self.supernet.extract(subnet), self.inputs, file, dynamic=False)
        return file

    def measure(self, subnets: Sequence[SubnetConfig], name: str, until: float) -> list[float] | None:
        """Ratios to the full model, or None if the time is over; in random order, so that noise affects all alike."""
        store = MeasurementStore(self.folder / name)
        quiet = self.quiet_timings(store)
        missing = [s for s in subnets if s.key not in quiet]
        reference = self.call(self.supernet.parent)
        order = shuffled(missing, 0)
        for start in range(0, len(order), GROUP_SIZE):
            group = order[start : start + GROUP_SIZE]
            if time.monotonic() > until:
                print(f"{name}: {len(missing) - start} of {len(subnets)} still to measure")
                return None
            reference_ms = store.reference_ms(self.workload)
            calls = {s.key: self.call(s) for s in group}
            timed = measure(calls, reference, self.workload, reference_ms=reference_ms, precision=PRECISION)
            store.add(self.supernet.parent, self.workload, "anchor", timed[REFERENCE].raw)
            for subnet in group:
                store.add(subnet, self.workload, "profile", timed[subnet.key])
        quiet = self.quiet_timings(store)
        if disturbed := sum(s.key not in quiet for s in subnets):
            print(f"{name}: {disturbed} of {len(subnets)} were disturbed; run the script again")
            return None
        return [quiet[s.key].ratio for s in subnets]

    def quiet_timings(self, store: MeasurementStore) -> dict[str, Timing]:
        """Key -> timing, of measurements without drift."""
        measured = store.rows(self.workload, "profile")
        return {m.subnet.key: m.timing for m in measured if m.timing.drift <= MAX_DRIFT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runtime", default="torch")
    parser.add_argument("--seed", type=int, default=0, help="of the subnetworks")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--write-only", action="store_true", help="write ONNX files, measure nothing")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    until = time.monotonic() + arguments.seconds
    workload = Workload(runtime=arguments.runtime)
    benchmark = Benchmark(arguments.model, arguments.folder, workload, arguments.seed)
    if arguments.write_only:
        for subnet in [benchmark.supernet.parent, *benchmark.subnets]:
            benchmark.onnx_file(subnet)
        return
    measured = benchmark.measure(benchmark.subnets, "measurements.jsonl", until)
    again = measured and benchmark.measure(benchmark.subnets[FITTED : FITTED + REPEATED], "repeats.jsonl", until)
    if measured and again:
        report(benchmark, np.array(measured), np.array(again))


def report(benchmark: Benchmark, ratios: np.ndarray, again: np.ndarray) -> None:
    """Prints held-out errors of predictions, and of a second measurement."""
    reference_ms = MeasurementStore(benchmark.folder / "measurements.jsonl").reference_ms(benchmark.workload) or 1.0
    latency_ms, counts = (
        ratios * reference_ms,
        AnalyticCosts.from_model(benchmark.supernet.model, benchmark.supernet.layout),
    )
    macs = [float(counts.macs(s, benchmark.workload.sequence_length)) for s in benchmark.subnets[:FITTED]]
    predictor = SubnetPredictor.fit(
        benchmark.space, benchmark.subnets[:FITTED], latency_ms[:FITTED], benchmark.workload, macs=macs
    )
    held_out, predicted = latency_ms[FITTED:], predictor.predict(benchmark.subnets[FITTED:])
    inside = np.abs(predicted - held_out) <= predictor.spread_ms(benchmark.subnets[FITTED:])
    print(f"{benchmark.workload}: parent {reference_ms:.1f} ms, {FITTED} fitted, {HELD_OUT} held out")
    for name, e in (
        (f"predicted ({predictor.report.model})", errors(held_out, predicted)),
        ("measured again", errors(held_out[:REPEATED], again * reference_ms)),
    ):
        print(f"{name:32} MAPE {e.mape_percent:.2f} %  RMSE {e.rmse_ms:.3g} ms  Kendall tau {e.kendall_tau:.3f}")
    print(f"{'inside the 90 % interval':32} {inside.mean():.0%}")


if __name__ == "__main__":
    main()
