"""torch's scaled_dot_product_attention: runs on every device, and is the reference for every other backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from lodger.runtime.kv import KVCache
from lodger.runtime.packed import PackedBatch


class SdpaAttention:
    """Sequences that attend alike go through SDPA together; the rest one by one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def plan(self, batch: PackedBatch, cache: KVCache | None, *, causal: bool) -> SdpaPlan:
        parts: list[Part] = []
        lengths = batch.lengths
        if cache is None:
            parts.extend(_equal_runs(batch.offsets, causal))
            return SdpaPlan(parts)
        single = [n for n, length in enumerate(lengths) if length == 1 and batch.past[n]]
        if len(single) == 1:
            parts.append(OnePart.of(single[0], batch, cache, self.device))
        else:
            parts.extend(DecodePart.of(rows, batch, cache, self.device) for rows in _alike(single, batch.past))
        for n in set(range(len(lengths))).difference(single):
            start, end = batch.offsets[n], batch.offsets[n + 1]
            if batch.past[n]:
                parts.append(ChunkPart(start, end, batch.past[n], torch.tensor([batch.blocks[n]], device=self.device)))
            else:
                parts.append(FreshPart(start, end, 1, causal))
        return SdpaPlan(parts, cache, batch.slots)


@dataclass(slots=True)
class FreshPart:
    """`count` neighbouring sequences of one length without anything older: their keys are the packed keys."""

    start: int
    end: int
    count: int
    causal: bool
    _masks: dict[int, torch.Tensor] = field(default_factory=dict)

    def attend(self, call: Call) -> None:
        q, k, v = (x[self.start : self.end].view(self.count, -1, *x.shape[1:]).transpose(1, 2) for x in call.packed)
        length = q.shape[2]
        mask = None
        if self.causal and call.window is not None and call.window < length:
            mask = _mask_of(self._masks, call.window, length, 0, q.device)
        out = sdpa(q, k, v, mask, is_causal=self.causal and mask is None, scale=call.scale, enable_gqa=call.grouped)
        call.out[self.start : self.end] = out.transpose(1, 2).flatten(0, 1)


@dataclass(slots=True)
class ChunkPart:
    """The next tokens of one sequence, after `past` older ones in the cache."""

    start: int
    end: int
    past: int
    table: torch.Tensor  # [1, blocks] int64
    _masks: dict[int, torch.Tensor] = field(default_factory=dict)

    def attend(self, call: Call) -> None:
        total = self.past + self.end - self.start
        keys, values = (x[:, :total].transpose(1, 2) for x in call.gather(self.table))
        q = call.packed[0][None, self.start : self.end].transpose(1, 2)
        mask = _mask_of(self._masks, call.window or total, self.end - self.start, self.past, q.device)
        out = sdpa(q, keys, values, mask, scale=call.scale, enable_gqa=call.grouped)
        call.out[self.start : self.end] = out[0].transpose(0, 1)


@dataclass(slots=True)
class OnePart:
    """The only sequence that adds one token. Keys in neighbouring slots, as a single chat's are, are used in place."""

    row: int  # in the packed row
    start: int  # first slot, where all are neighbours
    length: int  # keys, the new one included
    table: torch.Tensor | None  # [blocks] int64, where they are not

    @classmethod
    def of(cls, sequence: int, batch: PackedBatch, cache: KVCache, device: torch.device) -> OnePart:
        blocks, length = batch.blocks[sequence], batch.past[sequence] + 1
        neighbours = blocks == tuple(range(blocks[0], blocks[0] + len(blocks)))
        table = None if neighbours else torch.tensor(blocks, device=device)
        return cls(batch.offsets[sequence], blocks[0] * cache.block_size, length, table)

    def attend(self, call: Call) -> None:
        skipped = 0 if call.window is None else max(self.length - call.window, 0)
        assert call.cache is not None
        if self.table is None:
            keys, values = call.cache.span(call.layer, self.start, self.start + self.length)
        else:
            keys, values = (x[0, : self.length] for x in call.cache.gather(call.layer, self.table[None]))
        keys, values = (x[skipped:].transpose(0, 1)[None] for x in (keys, values))
        query = call.packed[0][self.row].view(1, keys.shape[1], -1, keys.shape[3])
        call.out[self.row] = sdpa(query, keys, values, scale=call.scale)[0].flatten(0, 1)


@dataclass(slots=True)
class DecodePart:
    """Sequences of similar length that each add one token, padded together to the longest.

    The query heads that share a key head become rows of one query, so no key is repeated.
    """

    rows: torch.Tensor | None  # [N] int64 in the packed row; None: all of them, in order
    table: torch.Tensor  # [N, blocks] int64
    keys: torch.Tensor  # [N] int64: keys of each sequence, its new one included
    longest: int
    ragged: bool
    _masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: list[int], batch: PackedBatch, cache: KVCache, device: torch.device) -> DecodePart:
        counts = [batch.past[n] + 1 for n in rows]
        longest = max(counts)
        width = -(-longest // cache.block_size)
        table = [(*batch.blocks[n][:width], *(0,) * (width - len(batch.blocks[n]))) for n in rows]
        at = None if len(rows) == len(batch.past) else torch.tensor([batch.offsets[n] for n in rows], device=device)
        return cls(
            rows=at,
            table=torch.tensor(table, device=device),
            keys=torch.tensor(counts, device=device),
            longest=longest,
            ragged=min(counts) < longest,
        )

    def attend(self, call: Call) -> None:
        keys, values = (x[:, : self.longest].transpose(1, 2) for x in call.gather(self.table))
        query = call.packed[0] if self.rows is None else call.packed[0].index_select(0, self.rows)
        grouped = query.view(len(query), keys.shape[1], -1, query.shape[2])  # [N, kv_heads, group, head_dim]
        out = sdpa(grouped, keys, values, self._mask(call.window, query.dtype), scale=call.scale).flatten(1, 2)
        if self.rows is None:
            call.out.copy_(out)
        else:
            call.out.index_copy_(0, self.rows, out)

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        if window not in self._masks:
            self._masks[window] = self._build_mask(window, dtype)
        return self._masks[window]

    def _build_mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """[N, 1, 1, longest], to be added; None where every query sees every key."""
        if not self.ragged and (window is None or window >= self.longest):
            return None
        at = torch.arange(self.longest, device=self.keys.device)
        seen = at < self.keys[:, None]
        if window is not None:
            seen &= at >= self.keys[:, None] - window
        return torch.zeros(seen.shape, dtype=dtype, device=at.device).masked_fill_(~seen, -torch.inf)[:, None, None]


Part = FreshPart | ChunkPart | OnePart | DecodePart


@dataclass(slots=True)
class Call:
    """One layer's tensors on their way through the parts."""

    layer: int
    packed: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    out: torch.Tensor
    scale: float
    window: int | None
    cache: KVCache | None

    @property
    def grouped(self) -> bool:
        return self.packed[0].shape[1] != self.packed[1].shape[1]

    def gather(self, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.cache is not None
        return self.cache.gather(self.layer, table)


class SdpaPlan:
    """The parts of one packed forward."""

    def __init__(self, parts: list[Part], cache: KVCache | None = None, slots: torch.Tensor | None = None) -> None:
        self._parts, self._cache, self._slots = parts, cache, slots

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        if self._cache is not None and self._slots is not None:
            self._cache.write(layer, self._slots, key, value)
        out = query.new_empty(query.shape)
        call = Call(layer, (query, key, value), out, scale, window, self._cache)
        for part in self._parts:
            part.attend(call)
        return out


def _equal_runs(offsets: tuple[int, ...], causal: bool) -> Iterator[FreshPart]:
    """Neighbouring sequences of equal length, as one part each."""
    first, count = 0, 1
    lengths = [end - start for start, end in zip(offsets, offsets[1:], strict=False)]
    for n, length in enumerate(lengths):
        if n + 1 < len(lengths) and lengths[n + 1] == length:
            count += 1
            continue
        yield FreshPart(offsets[first], offsets[n + 1], count, causal)
        first, count = n + 1, 1


def _alike(rows: list[int], past: tuple[int, ...]) -> list[list[int]]:
    """Rows by the power of two of their length, so that padding at most doubles what a group reads."""
    groups: dict[int, list[int]] = {}
    for row in rows:
        groups.setdefault((past[row] + 1).bit_length(), []).append(row)
    return list(groups.values())


def _mask_of(
    masks: dict[int, torch.Tensor], window: int, queries: int, past: int, device: torch.device
) -> torch.Tensor:
    """[queries, past + queries], True where a query may look: at itself and at the `window` - 1 keys before it."""
    if window not in masks:
        row = torch.arange(past, past + queries, device=device)[:, None]
        column = torch.arange(past + queries, device=device)
        masks[window] = (column <= row) & (column > row - window)
    return masks[window]
