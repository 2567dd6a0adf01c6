"""Counters by which programs that share a piece of work learn who of them is the last, and adds up what all found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

from lodger.runtime.kernels.product_tiling import MOST_TILES

_OWN: ContextVar[torch.Tensor | None] = ContextVar("own_counters", default=None)


@contextmanager
def own_counters(device: torch.device) -> Iterator[torch.Tensor]:
    """For launches on another stream than the device's default, or captured ones: while they run, others may too.

    Whoever replays what was captured keeps the tensor.
    """
    counters = torch.zeros(MOST_TILES, dtype=torch.int32, device=device)
    token = _OWN.set(counters)
    try:
        yield counters
    finally:
        _OWN.reset(token)


def counters(device: torch.device) -> torch.Tensor:
    """How many programs have finished their share of a piece; the last one sets its piece's back to zero."""
    own = _OWN.get()
    return _of_default_stream(device) if own is None else own


@cache
def _of_default_stream(device: torch.device) -> torch.Tensor:
    """One for all launches there: it runs them one after the other."""
    return torch.zeros(MOST_TILES, dtype=torch.int32, device=device)
