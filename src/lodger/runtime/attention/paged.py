"""Our own attention for CUDA, over the KV cache in place: decode, chunks after a past and shared prefixes.

Many new tokens use each key so often that it pays to lay a sequence's keys and values end to end first: then they are
read in whole blocks by FlashAttention, torch's or on Hopper our own.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cache as cached
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from lodger.runtime.attention.base import AttentionPlan
from lodger.runtime.attention.sdpa import SdpaAttention
from lodger.runtime.attention.varlen import EndToEnd, VarlenAttention, serves
from lodger.runtime.kernels.gather import gather
from lodger.runtime.kernels.paged_attention import Tiles, Turn, attend
from lodger.runtime.kernels.store import store
from lodger.runtime.kernels.tiling import Shape, Tile, chunk_shape, cut, decode_shape, splits_for
from lodger.runtime.kv import KVCache
from lodger.runtime.packed import PackedBatch, slots_of
from lodger.runtime.upload import staged, table, upload

Place = tuple[int, int, int, int]  # of a sequence: first token in the packed row, new tokens, older ones, its number

LEAST_TRIMMED = 256  # tokens of a step whose last layer is computed only of the tokens that are asked for
LEAST_NEW = 64  # new tokens of a sequence for which its keys are laid end to end
_GATHERED = 2**25  # numbers of keys and values that lie end to end at a time, as the plan counts them
MOST_TURNED = 32  # sequences of a step whose heads are turned where they attend; of more a launch is faster


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
        self, batch: PackedBatch, cache: KVCache, device: torch.device, processors: int, *, flash: bool = True
    ) -> None:
        """`processors` are the card's multiprocessors. Without `flash` all keys are read where they are."""
        assert batch.slots is not None
        self.cache, self.slots, self._device, self._processors = cache.tensor, batch.slots, device, processors
        rows = list(zip(batch.offsets, batch.lengths, batch.past, range(len(batch.past)), strict=False))
        most = most_keys(batch.offsets[-1], cache.tensor)
        long = [row for row in rows if flash and row[1] >= LEAST_NEW and row[1] + row[2] <= most]
        self._gathered = [Gathered(own, batch.blocks, cache, device) for own in _fitting(long, most)]
        rest = sorted(set(rows).difference(long))
        self._alone = self._gathered[0] if len(self._gathered) == 1 and not rest else None
        self._single = [row for row in rest if row[1] == 1]
        self._chunks = [row for row in rest if row[1] > 1]
        self._blocks = batch.blocks
        self._launches: list[Tiles] | None = None
        trims = batch.wanted is not None and batch.offsets[-1] >= LEAST_TRIMMED
        self.ends = self._ends(batch, batch.wanted or (), cache) if trims else None

    def _ends(self, batch: PackedBatch, wanted: Sequence[int], cache: KVCache) -> Ends:
        last = upload([batch.offsets[n + 1] - 1 for n in wanted], torch.int64, self._device)
        past = tuple(batch.past[n] + batch.lengths[n] - 1 for n in wanted)
        of = PackedBatch(last, last, tuple(range(len(wanted) + 1)), past=past,
                         blocks=tuple(batch.blocks[n] for n in wanted), slots=last)  # fmt: skip
        return Ends(last, PagedPlan(of, cache, self._device, self._processors))

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
        if self._alone is not None:
            return self._alone.attend(self.cache, layer, query, None, scale, window)
        out = query.new_empty(query.shape)
        for gathered in self._gathered:
            gathered.attend(self.cache, layer, query, out, scale, window)
        if self._launches is None:
            self._launches = list(self._cut(query.shape[1] // self.cache.shape[4]))
        for tiles in self._launches:
            attend(query, self.cache, layer, tiles, out, scale, window)
        return out

    def _cut(self, group: int) -> Iterator[Tiles]:
        for rows, shape_for in ((self._single, decode_shape), (self._chunks, chunk_shape)):
            if rows:
                shape = shape_for(group, self.cache.shape[-1])
                yield self._tiles(cut(rows, shape.tokens), table(self._blocks, self._device), shape)

    def _tiles(self, tiles: list[Tile], blocks: torch.Tensor, shape: Shape) -> Tiles:
        longest = max(tile.position + tile.tokens for tile in tiles)
        splits = splits_for(len(tiles) * self.cache.shape[4], longest, shape.least, self._processors)
        return Tiles(table(tiles, self._device), blocks, shape, splits)


class Ends(NamedTuple):
    """All that the last layer is asked for."""

    tokens: torch.Tensor  # [wanted] int64: the last new ones of these sequences
    plan: PagedPlan  # of nothing else but them


class Gathered:
    """Sequences whose keys and values lie end to end while a layer attends."""

    def __init__(
        self, rows: Sequence[Place], blocks: Sequence[Sequence[int]], cache: KVCache, device: torch.device
    ) -> None:
        self._rows, self._device = rows, device
        ends = [past + new for _, new, past, _ in rows]
        self._starts = list(accumulate(ends[:-1], initial=0))  # of each sequence, among all keys
        slots = [slots_of(blocks[row[3]], cache.block_size, 0, end) for row, end in zip(rows, ends, strict=True)]
        numbers = array("i", np.concatenate(slots).astype(np.int32).tobytes())
        self._slots = staged(numbers, torch.int32, device).to(device, non_blocking=True)
        self._records: torch.Tensor | None = None
        self._runs: list[EndToEnd] | None = None

    def attend(
        self,
        cache: torch.Tensor,
        layer: int,
        query: torch.Tensor,
        out: torch.Tensor | None,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        """`out` [T, heads, head_dim] with the rows that are these sequences'; None: all are, and it is made here."""
        keys, values = gather(cache, layer, self._slots)
        if window is None and _our_flash(query, keys):
            from lodger.runtime.kernels import chunk_attention_hopper as hopper

            if self._records is None:
                self._records = self._cut(hopper.ROWS * keys.shape[1] // query.shape[1])
            out = query.new_empty(query.shape) if out is None else out
            hopper.attend(query, keys, values, self._records, out, scale)
            return out
        if self._runs is None:
            self._runs = list(self._neighbours())
        if out is None:
            return self._runs[0].attend(query, keys, values, scale, window)
        for run in self._runs:
            out[run.queries] = run.attend(query, keys, values, scale, window)
        return out

    def _cut(self, tokens: int) -> torch.Tensor:
        starts = {row[3]: start for row, start in zip(self._rows, self._starts, strict=True)}
        tiles = cut(self._rows, tokens)
        return table([tile._replace(sequence=starts[tile.sequence]) for tile in tiles], self._device)

    def _neighbours(self) -> Iterator[EndToEnd]:
        """Runs of sequences whose new tokens follow each other in the packed row."""
        first = 0
        for n, (row, after) in enumerate(zip(self._rows, [*self._rows[1:], None], strict=True)):
            if after is None or after[0] != row[0] + row[1]:
                own = self._rows[first : n + 1]
                yield EndToEnd(own[0][0], self._starts[first], [(row[1], row[1] + row[2]) for row in own], self._device)
                first = n + 1


def most_keys(tokens: int, cache: torch.Tensor) -> int:
    """Keys that lie end to end at a time in a step of so many tokens. Their memory is in the plan."""
    return max(tokens, min(8 * tokens, _GATHERED // (2 * cache.shape[4] * cache.shape[5])))


def _fitting(rows: Iterable[Place], most: int) -> Iterator[list[Place]]:
    """Neighbours with no more than `most` keys together."""
    own: list[Place] = []
    keys = 0
    for row in rows:
        if own and keys + row[1] + row[2] > most:
            yield own
            own, keys = [], 0
        own.append(row)
        keys += row[1] + row[2]
    if own:
        yield own


def _our_flash(query: torch.Tensor, keys: torch.Tensor) -> bool:
    """Whether our own kernel for Hopper computes this."""
    group = query.shape[1] // keys.shape[1]
    fits = keys.shape[2] == 128 and group <= 32 and not group & (group - 1)
    return fits and not query.stride(0) % 8 and _is_hopper(query.device)


@cached
def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == (9, 0)


class DecodePlan:
    """One new token of each sequence, all of it in tensors that a captured step finds at the same addresses.

    Args:
        slots: [tokens]; negative where one stands for no sequence.
        records: [tiles, 4] int32, see `Tiles`; those that stand for no sequence are without tokens.
        table: [sequences, blocks] int32.
        heads: of queries.
    """

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

    @property
    def turns(self) -> bool:
        """`attend_new` is faster than turning the heads by a launch of its own."""
        return self._tiles.shape.tokens == 1 and len(self._tiles.records) <= MOST_TURNED

    def attend_new(self, layer: int, qkv: torch.Tensor, scale: float, window: int | None, turn: Turn) -> torch.Tensor:
        """`attend` of queries, keys and values [T, heads + 2 * kv_heads, head_dim] as their product left them."""
        out = qkv.new_empty(len(qkv), qkv.shape[1] - 2 * self.cache.shape[4], qkv.shape[2])
        attend(qkv, self.cache, layer, self._tiles, out, scale, window, turn)
        return out


class ChunkPlan(DecodePlan):
    """The same for chunks of sequences, which `records` cuts into tiles of `chunk_shape`."""

    _shape = staticmethod(chunk_shape)
