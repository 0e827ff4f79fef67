"""A second device for machines that have none: tensors of the CPU that count as those of another device.

PyTorch itself refuses no operator of tensors of two devices here, so `SecondDevice` does.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("second")
DEVICE, CPU = torch.device("second", 0), torch.device("cpu")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
"""Operators that may have tensors of two devices."""
KERNELS = torch.library.Library("aten", "IMPL")
"""What PyTorch calls where it hides its operators from `SecondDevice`, as in ``torch.tensor``."""


class There(torch.Tensor):
    """A tensor of that device, with its values in a tensor of the CPU."""

    here: torch.Tensor
    memory: Memory

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> There:
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "dtype": here.dtype}
        there = torch.Tensor._make_wrapper_subclass(cls, here.shape, device=DEVICE, **layout)
        there.here = here
        return there

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator that is hidden from `SecondDevice`."""
        if func is torch.ops.aten.copy_.default:
            return copied(*args[:2])
        return func(*on_cpu(args), **on_cpu(kwargs or {}))


class Memory:
    """Lives as long as its tensor."""


def on_cpu(values: Any) -> Any:
    """The same values with tensors of the CPU."""
    return tree_map_only(There, lambda there: there.here, values)


def copied(target: Any, source: torch.Tensor) -> Any:
    """Copies a tensor of any device into one of this device."""
    target.here.copy_(on_cpu(source))
    return target


def _empty(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> There:
    return There(torch.empty_strided(size, stride, dtype=dtype))


KERNELS.impl("empty_strided", _empty, "PrivateUse1")
KERNELS.impl("_copy_from", lambda source, target, *_: copied(target, source), "PrivateUse1")


class SecondDevice(TorchDispatchMode):
    """Runs operators of tensors of the device on the CPU, and refuses those of tensors of both.

    Attributes:
        bytes: Memory of its tensors.
        peak_bytes: The most that they took at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak_bytes = 0
        self._tensors: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._has_compatible_shallow_copy_type.default:
            return False
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        is_there = any(isinstance(tensor, There) for tensor in tensors)
        if is_there and func not in COPIES and any(t.dim() and not isinstance(t, There) for t in tensors):
            raise RuntimeError(f"{func} has tensors of two devices")
        for device in (leaf for leaf in leaves if isinstance(leaf, torch.device)):
            is_there = device.type == DEVICE.type
        args, kwargs = tree_map_only(torch.device, lambda _: CPU, (tuple(args), dict(kwargs or {})))
        found = func(*on_cpu(args), **on_cpu(kwargs))
        if any(result.alias_info is not None and result.alias_info.is_write for result in func._schema.returns):
            return args[0]
        return tree_map_only(torch.Tensor, self._there, found) if is_there else found

    def _there(self, here: torch.Tensor) -> There:
        there, storage = There(here), here.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        self.bytes += 0 if address in self._tensors else size
        self.peak_bytes = max(self.peak_bytes, self.bytes)
        self._tensors[address] = self._tensors.get(address, 0) + 1
        there.memory = Memory()
        weakref.finalize(there.memory, self._free, address, size)
        return there

    def _free(self, address: int, size: int) -> None:
        self._tensors[address] -= 1
        if not self._tensors[address]:
            del self._tensors[address]
            self.bytes -= size


@contextmanager
def second_device() -> Iterator[SecondDevice]:
    """Uses the device. Parameters that are moved stay the same objects, and nothing becomes an inference tensor."""
    no_inference = mock.patch.object(
        torch, "inference_mode", lambda mode=True: torch.no_grad() if mode else nullcontext()
    )
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with no_inference, SecondDevice() as device:
            yield device
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
