"""`Stopwatch`: how long work takes on the device, without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

Mark = Any  # torch.cuda.Event on a GPU, else seconds as a float
Told = Callable[[list[float]], None]
_MOST_WAITING = 64  # measurements that the device has not come to yet


class Stopwatch:
    """Used by the device's thread only.

    Args:
        on_gpu: work is launched there and takes its time later; else it is done when a call returns.
    """

    def __init__(self, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._waiting: deque[tuple[list[Mark], Told]] = deque()

    def mark(self) -> Mark:
        """This moment of the device's time."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def tell(self, marks: list[Mark], told: Told) -> None:
        """`told` gets the milliseconds between neighbouring marks in one of the next calls of `hear`."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting.append((marks, told))

    def hear(self) -> None:
        while self._waiting and _reached(self._waiting[0][0][-1]):
            marks, told = self._waiting.popleft()
            told([_between(*pair) for pair in zip(marks, marks[1:], strict=False)])


def _reached(mark: Mark) -> bool:
    return isinstance(mark, float) or bool(mark.query())


def _between(before: Mark, after: Mark) -> float:
    """Milliseconds."""
    if isinstance(before, float):
        return float(after - before) * 1e3
    return float(before.elapsed_time(after))
