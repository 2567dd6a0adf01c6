"""Arenas: the memory that one model's weights or one KV cache takes, given back and taken again as a whole.

On a GPU an arena is a range of addresses that is reserved for good and memory that is mapped behind it: tensors keep
their addresses while their model sleeps, so captured CUDA graphs stay valid. Where the driver refuses that, tensors
move (`addresses_kept` is False), and graphs must be captured again.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Sequence
from threading import Lock
from typing import Any, NamedTuple, Protocol

import torch

from lodger.runtime.allocator import finish
from lodger.runtime.parking import Parked
from lodger.runtime.virtual_memory import VirtualMemory, virtual_memory
from lodger.units import MIB

_ALIGNED = 512  # bytes: what kernels may assume of the beginning of a tensor, and torch's allocator gives
_SPARE = 64 * MIB  # of addresses, for the ends of tensors


class Arena(Protocol):
    """Several threads may allocate at once. Memory is free again when the arena and all its tensors are gone."""

    addresses_kept: bool  # whether tensors are where they were after `wake`

    @property
    def nbytes(self) -> int:
        """Bytes on the device now."""
        ...

    @property
    def parked(self) -> int:
        """Bytes kept in RAM now."""
        ...

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """
        Raises:
            MemoryError, torch.OutOfMemoryError.
        """
        ...

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """
        Raises:
            MemoryError, torch.OutOfMemoryError.
        """
        ...

    def sleep(self, *, keep: bool) -> None:
        """Give the memory back once the device is done with it. Nobody may touch the tensors until `wake`.

        Args:
            keep: with the contents in RAM; else they are zeros after `wake`.
        """
        ...

    def wake(self) -> None:
        """
        Raises:
            MemoryError, torch.OutOfMemoryError: it sleeps on.
        """
        ...


def for_weights(device: torch.device, size: int) -> Arena | None:
    """Room for `size` bytes on a GPU. A CPU's weights are reordered by libraries, which allocate for themselves."""
    return None if device.type == "cpu" else for_cache(device, size)


def for_cache(device: torch.device, size: int) -> Arena:
    if device.type == "cpu":
        return HostArena()
    memory = virtual_memory(device)
    return PlainArena(device) if memory is None else MappedArena(memory, 2 * size + _SPARE)


def apart(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros in an arena of their own, which goes with them: what stays must not lie amid the memory that steps need in
    one piece."""
    return for_cache(device, torch.Size(shape).numel() * dtype.itemsize).zeros(shape, dtype)


class MappedArena:
    """Tensors one after the other in one range of addresses.

    Args:
        size: most bytes; addresses cost nothing.
    """

    addresses_kept = True

    def __init__(self, memory: VirtualMemory, size: int) -> None:
        self._range = _Range(memory, _upwards(size, memory.granularity))
        self._lock = Lock()
        self._used = 0
        self._kept: Parked | None = None
        self._bytes: torch.Tensor | None = None  # of the whole range, from the first tensor on

    @property
    def nbytes(self) -> int:
        return self._range.mapped

    @property
    def parked(self) -> int:
        return self._kept.nbytes if self._kept else 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        with self._lock:
            start = _upwards(self._used, _ALIGNED)
            end = start + torch.Size(shape).numel() * dtype.itemsize
            self._range.grow(max(end, 1))
            self._used = end
            if self._bytes is None:
                self._bytes = self._range.bytes()
            return self._bytes[start:end].view(dtype).view(*shape)

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return self.empty(shape, dtype).zero_()

    @torch.inference_mode()
    def sleep(self, *, keep: bool) -> None:
        if self._bytes is None or not self._range.mapped:
            return
        self._range.finish()
        if keep:
            self._kept = Parked(self._bytes[: self._used])
        self._range.unmap()

    @torch.inference_mode()
    def wake(self) -> None:
        if self._bytes is None or self._range.mapped:
            return
        try:
            self._range.grow(max(self._used, 1))
            self._fill(self._bytes[: self._used])
        except BaseException:  # else pages without their content would count as awake
            self._range.unmap()
            raise
        if self._kept is not None:
            self._kept.free_soon()
            self._kept = None

    def _fill(self, content: torch.Tensor) -> None:
        if self._kept is None:
            content.zero_()
        else:
            self._kept.restore(content)


class _Piece(NamedTuple):
    address: int
    size: int
    memory: Any


class _Range:
    """Reserved addresses, of which the beginning is mapped. Every tensor in it holds on to it."""

    def __init__(self, memory: VirtualMemory, size: int) -> None:
        self._memory, self._size = memory, size
        self._address = memory.reserve(size)
        self._pieces: list[_Piece] = []
        end = weakref.finalize(self, _give_back, memory, self._address, size, self._pieces)
        end.atexit = False  # the process takes everything along

    @property
    def mapped(self) -> int:
        return sum(piece.size for piece in self._pieces)

    def grow(self, size: int) -> None:
        """Map at least the first `size` bytes."""
        start = self.mapped
        missing = _upwards(size - start, self._memory.granularity)
        if missing <= 0:
            return
        if start + missing > self._size:
            raise MemoryError(f"{size} bytes are more than the {self._size} that were reserved")
        address = self._address + start
        self._pieces.append(_Piece(address, missing, self._memory.map(address, missing)))

    def unmap(self) -> None:
        while self._pieces:
            self._memory.unmap(*self._pieces.pop())

    def finish(self) -> None:
        self._memory.finish()

    def bytes(self) -> torch.Tensor:
        return self._memory.bytes(self._address, self._size, self)


def _give_back(memory: VirtualMemory, address: int, size: int, pieces: list[_Piece]) -> None:
    memory.finish()
    for piece in pieces:
        memory.unmap(*piece)
    memory.free(address, size)


class PlainArena:
    """Tensors of torch's own allocator, which move while they sleep."""

    addresses_kept = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = Lock()
        self._storages: list[tuple[torch.UntypedStorage, int]] = []
        self._kept: list[Parked] = []
        self._asleep = False

    @property
    def nbytes(self) -> int:
        return sum(storage.nbytes() for storage, _ in self._storages)

    @property
    def parked(self) -> int:
        return sum(kept.nbytes for kept in self._kept)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=self._device)
        with self._lock:
            self._storages.append((tensor.untyped_storage(), tensor.nbytes))
        return tensor

    def zeros(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return self.empty(shape, dtype).zero_()

    @torch.inference_mode()
    def sleep(self, *, keep: bool) -> None:
        if self._asleep:
            return
        if self._device.type == "cuda":
            finish(self._device)
        if keep:
            self._kept = [Parked(_bytes_of(storage)) for storage, _ in self._storages]
        self._drop()

    @torch.inference_mode()
    def wake(self) -> None:
        if not self._asleep:
            return
        try:
            for storage, size in self._storages:
                storage.resize_(size)
        except BaseException:
            self._drop()
            raise
        for index, (storage, _) in enumerate(self._storages):
            if self._kept:
                self._kept[index].restore(_bytes_of(storage))
                self._kept[index].free()
            else:
                _bytes_of(storage).zero_()
        self._kept, self._asleep = [], False

    def _drop(self) -> None:
        for storage, _ in self._storages:
            storage.resize_(0)
        self._asleep = True


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


class HostArena:
    """Zeros in RAM as untouched anonymous pages, so that they cost only what has been used of them."""

    addresses_kept = True
    parked = 0

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._asleep = False

    @property
    def nbytes(self) -> int:
        return 0 if self._asleep else sum(map(len, self._maps))

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        size = torch.Size(shape).numel() * dtype.itemsize
        self._maps.append(mmap.mmap(-1, size))
        return torch.frombuffer(self._maps[-1], dtype=dtype).view(*shape)

    zeros = empty

    def sleep(self, *, keep: bool) -> None:
        self._asleep = True
        if not keep:
            for pages in self._maps:
                pages.madvise(mmap.MADV_REMOVE)

    def wake(self) -> None:
        self._asleep = False


def _upwards(size: int, grain: int) -> int:
    return -(-size // grain) * grain
