"""Virtual memory of a device that is not there: the rules are checked, and memory that was given back is lost."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import torch


class FakeMemory:
    """Ranges of RAM. Used wrongly it fails; `capacity` bytes can be mapped at once."""

    granularity = 4096

    def __init__(self, capacity: int = 2**30) -> None:
        self.capacity = capacity
        self.ranges: dict[int, mmap.mmap] = {}  # by their address
        self.pieces: dict[int, tuple[int, object]] = {}  # address -> size and what was returned for it
        self.busy = True  # the device may still use what it was given

    @property
    def mapped(self) -> int:
        return sum(size for size, _ in self.pieces.values())

    def reserve(self, size: int) -> int:
        assert size % self.granularity == 0
        pages = mmap.mmap(-1, size)
        address = torch.frombuffer(pages, dtype=torch.uint8).data_ptr()
        self.ranges[address] = pages
        return address

    def free(self, address: int, size: int) -> None:
        assert len(self.ranges.pop(address)) == size
        assert not any(address <= piece < address + size for piece in self.pieces)

    def map(self, address: int, size: int) -> Any:
        assert size > 0
        assert size % self.granularity == 0
        self._within(address, size)
        assert not any(a < address + size and address < a + s for a, (s, _) in self.pieces.items()), "mapped twice"
        if self.mapped + size > self.capacity:
            raise MemoryError
        self.pieces[address] = size, object()
        return self.pieces[address][1]

    def unmap(self, address: int, size: int, memory: Any) -> None:
        assert not self.busy
        assert self.pieces.pop(address) == (size, memory)
        start = self._within(address, size)
        pages = self.ranges[start]
        pages[address - start : address - start + size] = b"\xa5" * size  # fresh memory holds anything

    def bytes(self, address: int, size: int, owner: object) -> torch.Tensor:
        assert address in self.pieces, "torch asks the driver about the beginning"

        class Array(ctypes.c_uint8 * size):  # type: ignore[misc]
            """Has room for an attribute, which a plain buffer has not."""

        array = Array.from_buffer(self.ranges[address])
        array.owner = owner
        return torch.frombuffer(array, dtype=torch.uint8)

    def finish(self) -> None:
        self.busy = False

    def _within(self, address: int, size: int) -> int:
        [start] = [start for start, pages in self.ranges.items() if start <= address < start + len(pages)]
        assert address + size <= start + len(self.ranges[start])
        return start
