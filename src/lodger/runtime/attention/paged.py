"""Our own paged attention for CUDA: decode, chunks after a past and shared prefixes, over the KV cache in place.

Sequences without a past go to torch's FlashAttention, which needs no cache to read their keys from.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import torch

from lodger.runtime.attention.base import AttentionPlan
from lodger.runtime.attention.sdpa import SdpaAttention
from lodger.runtime.attention.varlen import Fresh, VarlenAttention, serves
from lodger.runtime.kernels.paged_attention import Tiles, attend
from lodger.runtime.kernels.store import store
from lodger.runtime.kernels.tiling import Shape, Tile, chunk_shape, cut, decode_shape, splits_for
from lodger.runtime.kv import KVCache
from lodger.runtime.packed import PackedBatch
from lodger.runtime.upload import table


class PagedAttention:
    """Everything in bfloat16 and float16; SDPA for the rest."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._varlen, self._sdpa = VarlenAttention(device), SdpaAttention(device)
        self._processors = torch.cuda.get_device_properties(device).multi_processor_count

    def plan(self, batch: PackedBatch, cache: KVCache | None, *, causal: bool) -> AttentionPlan:
        if cache is None:
            return self._varlen.plan(batch, cache, causal=causal)
        if not causal or not serves(cache.tensor.dtype, cache.tensor.shape[-1]):
            return self._sdpa.plan(batch, cache, causal=causal)
        return PagedPlan(batch, cache, self._device, self._processors)


class PagedPlan:
    """Any mixture of fresh sequences, chunks after a past, and sequences that add one token."""

    def __init__(
        self, batch: PackedBatch, cache: KVCache, device: torch.device, processors: int, *, varlen: bool = True
    ) -> None:
        """`processors` are the card's multiprocessors. Without `varlen` the cache serves the fresh sequences too."""
        assert batch.slots is not None
        self.cache, self.slots, self._device, self._processors = cache.tensor, batch.slots, device, processors
        rows = list(zip(batch.offsets, batch.lengths, batch.past, range(len(batch.past)), strict=False))
        kept = [row for row in rows if row[2] or not varlen]
        self._single = [row for row in kept if row[1] == 1]
        self._chunks = [row for row in kept if row[1] > 1]
        self._fresh = [Fresh(offsets, True, device) for offsets in _runs(batch)] if varlen else []
        self._whole = not kept
        self._blocks = batch.blocks
        self._launches: list[Tiles] | None = None

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        store(self.cache, layer, self.slots, key, value)
        if self._whole and len(self._fresh) == 1:
            return self._fresh[0].attend(query, key, value, scale, window)
        out = query.new_empty(query.shape)
        for run in self._fresh:
            own = slice(run.start, run.end)
            out[own] = run.attend(query[own], key[own], value[own], scale, window)
        self._over_cache(layer, query, out, scale, window)
        return out

    @property
    def only_cached(self) -> bool:
        """No sequence's keys are read from where they were computed, so `attend_stored` serves all of them."""
        return not self._fresh

    def attend_stored(self, layer: int, query: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
        """`attend` where the new keys and values are in their slots of the cache already."""
        out = torch.empty_like(query)
        self._over_cache(layer, query, out, scale, window)
        return out

    def _over_cache(self, layer: int, query: torch.Tensor, out: torch.Tensor, scale: float, window: int | None) -> None:
        if self._launches is None:
            self._launches = list(self._cut(query.shape[1] // self.cache.shape[4]))
        for tiles in self._launches:
            attend(query, self.cache, layer, tiles, out, scale, window)

    def _cut(self, group: int) -> Iterator[Tiles]:
        blocks = table(self._blocks, self._device)
        for rows, shape_for in ((self._single, decode_shape), (self._chunks, chunk_shape)):
            if rows:
                shape = shape_for(group, self.cache.shape[-1])
                yield self._tiles(cut(rows, shape.tokens), blocks, shape)

    def _tiles(self, tiles: list[Tile], blocks: torch.Tensor, shape: Shape) -> Tiles:
        longest = max(tile.position + tile.tokens for tile in tiles)
        splits = splits_for(len(tiles) * self.cache.shape[4], longest, shape.least, self._processors)
        return Tiles(table(tiles, self._device), blocks, shape, splits)


class DecodePlan:
    """One new token of each sequence, all of it in tensors that a captured step finds at the same addresses.

    Args:
        slots: [tokens]; negative where one stands for no sequence.
        records: [tiles, 4] int32, see `Tiles`; those that stand for no sequence are without tokens.
        table: [sequences, blocks] int32.
        heads: of queries.
    """

    only_cached = True
    _shape = staticmethod(decode_shape)

    def __init__(
        self,
        cache: torch.Tensor,
        slots: torch.Tensor,
        records: torch.Tensor,
        table: torch.Tensor,
        heads: int,
        processors: int,
    ) -> None:
        self.cache, self.slots = cache, slots
        block_size, kv_heads, dim = cache.shape[3:]
        shape = self._shape(heads // kv_heads, dim)
        splits = splits_for(len(records) * kv_heads, table.shape[1] * block_size, shape.least, processors)
        self._tiles = Tiles(records, table, shape, splits)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        store(self.cache, layer, self.slots, key, value)
        return self.attend_stored(layer, query, scale, window)

    def attend_stored(self, layer: int, query: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
        """`attend` where the new keys and values are in their slots of the cache already."""
        out = torch.empty_like(query)
        attend(query, self.cache, layer, self._tiles, out, scale, window)
        return out


class ChunkPlan(DecodePlan):
    """The same for chunks of sequences, which `records` cuts into tiles of `chunk_shape`."""

    _shape = staticmethod(chunk_shape)


def _runs(batch: PackedBatch) -> Iterator[tuple[int, ...]]:
    """Offsets of neighbouring sequences without a past, the end of the last included."""
    for past, run in groupby(range(len(batch.past)), lambda n: batch.past[n] > 0):
        if not past:
            members = list(run)
            yield tuple(batch.offsets[members[0] : members[-1] + 2])
