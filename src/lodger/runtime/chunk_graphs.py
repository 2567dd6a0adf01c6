"""Prefill steps of few tokens as CUDA graphs: what takes the host 15 to 25 ms by single launches takes it one.

For each of some numbers of tokens (`SIZES`) a step is captured once, from packed tokens to their hidden states. A step
of fewer tokens runs in the next larger one, the rest of it stands for nobody. Every sequence attends through the cache.
"""

from __future__ import annotations

from array import array
from functools import partial

import torch

from lodger.runtime.arena import apart
from lodger.runtime.attention.paged import ChunkPlan
from lodger.runtime.context import attending
from lodger.runtime.fused import FusedDecoder
from lodger.runtime.graphs import DecodeGraphs, captured
from lodger.runtime.kernels.arrivals import own_counters
from lodger.runtime.kernels.tiling import chunk_shape, cut
from lodger.runtime.kv import KVCache
from lodger.runtime.packed import PackedBatch
from lodger.runtime.runner import Runner
from lodger.runtime.upload import staged, table

# Tokens. The plan counts memory for the largest (CAPTURED_CHUNK); quantised weights do without it, whose products of so
# many tokens take memory of their own.
SIZES = (64, 128, 256, 512)
SEQUENCES = 8  # of one step


class ChunkGraphs:
    """Like `DecodeGraphs`, whose memory it shares: steps of both run one after the other."""

    def __init__(self, runner: Runner, cache: KVCache, decode: DecodeGraphs) -> None:
        assert isinstance(runner.backbone, FusedDecoder)
        self._cache, self._device = cache, runner.device
        self._sizes = SIZES if runner.precision == runner.precision.dense else SIZES[:-1]
        most, group = self._sizes[-1], runner.backbone.heads // cache.tensor.shape[4]
        self._shape = chunk_shape(group, cache.tensor.shape[5])
        self._packed = torch.zeros(3, most, dtype=torch.int64, device=self._device)  # tokens, positions, slots
        self._records = torch.zeros(self._tiles(most), 4, dtype=torch.int32, device=self._device)
        self._table = torch.zeros(SEQUENCES, decode.width, dtype=torch.int32, device=self._device)
        self._hidden = apart((most, runner.facts.hidden_size), runner.precision.compute, self._device)
        self._processors = decode.processors
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._capture(runner)

    def _tiles(self, tokens: int) -> int:
        """At most so many do a step's sequences make: each begins a tile of its own."""
        return -(-tokens // self._shape.tokens) + SEQUENCES - 1

    @torch.inference_mode()
    def _capture(self, runner: Runner) -> None:
        with own_counters(self._device) as self._counters:
            for size in reversed(self._sizes):
                self._packed[2].fill_(-1)
                self._step(runner, size)
                self._graphs[size] = captured(partial(self._step, runner, size), self._device)

    def _step(self, runner: Runner, size: int) -> None:
        tokens, positions, slots = self._packed[:, :size]
        assert isinstance(runner.backbone, FusedDecoder)
        records = self._records[: self._tiles(size)]
        plan = ChunkPlan(self._cache.tensor, slots, records, self._table, runner.backbone.heads, self._processors)
        with attending(plan):
            hidden = runner.backbone(PackedBatch(tokens, positions, (0, size), slots=slots))
        self._hidden[:size].copy_(hidden)

    def serves(self, batch: PackedBatch) -> bool:
        """Not too many tokens, of not too many sequences, none of them too long."""
        if batch.offsets[-1] > self._sizes[-1] or len(batch.blocks) > SEQUENCES:
            return False
        return max(map(len, batch.blocks)) <= self._table.shape[1]

    def run(self, batch: PackedBatch) -> torch.Tensor:
        """Final hidden states [T, hidden_size]; the next step overwrites them."""
        count = batch.offsets[-1]
        size = next(size for size in self._sizes if size >= count)
        assert batch.slots is not None
        packed = torch.stack([batch.tokens, batch.positions, batch.slots])
        self._packed[2, count:size].fill_(-1)
        self._packed[:, :count].copy_(packed)
        rows = zip(batch.offsets, batch.lengths, batch.past, range(len(batch.past)), strict=False)
        flat = array("i")
        for tile in cut(rows, self._shape.tokens):
            flat.extend(tile)
        flat.frombytes(bytes(flat.itemsize * (4 * self._tiles(size) - len(flat))))
        self._records[: self._tiles(size)].view(-1).copy_(staged(flat, torch.int32, self._device), non_blocking=True)
        blocks = table(batch.blocks, self._device)
        self._table[: len(blocks), : blocks.shape[1]].copy_(blocks)
        self._graphs[size].replay()
        return self._hidden[:count]
