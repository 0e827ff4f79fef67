"""Every runtime, and every format of an export, by its name: one file each, one line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from predictors.measurement.runtime import Format, Runtime
from predictors.measurement.runtimes.compile import COMPILE
from predictors.measurement.runtimes.executorch import FORMATS as EXECUTORCH
from predictors.measurement.runtimes.gguf import GGUF
from predictors.measurement.runtimes.onnxruntime import ONNXRUNTIME
from predictors.measurement.runtimes.openvino import OPENVINO
from predictors.measurement.runtimes.torch import TORCH

if TYPE_CHECKING:
    from predictors.measurement.workload import RuntimeName

RUNTIMES: dict[RuntimeName, Runtime] = {runtime.name: runtime for runtime in (TORCH, COMPILE, ONNXRUNTIME, OPENVINO)}
"""Name -> runtime that a workload may have."""

FORMATS: dict[str, Format] = {
    written.name: written for written in (*ONNXRUNTIME.formats, *TORCH.formats, *OPENVINO.formats, *EXECUTORCH, *GGUF)
}
"""Name -> format of ``nas export --to``, in the order of tables."""
