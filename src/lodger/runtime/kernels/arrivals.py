"""Counters by which programs that share a piece of work learn who of them is the last, and adds up what all found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Protocol

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


class Cut(Protocol):
    """How a product is cut, whichever kernel computes it."""

    @property
    def tokens(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def splits(self) -> int:
        """Programs that share a tile."""
        ...


def shares(
    x: torch.Tensor, out: torch.Tensor, rows: int, cut: Cut, *, sums: int = 1
) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Of a product of x [T, columns] with a weight of `rows`, where programs may share a tile.

    Returns:
        The number of tiles, room for what each program finds (`sums` float32 for each number of its tile), and the
        counters. Where no tile is shared, `out` stands for both and is not touched as such.
    """
    tiles = -(-rows // cut.rows) * -(-len(x) // cut.tokens)
    if cut.splits == 1:
        return tiles, out, out
    size = tiles * cut.splits * cut.rows * cut.tokens * sums
    return tiles, x.new_empty(size, dtype=torch.float32), counters(x.device)


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
