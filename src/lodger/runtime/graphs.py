"""Decode steps as CUDA graphs: hundreds of launches for the price of one.

For each of some numbers of rows (`buckets`) a step is captured once, from the newest tokens to the best next ones. A
step of fewer rows runs in the next larger bucket. All graphs share one pool of memory: only one runs at a time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from lodger.runtime.allocator import capture_stream, capturing, make_workspace
from lodger.runtime.attention.paged import DecodePlan
from lodger.runtime.context import attending
from lodger.runtime.fused import FusedDecoder
from lodger.runtime.kernels.decode_inputs import FIELDS, spread
from lodger.runtime.kernels.w8a16 import own_counters
from lodger.runtime.kv import KVCache
from lodger.runtime.layers import PlainLinear
from lodger.runtime.packed import PackedBatch
from lodger.runtime.runner import Runner
from lodger.runtime.upload import upload
from lodger.sched.step import GenerateStep, Row


def buckets(most: int) -> list[int]:
    """Numbers of rows that get a graph. Between two of them at most a third of a step's rows is padding, from 8 on."""
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, 257, 32)]
    return sorted({*(rows for rows in steps if rows < most), most})


class Output(NamedTuple):
    """Of the rows of one step. The next step overwrites both."""

    logits: torch.Tensor  # [rows, vocab_size] in the compute dtype
    best: torch.Tensor  # [rows] int64: tokens with the highest logits


class DecodeGraphs:
    """The captured decode steps of one model over one KV cache.

    The addresses of weights and cache are part of every graph: where either has moved, new ones are captured. Nothing
    here keeps the weights alive.

    Args:
        latest: [most] int64 on the device, where rows may take their tokens from; a step leaves its best ones there.
    """

    def __init__(self, runner: Runner, cache: KVCache, latest: torch.Tensor) -> None:
        self._cache, self._device, self._latest = cache, runner.device, latest
        self.buckets = buckets(len(latest))
        most, width = len(latest), min(cache.blocks, -(-runner.facts.context_length // cache.block_size))
        self._inputs = torch.zeros(FIELDS * most, dtype=torch.int32, device=self._device)
        self._tokens = torch.zeros(most, dtype=torch.int64, device=self._device)
        self._records = torch.zeros(most, 4, dtype=torch.int32, device=self._device)
        self._table = torch.zeros(most, width, dtype=torch.int32, device=self._device)
        self._logits = torch.zeros(most, runner.facts.vocab_size, dtype=runner.precision.compute, device=self._device)
        self._rows: list[Row] = []  # whose blocks the table holds
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._processors = torch.cuda.get_device_properties(self._device).multi_processor_count
        self._capture(runner)

    @torch.inference_mode()
    def _capture(self, runner: Runner) -> None:
        """Capture every bucket, the largest first, whose memory the others then use.

        Each step runs once before, so that nothing is compiled, loaded or allocated for good while it is captured.
        """
        pool = torch.cuda.graph_pool_handle()
        with own_counters(self._device) as self._counters:
            for size in reversed(self.buckets):
                self._send([], size, {})
                self._step(runner, size)
                self._graphs[size] = self._captured(runner, size, pool)

    def _captured(self, runner: Runner, size: int, pool: Any) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with capturing(), torch.cuda.stream(capture_stream(self._device)):
            make_workspace()
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")  # other models go on meanwhile
            try:
                self._step(runner, size)
            except BaseException:
                with suppress(RuntimeError):  # of a capture that is invalid by now; what made it so is raised
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph

    def serves(self, step: GenerateStep) -> bool:
        """One token of each row, not too many rows, none of them too long."""
        longest = max(len(row.blocks) for row in step.rows)
        fits = len(step.rows) <= self.buckets[-1] and longest <= self._table.shape[1]
        return fits and step.lane == "decode"

    def run(self, step: GenerateStep, sources: Mapping[int, int]) -> Output:
        """
        Args:
            sources: where in `latest` the tokens of sequences lie that the host does not know yet, by their ids.
        """
        count = len(step.rows)
        size = self.buckets[bisect_left(self.buckets, count)]
        self._fill(step.rows)
        self._send(step.rows, size, sources)
        self._graphs[size].replay()
        return Output(self._logits[:count], self._latest[:count])

    def _step(self, runner: Runner, rows: int) -> None:
        inputs = self._inputs[: FIELDS * rows].view(FIELDS, rows)
        tokens, records, slots = self._tokens[:rows], self._records[:rows], inputs[3]
        spread(inputs, self._latest, tokens, records, self._table, self._cache.block_size)
        assert isinstance(runner.backbone, FusedDecoder)
        heads, table = runner.backbone.heads, self._table[:rows]
        with attending(DecodePlan(self._cache.tensor, slots, records, table, heads, self._processors)):
            hidden = runner.backbone(PackedBatch(tokens, inputs[2], tuple(range(rows + 1)), slots=slots))
        logits = self._logits[:rows]
        if isinstance(runner.lm_head, PlainLinear) and runner.lm_head.bias is None:
            torch.mm(hidden, runner.lm_head.weight.t(), out=logits)
        elif runner.lm_head is not None:
            logits.copy_(runner.lm_head(hidden))
        self._latest[:rows].copy_(logits.argmax(dim=-1))

    def _send(self, rows: tuple[Row, ...] | list[Row], size: int, sources: Mapping[int, int]) -> None:
        """What `_step` reads, in one copy."""
        padding = size - len(rows)
        block_size = self._cache.block_size
        found = [sources.get(row.sequence, -1) if row.pending else -1 for row in rows]
        numbers = [row.tokens[0] for row in rows] + [0] * padding
        numbers += found + [-1] * padding
        numbers += [row.start for row in rows] + [0] * padding
        numbers += [row.blocks[-1] * block_size + row.start % block_size for row in rows] + [-1] * padding
        pinned = torch.tensor(numbers, dtype=torch.int32, pin_memory=True)
        self._inputs[: len(numbers)].copy_(pinned, non_blocking=True)

    def _fill(self, rows: tuple[Row, ...] | list[Row]) -> None:
        """Block tables of the rows that do not go on from the last step; a row's newest block is set by the step."""
        before = self._rows
        changed = [n for n, row in enumerate(rows) if n >= len(before) or not _continues(row, before[n])]
        self._rows = list(rows)
        if changed:
            first, last = changed[0], changed[-1] + 1
            width = max(len(row.blocks) for row in rows[first:last])
            filled = [(*row.blocks, *(0,) * (width - len(row.blocks))) for row in rows[first:last]]
            self._table[first:last, :width].copy_(upload(filled, torch.int32, self._device))


def _continues(row: Row, before: Row) -> bool:
    return row.sequence == before.sequence and row.start == before.start + 1
