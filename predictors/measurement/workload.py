"""Workload: the runtime, device, dtype, input shape and threads that a latency is measured with."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from search_spaces.errors import InputError, did_you_mean

RuntimeName = Literal["torch", "compile", "onnxruntime", "openvino"]
Dtype = Literal["float32", "bfloat16", "float16", "int8"]
Phase = Literal["encode", "prefill", "decode"]

MOST = {"sequence_length": 10_000_000, "threads": 4096}
"""Field of a workload -> its greatest value."""


@dataclass(frozen=True)
class Workload:
    """The conditions under which a model runs. Latencies are comparable only if their workloads are equal.

    Attributes:
        runtime: ``torch`` (eager PyTorch), ``compile`` (`torch.compile`), ``onnxruntime`` or ``openvino``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: Dtype of weights and activations; ``int8`` is dynamic quantization of matrix products.
        batch_size: Samples in one call.
        sequence_length: Tokens per sample; None for images.
        threads: CPU threads per operation.
        phase: ``encode`` is one pass over the sequence, ``prefill`` the same with a cache of keys and values, and
            ``decode`` a pass over the last token with all tokens before it in the cache.

    Raises:
        InputError: If a value is unknown or a number is below 1.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    runtime: RuntimeName = "torch"
    device: str = "cpu"
    dtype: Dtype = "float32"
    batch_size: int = 1
    sequence_length: int | None = 128
    threads: int = 1
    phase: Phase = "encode"

    def __post_init__(self) -> None:
        for name, literal in (("runtime", RuntimeName), ("dtype", Dtype), ("phase", Phase)):
            value, allowed = getattr(self, name), get_args(literal)
            if value not in allowed:
                hint = did_you_mean(str(value), allowed)
                raise InputError(f"`workload.{name}` must be a known one, but got `{value}`; {hint}.")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", str(self.device)):
            raise InputError(f"`workload.device` must be `cpu`, `cuda` or `cuda:N`, but got `{self.device}`.")
        for name in ("batch_size", "sequence_length", "threads"):
            count = getattr(self, name)
            if name == "sequence_length" and count is None:
                continue
            most = MOST.get(name, sys.maxsize)
            if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= most:
                law = f"a whole number of at least 1{f' and at most {most:,}' if name in MOST else ''}"
                raise InputError(f"`workload.{name}` must be {law}, but got {str(count)[:40]}.")

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.startswith("cuda")

    @property
    def device_index(self) -> int:
        """Index of the GPU on its machine."""
        return int(self.device.partition(":")[2] or 0)

    @property
    def needs_torch(self) -> bool:
        """Whether the runtime needs PyTorch; ONNX Runtime does not."""
        from predictors.measurement.runtimes import RUNTIMES

        return RUNTIMES[self.runtime].needs_torch

    @property
    def in_calling_thread(self) -> bool:
        """Whether a model computes in the thread that calls it and nowhere else."""
        from predictors.measurement.runtimes import RUNTIMES

        return self.device == "cpu" and self.threads == 1 and RUNTIMES[self.runtime].in_calling_thread

    @property
    def activation_bytes(self) -> int:
        """Bytes per value of activations and caches; ``int8`` quantizes matrix products only."""
        return 2 if self.dtype in ("bfloat16", "float16") else 4

    @property
    def weight_bytes(self) -> int:
        """Bytes per value of the weights of matrix products."""
        return 1 if self.dtype == "int8" else self.activation_bytes

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Workload:
        """Reads what `to_dict` returns; missing fields get their defaults.

        Raises:
            InputError: If a field is unknown or its value is not allowed.
        """
        names = [field.name for field in fields(cls)]
        for name in data:
            if name not in names:
                raise InputError(f"`workload.{name}` is not a field of a workload; {did_you_mean(name, names)}.")
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold."""
        return asdict(self)

    def check_available(self) -> None:
        """Checks that the device is on this machine.

        Raises:
            InputError: If it is not; the message lists the devices that are.
        """
        if not (self.on_cuda and self.needs_torch):
            return
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.device_index >= count:
            devices = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
            raise InputError(
                f"`workload.device` must be on this machine, but got `{self.device}` and there is only: {devices}; "
                f"set `workload.device={devices.split(', ')[-1]}`, or install a torch built for your GPU."
            )

    def __str__(self) -> str:
        counts = ((self.sequence_length, "token"), (self.threads, "thread"))
        shapes = " · ".join(f"{n} {unit}{'s' * (n != 1)}" for n, unit in counts if n is not None)
        phase = "" if self.phase == "encode" else f"{self.phase} · "
        return f"{self.runtime} · {self.device} · {self.dtype} · {phase}batch {self.batch_size} · {shapes}"


def visible_gpu(index: int) -> str:
    """Returns the number or UUID by which NVIDIA's tools know a CUDA device.

    They number all devices; CUDA only those in CUDA_VISIBLE_DEVICES.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [] if listed is None else [name.strip() for name in listed.split(",")]
    return names[index] if index < len(names) else str(index)


@lru_cache
def device_name(workload: Workload) -> str:
    """The vendor's name of the processor or GPU that a workload runs on.

    Raises:
        InputError: If the device is not on this machine.
    """
    workload.check_available()
    if workload.on_cuda:
        return _gpu_name(workload)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def _gpu_name(workload: Workload) -> str:
    if workload.needs_torch:
        import torch

        return str(torch.cuda.get_device_name(workload.device))
    command = ["nvidia-smi", f"--id={visible_gpu(workload.device_index)}", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise InputError(
            f"`workload.device` must be on this machine, but got `{workload.device}` and nvidia-smi finds none."
        ) from None


OUT_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "failed to allocate",
    "bad_alloc",
    "out of memory",
)
"""Texts in the errors of PyTorch, its CPU allocator and ONNX Runtime if memory runs out."""

DEVICE_LOST = ("cuda error", "cuda driver", "cuda failure", "nvml", "no cuda-capable device")
"""Texts in the errors of PyTorch and ONNX Runtime if a GPU is lost."""


@contextmanager
def device_errors_as_input_errors(workload: Workload) -> Iterator[None]:
    """Turns errors of a runtime about exhausted memory or a lost device into an `InputError`.

    Raises:
        InputError: If memory ran out or the device was lost.
    """
    try:
        yield
    except Exception as error:  # the errors of ONNX Runtime have no narrower base class
        message = " ".join(str(error).split())
        if isinstance(error, MemoryError) or any(text in message.lower() for text in OUT_OF_MEMORY):
            raise InputError(
                f"the workload must fit in memory, but ({workload}) does not; set a smaller `workload.batch_size`."
            ) from error
        if workload.on_cuda and any(text in message.lower() for text in DEVICE_LOST):
            raise InputError(
                f"`{workload.device}` must stay available until the end, but it was lost ({message[:100]}); finished "
                "measurements are kept: bring the device back and type the same command again."
            ) from error
        raise
