"""Runtime: a library that executes models, and the formats of the files that it executes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

    from predictors.measurement.workload import Dtype, RuntimeName, Workload

Call = Callable[[], object]
"""Runs a model once and returns its outputs."""

Inputs = Mapping[str, Any]
"""Inputs of a model: name -> tensor, or a cache of keys and values."""

Arrays = Mapping[str, "np.ndarray"]
"""Inputs of a file: name -> array."""

ForwardFunction = Callable[[Mapping[str, "torch.Tensor"]], Mapping[str, "torch.Tensor"]]
"""Runs a file on inputs by name and returns its outputs by name."""


@dataclass(frozen=True)
class Format:
    """A file with dynamic shapes that a runtime executes: a choice of ``nas export --to`` and ``nas convert --to``.

    Attributes:
        name: Its name there.
        file: Its path in the folder of an export.
        write: Writes the file of a model on the CPU, from the inputs that it is traced with.
        load: Loads the file; returns a function of inputs by name that returns outputs by name.
        workload: Fields of the workload that differ from those of the Hugging Face model when the file is measured.
        call: Returns a call that runs the file on arrays under a workload; None: as `load` does.
        extra: The extra of this package that is needed to write and load it; empty for none.
        rounds: Whether the outputs differ from those of the model because products are rounded.
        keeps_dtype: Whether a model in 16 bits computes in them; other files store its weights so, and compute in
            float32.
        spread: Largest difference that its weights of few bits may make to an output of a real token, in standard
            deviations of the outputs; 0 where `rounding.allowed_difference` says what is allowed.
        is_bounded: Whether the file runs at most the batch size and length that it is traced with.
        libraries: Modules that `load` imports and that do not count as the memory of a model.
    """

    name: str
    file: str
    write: Callable[[PreTrainedModel, Inputs, Path], object]
    load: Callable[[Path], ForwardFunction]
    workload: Mapping[str, Any]
    call: Callable[[Path, Mapping[str, torch.Tensor], Workload], Call] | None = None
    extra: str = ""
    rounds: bool = False
    keeps_dtype: bool = False
    is_bounded: bool = False
    spread: float = 0.0
    libraries: Sequence[str] = ()

    def prepare(self, file: Path, inputs: Mapping[str, torch.Tensor], workload: Workload) -> Call:
        """Returns a call that runs the file once on these inputs."""
        return self.call(file, inputs, workload) if self.call else partial(self.load(file), inputs)


@dataclass(frozen=True)
class Runtime:
    """A library that executes models when their latency is measured: `workload.runtime` of a recipe.

    A subclass has either `prepare`, for models in memory, or `write` and `call`, for files.

    Attributes:
        name: Its name in a workload.
        packages: Packages that run a model on any device, besides NumPy.
        dtypes: Dtypes of a workload that it runs.
        devices: Kinds of devices that it runs on.
        extra: The extra of this package that installs `extra_packages`; empty for none.
        extra_packages: Packages that measuring a model on this machine needs beyond this package's own.
        layer_dtypes: Of the dtypes that also round activations, those of single layers that it has kernels for.
        formats: Files that it executes.
        in_calling_thread: Whether a workload of one thread on the CPU computes in the thread that calls it.
    """

    name: RuntimeName
    packages: Sequence[str]
    dtypes: Sequence[Dtype]
    devices: Sequence[str] = ("cpu", "cuda")
    extra: str = ""
    extra_packages: Sequence[str] = ()
    layer_dtypes: Sequence[str] = ()
    formats: Sequence[Format] = ()
    in_calling_thread: bool = True

    @property
    def needs_torch(self) -> bool:
        """Whether it runs PyTorch models; otherwise `write` gives it a file, and it runs without PyTorch."""
        return "torch" in self.packages

    @property
    def is_installed(self) -> bool:
        """Whether this Python has the packages that measuring a model needs."""
        return all(find_spec(package) is not None for package in self.extra_packages)

    def check(self, workload: Workload) -> None:
        """Checks that this machine has what a workload needs, and that the runtime supports it.

        Raises:
            InputError: If something is missing; the message says how to install it.
        """
        from predictors.measurement.onnx_export import require

        what = f"`workload.runtime={self.name}`"
        require(*self.extra_packages, extra=self.extra, what=what)
        self.check_compiler(workload)
        if workload.dtype not in self.dtypes:
            raise InputError(
                f"{what} runs {listed(self.dtypes)}, but got `{workload.dtype}`; set another `workload.dtype`, or "
                "another `workload.runtime`."
            )
        if workload.device.partition(":")[0] not in self.devices:
            raise InputError(
                f"{what} runs on the {listed(self.devices)}, but got `{workload.device}`; set one of them."
            )
        if workload.dtype == "int8" and workload.on_cuda:
            raise InputError(f"`workload.dtype=int8` runs on the cpu, but got `{workload.device}`; set one of them.")

    def check_compiler(self, workload: Workload) -> None:
        """Raises InputError if the runtime compiles models and this machine has no compiler."""

    def prepare(self, model: PreTrainedModel, inputs: Inputs, workload: Workload) -> Call:
        """Returns a call that runs a model once; the first calls may compile it.

        Args:
            model: A Hugging Face model.
            inputs: Inputs of complete sequences.
            workload: Device, dtype, phase and threads; `check` accepts it.
        """
        with tempfile.TemporaryDirectory(prefix=f"nas-{self.name}-") as folder:
            return self.call(*self.write(model, inputs, workload, Path(folder)), workload)

    def write(
        self, model: PreTrainedModel, inputs: Inputs, workload: Workload, folder: Path
    ) -> tuple[Path, dict[str, np.ndarray]]:
        """Writes a model for the phase and shape of a workload; returns the file and its inputs."""
        raise NotImplementedError

    def call(self, file: Path, arrays: Arrays, workload: Workload) -> Call:
        """Returns a call that runs a written file; imports only the runtime and NumPy."""
        raise NotImplementedError


def listed(names: Sequence[str]) -> str:
    """Names as a list in words."""
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
