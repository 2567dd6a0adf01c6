"""`PackedBatch`: the tokens of any number of sequences in one row, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
import torch

from lodger.sched.step import Item, Row


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Inputs of one forward: T tokens of N sequences, laid end to end.

    What the host decides with stays on the host, so that nothing is read back from the device.
    """

    tokens: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    offsets: tuple[int, ...]  # N + 1: sequence n is tokens offsets[n]:offsets[n + 1]
    token_types: torch.Tensor | None = None  # [T] int64
    past: tuple[int, ...] = ()  # tokens of each sequence that the KV cache holds already
    blocks: tuple[tuple[int, ...], ...] = ()  # block table of each sequence
    stacked: torch.Tensor | None = None  # [3, T] int64: tokens, positions and types in one, of whole texts
    wanted: tuple[int, ...] | None = None  # sequences whose last hidden states are all that is asked for; None: all are
    slots: torch.Tensor | None = None  # [T] int64: place of each token in the KV cache, block * block_size + offset

    @property
    def lengths(self) -> tuple[int, ...]:
        """New tokens of each sequence."""
        return tuple(end - start for start, end in zip(self.offsets, self.offsets[1:], strict=False))


def pack_rows(rows: Sequence[Row], block_size: int, device: torch.device) -> PackedBatch:
    """Rows of a generating step, with a slot of the KV cache for every token."""
    offsets = tuple(accumulate((len(row.tokens) for row in rows), initial=0))
    packed = torch.empty(3, offsets[-1], dtype=torch.int64, pin_memory=device.type == "cuda")
    tokens, positions, slots = packed.numpy()  # torch's own ways from a list are ten times slower
    tokens[:] = np.fromiter(chain.from_iterable(row.tokens for row in rows), np.int64, offsets[-1])
    for row, start in zip(rows, offsets, strict=False):
        own = slice(start, start + len(row.tokens))
        if row.end - row.start == 1:  # without numpy's price for each of many
            positions[start] = row.start
            slots[start] = row.blocks[row.start // block_size] * block_size + row.start % block_size
        else:
            positions[own] = np.arange(row.start, row.end)
            slots[own] = slots_of(row.blocks, block_size, row.start, row.end)
    packed = packed.to(device, non_blocking=True)
    return PackedBatch(
        tokens=packed[0],
        positions=packed[1],
        offsets=offsets,
        past=tuple(row.start for row in rows),
        blocks=tuple(row.blocks for row in rows),
        slots=packed[2],
    )


def slots_of(blocks: Sequence[int], block_size: int, start: int, end: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Places in the KV cache of a sequence's positions `start` to `end`: block * block_size + offset."""
    first = start // block_size
    own = np.array(blocks[first : -(-end // block_size)], np.int64) * block_size
    found: np.ndarray[Any, np.dtype[np.int64]] = (own[:, None] + np.arange(block_size)).ravel()
    return found[start - first * block_size : end - first * block_size]


def pack_items(items: Sequence[Item], first_position: int, device: torch.device) -> PackedBatch:
    """Whole texts for an encoder; the positions of each start at `first_position` (XLM-RoBERTa: padding_idx + 1)."""
    lengths = [len(item.tokens) for item in items]
    offsets = tuple(accumulate(lengths, initial=0))
    packed = torch.empty(3, offsets[-1], dtype=torch.int64, pin_memory=device.type == "cuda")
    tokens, positions, types = packed.numpy()  # torch's own ways from a list are ten times slower
    tokens[:] = np.fromiter(chain.from_iterable(item.tokens for item in items), np.int64, offsets[-1])
    positions[:] = np.arange(first_position, first_position + offsets[-1]) - np.repeat(offsets[:-1], lengths)
    types[:] = 0
    for item, start in zip(items, offsets, strict=False):
        if item.token_types:
            types[start : start + len(item.tokens)] = item.token_types
    packed = packed.to(device, non_blocking=True)
    return PackedBatch(packed[0], packed[1], offsets, token_types=packed[2], stacked=packed)
