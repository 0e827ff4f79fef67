"""`torch.compile`: PyTorch, compiled for the shapes of a workload."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from predictors.measurement.phases import on_device
from predictors.measurement.runtime import Call, Inputs, Runtime
from predictors.measurement.runtimes.torch import forward_call
from search_spaces.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from predictors.measurement.workload import Workload

RECOMPILE_LIMIT = 4096
"""Number of models of one class that `torch.compile` may keep compiled, in place of its own limit of 8."""

COMPILERS = ("c++", "g++", "clang++", "cl")


class _Compile(Runtime):
    def check_compiler(self, workload: Workload) -> None:
        """On the CPU it needs a C++ compiler."""
        if not (workload.on_cuda or any(map(shutil.which, COMPILERS))):
            raise InputError(
                f"`workload.runtime={self.name}` needs a C++ compiler, but there is none; install one with "
                "`apt install g++`."
            )

    def prepare(self, model: PreTrainedModel, inputs: Inputs, workload: Workload) -> Call:
        """Compiles the model."""
        import torch

        model, moved = on_device(model, inputs, workload)
        limits: dict[str, Any] = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), RECOMPILE_LIMIT)
        call = forward_call(torch.compile(model, dynamic=False), moved)
        with torch._dynamo.config.patch({**limits, "fail_on_recompile_limit_hit": True}):
            for _ in range(2):
                call()
        return call


COMPILE = _Compile(
    name="compile",
    packages=("torch", "transformers"),
    dtypes=("float32", "bfloat16", "float16"),
    layer_dtypes=("bfloat16",),
)
