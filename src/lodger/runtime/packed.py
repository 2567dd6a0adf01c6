"""`PackedBatch`: the tokens of any number of sequences in one row, without padding."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch

from lodger.runtime.upload import staged
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
    tokens, positions, slots = array("q"), array("q"), array("q")
    offsets = [0]
    for row in rows:
        end = row.start + len(row.tokens)
        tokens.extend(row.tokens)
        positions.extend(range(row.start, end))
        for at in range(row.start // block_size, -(-end // block_size)):
            first = (row.blocks[at] - at) * block_size  # slot less position, of every token in this block
            slots.extend(range(first + max(row.start, at * block_size), first + min(end, (at + 1) * block_size)))
        offsets.append(len(tokens))
    packed = staged(tokens + positions + slots, torch.int64, device).view(3, -1).to(device, non_blocking=True)
    return PackedBatch(
        tokens=packed[0],
        positions=packed[1],
        offsets=tuple(offsets),
        past=tuple(row.start for row in rows),
        blocks=tuple(row.blocks for row in rows),
        slots=packed[2],
    )


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
