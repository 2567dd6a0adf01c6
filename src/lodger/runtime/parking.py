"""`Parked`: a device's memory copied to RAM, and back."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import torch

from lodger.units import MIB

_CHUNK = 256 * MIB
_log = logging.getLogger("lodger.runtime")


class Parked:
    """A copy of `source`, uint8 [size].

    Of a GPU it is in page-locked RAM, which copies at the speed of the bus. RAM is made ready chunk by chunk while the
    chunk before is copied.
    """

    def __init__(self, source: torch.Tensor) -> None:
        self.nbytes = len(source)
        self._chunks: list[_Chunk] = []
        try:
            with _own_stream(source.device):
                for part in source.split_with_sizes(_sizes(self.nbytes)):
                    self._chunks.append(_Chunk(len(part), lock=source.is_cuda))
                    self._chunks[-1].tensor.copy_(part, non_blocking=True)
        except BaseException:
            self.free()
            raise

    def restore(self, target: torch.Tensor) -> None:
        with _own_stream(target.device):
            for chunk, part in zip(self._chunks, target.split_with_sizes(_sizes(self.nbytes)), strict=True):
                part.copy_(chunk.tensor, non_blocking=True)

    def free(self) -> None:
        for chunk in self._chunks:
            chunk.free()
        self._chunks.clear()

    def free_soon(self) -> None:
        """In a thread of its own: letting go of page-locked RAM takes as long as copying it."""
        Thread(target=self.free, name="parked").start()


def _sizes(size: int) -> list[int]:
    return [min(_CHUNK, size - start) for start in range(0, size, _CHUNK)]


class _Chunk:
    """Anonymous pages, exactly as many as are needed: torch's own page-locked buffers are rounded up to a power of two
    and never given back."""

    def __init__(self, size: int, *, lock: bool) -> None:
        pages = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)
        self.tensor = torch.frombuffer(pages, dtype=torch.uint8)[:size]
        self._locked = False
        if lock:
            self.tensor.zero_()  # by all cores: page faults one by one would take longer than the copy
            status = _runtime().cudaHostRegister(self.tensor.data_ptr(), size, 0)
            self._locked = int(status) == 0
            if not self._locked:
                _log.warning("RAM cannot be page-locked (%s): waking will be slower", status)

    def free(self) -> None:
        if self._locked:
            _runtime().cudaHostUnregister(self.tensor.data_ptr())
            self._locked = False
        del self.tensor


def _runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]


@contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Copies beside what other models compute; done at the end of the block."""
    if device.type != "cuda":
        yield
        return
    stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        try:
            yield
        finally:
            stream.synchronize()
