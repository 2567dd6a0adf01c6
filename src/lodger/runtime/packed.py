"""`PackedBatch`: the tokens of any number of sequences in one row, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lodger.runtime.upload import upload
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
    slots: torch.Tensor | None = None  # [T] int64: place of each token in the KV cache, block * block_size + offset

    @property
    def lengths(self) -> tuple[int, ...]:
        """New tokens of each sequence."""
        return tuple(end - start for start, end in zip(self.offsets, self.offsets[1:], strict=False))


def pack_rows(rows: Sequence[Row], block_size: int, device: torch.device) -> PackedBatch:
    """Rows of a generating step, with a slot of the KV cache for every token."""
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    offsets = [0]
    for row in rows:
        end = row.start + len(row.tokens)
        tokens.extend(row.tokens)
        positions.extend(range(row.start, end))
        slots.extend(row.blocks[at // block_size] * block_size + at % block_size for at in range(row.start, end))
        offsets.append(len(tokens))
    packed = upload([tokens, positions, slots], torch.int64, device)
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
    tokens: list[int] = []
    types: list[int] = []
    positions: list[int] = []
    offsets = [0]
    for item in items:
        tokens.extend(item.tokens)
        types.extend(item.token_types or (0,) * len(item.tokens))
        positions.extend(range(first_position, first_position + len(item.tokens)))
        offsets.append(len(tokens))
    packed = upload([tokens, positions, types], torch.int64, device)
    return PackedBatch(tokens=packed[0], positions=packed[1], token_types=packed[2], offsets=tuple(offsets))
