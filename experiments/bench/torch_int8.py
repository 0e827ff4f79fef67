"""int8 linear layers in PyTorch on the CPU: `torch.ao.quantization` against torchao, float32 beside them.

    pip install torchao
    python experiments/bench/torch_int8.py MODEL [--tokens 16] [--rounds 21]

A text classifier, batch 1, one thread, CPU time, interleaved, the fastest of the rounds. Both quantize activations at
run time; torchao for each token, and without its compiler, as a workload's runtime ``torch`` has none.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings

import torch
from transformers import AutoModelForSequenceClassification


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = AutoModelForSequenceClassification.from_pretrained(options.model).eval()
    models = {"float32": model, "torch.ao": with_torch_ao(model), "torchao": with_torchao(model)}
    ids = torch.randint(5, 999, (1, options.tokens))
    fastest = dict.fromkeys(models, float("inf"))
    with torch.inference_mode():
        for _ in range(options.rounds):
            for name, each in models.items():
                start = time.process_time()
                each(input_ids=ids)
                fastest[name] = min(fastest[name], time.process_time() - start)
    for name, seconds in fastest.items():
        print(f"{name:10} {1e3 * seconds:.2f} ms")


def with_torch_ao(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with the quantization that a workload of dtype int8 has."""
    from torch.ao.quantization import quantize_dynamic

    return quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)


def with_torchao(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with the same of torchao."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantized = copy.deepcopy(model)
    quantize_(quantized, Int8DynamicActivationInt8WeightConfig())
    return quantized


if __name__ == "__main__":
    main()
