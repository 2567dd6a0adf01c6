"""torch's allocator on a GPU: how much it may hold for all models together, and when it may give memory back.

Weights and KV caches are not in it where their memory is mapped by us (`lodger.runtime.arena`).
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from threading import RLock
from typing import Any, NamedTuple

import torch

from lodger.budget import SEGMENTS, SMALL_CAPTURED, workspaces, workspaces_beside
from lodger.units import MIB

# What loading takes in passing: pieces of a matrix while it is quantised, the self-test, steps that run once before
# they are captured. The KV cache and the captured steps are not there yet then, which the plan has room for.
LOADING = 128 * MIB
# The limit is there for what nobody has thought of. It must not make a request fail because free memory lies in pieces.
BACKSTOP = 96 * MIB
_CAPTURING = RLock()
_POOLED = Counter[torch.device]()  # bytes that pools of captured steps have taken for good


class Grant(NamedTuple):
    """Bytes of one model."""

    kept: int  # as long as it is awake: what its captured steps work in
    step: int  # peak of one step, beyond what its own requests hold between steps
    unfinished: int = 0  # between steps
    pieces: int = 1  # that these consist of
    graphs: int = 0  # the same memory for all models that are given as much
    beside: int = 0  # likewise, of texts beside chats
    gaps: int = 0  # between tensors of several models' steps


class Allowance:
    """What torch may hold on one GPU, for all engines of this process.

    Steps of all models run one after the other, so that the largest one counts. Tensors that were there before the
    first model are not the models'.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = RLock()
        self._grants: dict[object, Grant] = {}
        self._asleep: set[object] = set()
        self._before = self._loading = 0
        self._always = workspaces(torch.cuda.get_device_capability(device)) + SEGMENTS + BACKSTOP

    def grant(self, owner: object, grant: Grant) -> None:
        with self._lock:
            if not self._grants:
                self._before = torch.cuda.memory_allocated(self._device)
            self._grants[owner] = grant
            self._apply()

    def revoke(self, owner: object) -> None:
        with self._lock:
            self._asleep.discard(owner)
            if self._grants.pop(owner, None):
                self._apply()

    def turn(self, owner: object, *, asleep: bool) -> None:
        """A model that sleeps takes no steps, and keeps what it captured."""
        with self._lock:
            (self._asleep.add if asleep else self._asleep.discard)(owner)
            self._apply()

    def reserve(self) -> None:
        """Take what steps need, the largest in one piece, and leave it to the steps to come. Between two of them.

        So no neighbour can take what was planned, and what is held does not grow with what is asked.
        """
        trim()
        with suppress(torch.OutOfMemoryError):  # it grows with what is asked, then
            sizes = [self._step()]
            for grant in self._awake():
                sizes += [grant.unfinished // grant.pieces] * grant.pieces
            [torch.empty(size, dtype=torch.uint8, device=self._device) for size in sizes]

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
        beside = sum({grant.beside for grant in self._grants.values()})
        graphs = sum({grant.graphs for grant in self._grants.values()}) + beside
        kept += max(graphs, _POOLED[self._device])  # of models that are gone, pools stay
        kept += workspaces_beside(torch.cuda.get_device_capability(self._device)) if beside else 0
        unfinished = sum(grant.unfinished for grant in self._awake())
        return self._before + self._always + kept + self._step() + unfinished + self._loading

    def _awake(self) -> list[Grant]:
        with self._lock:
            return [grant for owner, grant in self._grants.items() if owner not in self._asleep]

    def _step(self) -> int:
        awake = self._awake()
        gaps = max((grant.gaps for grant in awake), default=0) if len(awake) > 1 else 0
        return max((grant.step for grant in awake), default=0) + gaps

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
    """While a CUDA graph is captured no thread may wait for the whole GPU, which would end the capture. So nothing that
    does may be collected meanwhile either."""
    with _CAPTURING:
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Where every graph is captured and nothing ever runs.

    A captured product goes on using the workspace that cuBLAS has on its stream, 32 MiB on Hopper. Graphs are replayed
    one after the other, so all of them can use the same.
    """
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


class Pool:
    """Memory that graphs work in which are replayed one after the other and keep nothing there.

    torch forgets a pool with the last graph that uses it, and cannot take it up again: a small graph stays for good.

    Args:
        stream: where these graphs are captured.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.handle: Any = torch.cuda.graph_pool_handle()
        self._stream, self._size = stream, 1
        self._stays = self._taking(1)

    def grow(self, size: int) -> None:
        """Have `size` bytes in one piece, which the tensors of graphs are cut from. Else each large one would get a
        piece of its own, and leave it to those that are no larger.

        Raises:
            torch.OutOfMemoryError.
        """
        if size > self._size:
            self._stays, self._size = self._taking(size), size
            _POOLED[self._stream.device] += size + SMALL_CAPTURED

    def _taking(self, size: int) -> torch.cuda.CUDAGraph:
        """A graph that is never replayed, for which the pool takes `size` bytes, and has them again."""
        graph = torch.cuda.CUDAGraph()
        with capturing(), torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self.handle, capture_error_mode="thread_local")
            try:
                torch.zeros(size, dtype=torch.uint8, device=self._stream.device)
            finally:
                with suppress(RuntimeError):  # of a capture that is invalid by now; what made it so is raised
                    graph.capture_end()
        return graph


@cache
def capture_pool(device: torch.device) -> Pool:
    """The memory that all graphs work in which run on the whole device."""
    return Pool(capture_stream(device))


def finish(device: torch.device) -> None:
    """Wait until everything that a GPU was given is done."""
    with _CAPTURING:
        torch.cuda.synchronize(device)


def make_workspace() -> None:
    """What cuBLAS has on the current stream for this thread, which needs a context."""
    torch.cuda.mem_get_info()
    torch.cuda.current_blas_handle()  # type: ignore[no-untyped-call]


def trim() -> None:
    """Give what torch keeps for later back to the GPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with _CAPTURING:
            torch.cuda.empty_cache()
