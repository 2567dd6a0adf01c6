"""torch's allocator on a GPU: how much it may hold for all models together, and when it may give memory back.

Weights and KV caches are not in it where their memory is mapped by us (`lodger.runtime.arena`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import RLock
from typing import NamedTuple

import torch

from lodger.budget import SEGMENTS, workspaces
from lodger.units import MIB

# What loading takes in passing: pieces of a matrix while it is quantised, the self-test, steps that run once before
# they are captured. The KV cache and the captured steps are not there yet then, which the plan has room for.
LOADING = 128 * MIB
_CAPTURING = RLock()


class Grant(NamedTuple):
    """Bytes of one model."""

    kept: int  # as long as it is awake: what its captured steps work in
    step: int  # peak of one step


class Allowance:
    """What torch may hold on one GPU, for all engines of this process.

    Steps of all models run one after the other, so that the largest one counts. Tensors that were there before the
    first model are not the models'.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = RLock()
        self._grants: dict[object, Grant] = {}
        self._before = self._loading = 0
        self._always = workspaces(torch.cuda.get_device_capability(device)) + SEGMENTS

    def grant(self, owner: object, grant: Grant) -> None:
        with self._lock:
            if not self._grants:
                self._before = torch.cuda.memory_allocated(self._device)
            self._grants[owner] = grant
            self._apply()

    def revoke(self, owner: object) -> None:
        with self._lock:
            if self._grants.pop(owner, None):
                self._apply()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """LOADING more in the meantime."""
        self._add(LOADING)
        try:
            yield
        finally:
            self._add(-LOADING)

    def most(self) -> int:
        """Bytes."""
        kept = sum(grant.kept for grant in self._grants.values())
        step = max((grant.step for grant in self._grants.values()), default=0)
        return self._before + self._always + kept + step + self._loading

    def _add(self, size: int) -> None:
        with self._lock:
            self._loading += size
            self._apply()

    def _apply(self) -> None:
        total = torch.cuda.get_device_properties(self._device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(self.most() / total, 1.0), self._device)


@cache
def allowance(device: torch.device) -> Allowance:
    """Of a GPU."""
    return Allowance(device)


@contextmanager
def capturing() -> Iterator[None]:
    """While a CUDA graph is captured no thread may `trim`: torch gives no memory back then, and fails where it must."""
    with _CAPTURING:
        yield


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Where every graph is captured and nothing ever runs.

    A captured product goes on using the workspace that cuBLAS has on its stream, 32 MiB on Hopper. Graphs are replayed
    one after the other, so all of them can use the same.
    """
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


def make_workspace() -> None:
    """What cuBLAS has on the current stream for this thread."""
    torch.cuda.current_blas_handle()  # type: ignore[no-untyped-call]


def trim() -> None:
    """Give what torch keeps for later back to the GPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with _CAPTURING:
            torch.cuda.empty_cache()
