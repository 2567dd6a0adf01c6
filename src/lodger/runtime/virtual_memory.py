"""CUDA's virtual memory: addresses on their own, and memory that comes and goes behind them.

Through cuda-bindings, which torch's CUDA builds depend on. Functions and flags are those of the CUDA driver API,
"Virtual Memory Management".
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from threading import Lock
from typing import Any, Protocol

import torch

from lodger.runtime.allocator import finish, trim

_log = logging.getLogger("lodger.runtime")


class VirtualMemory(Protocol):
    """Of one device. Sizes and addresses are multiples of `granularity`."""

    granularity: int
    mapped: int  # bytes of memory behind addresses now

    def reserve(self, size: int) -> int:
        """An address with room for `size` bytes and no memory behind it."""
        ...

    def free(self, address: int, size: int) -> None:
        """Undo `reserve`."""
        ...

    def map(self, address: int, size: int) -> Any:
        """Put fresh memory behind a part of what was reserved.

        Returns:
            What `unmap` takes.

        Raises:
            MemoryError: the device has no more.
        """
        ...

    def unmap(self, address: int, size: int, memory: Any) -> None:
        """Give memory back to the device. Whatever used it must be done."""
        ...

    def bytes(self, address: int, size: int, owner: object) -> torch.Tensor:
        """uint8 [size] at `address`, of which the beginning is mapped; `owner` lives as long as the tensor."""
        ...

    def finish(self) -> None:
        """Wait until everything that the device was given is done."""
        ...


@cache
def virtual_memory(device: torch.device) -> CudaMemory | None:
    """Of a GPU; None where the driver refuses (some virtual GPUs) or cuda-bindings is missing."""
    try:
        return CudaMemory(device)
    except (ImportError, AttributeError, MemoryError, RuntimeError) as refusal:
        _log.warning("memory of models is not mapped by us, and will move when they sleep: %s", refusal)
        return None


class CudaMemory:
    """Works once before it is used.

    Raises:
        ImportError, AttributeError: no cuda-bindings, or one too old.
        RuntimeError, MemoryError: the driver refuses.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda: Any = import_module("cuda.bindings.driver")
        self._device = device
        self._lock = Lock()
        self.mapped = 0
        self._attach()
        cuda, properties = self._cuda, self._cuda.CUmemAllocationProp()
        properties.type = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = device.index or 0
        self._properties = properties
        smallest = cuda.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
        self.granularity = int(checked(cuda.cuMemGetAllocationGranularity(properties, smallest)))
        self._access = cuda.CUmemAccessDesc()
        self._access.location = properties.location
        self._access.flags = cuda.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        self._try()

    def reserve(self, size: int) -> int:
        self._attach()
        return int(checked(self._cuda.cuMemAddressReserve(size, 0, 0, 0)))

    def free(self, address: int, size: int) -> None:
        checked(self._cuda.cuMemAddressFree(address, size))

    def map(self, address: int, size: int) -> Any:
        self._attach()
        try:
            memory = checked(self._cuda.cuMemCreate(size, self._properties, 0))
        except MemoryError:
            trim()  # what torch keeps for later may be all that is missing
            memory = checked(self._cuda.cuMemCreate(size, self._properties, 0))
        checked(self._cuda.cuMemMap(address, size, 0, memory, 0))
        checked(self._cuda.cuMemSetAccess(address, size, [self._access], 1))
        self._count(size)
        return memory

    def unmap(self, address: int, size: int, memory: Any) -> None:
        self._attach()
        checked(self._cuda.cuMemUnmap(address, size))
        checked(self._cuda.cuMemRelease(memory))
        self._count(-size)

    def bytes(self, address: int, size: int, owner: object) -> torch.Tensor:
        return torch.as_tensor(_Exported(address, size, owner), device=self._device)

    def finish(self) -> None:
        finish(self._device)

    def _try(self) -> None:
        address = self.reserve(self.granularity)
        self.unmap(address, self.granularity, self.map(address, self.granularity))
        self.free(address, self.granularity)

    def _attach(self) -> None:
        """Make torch's context this thread's."""
        torch.cuda.mem_get_info(self._device)

    def _count(self, size: int) -> None:
        with self._lock:
            self.mapped += size


class _Exported:
    """Device memory as numba's CUDA Array Interface (version 3) describes it; torch keeps this object."""

    def __init__(self, address: int, size: int, owner: object) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}
        self._owner = owner


def checked(answer: tuple[Any, ...]) -> Any:
    """What a call of the driver returned beside its status.

    Raises:
        MemoryError: CUDA_ERROR_OUT_OF_MEMORY.
        RuntimeError: any other error.
    """
    status, *values = answer
    if int(status) == 2:
        raise MemoryError("the device has no more memory")
    if int(status) != 0:
        raise RuntimeError(f"the CUDA driver answered {status.name}")
    return values[0] if values else None
