"""Decode steps as CUDA graphs: hundreds of launches for the price of one.

For each of some numbers of rows (`decode_steps`) a step is captured once, from the newest tokens to the best next ones.
A step of fewer rows runs in the next larger bucket. All graphs work in the same memory: only one runs at a time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import torch

from lodger.budget import decode_steps
from lodger.runtime import fused
from lodger.runtime.allocator import capture_pool, capture_stream, capturing, make_workspace
from lodger.runtime.arena import for_cache
from lodger.runtime.attention.paged import DecodePlan
from lodger.runtime.context import attending
from lodger.runtime.kernels.arrivals import own_counters
from lodger.runtime.kernels.decode_inputs import spread
from lodger.runtime.kv import KVCache
from lodger.runtime.packed import PackedBatch
from lodger.runtime.partition import Partition
from lodger.runtime.runner import Runner
from lodger.runtime.step_inputs import StepInputs
from lodger.sched.step import GenerateStep


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
        self.buckets = decode_steps(len(latest))
        most, width = len(latest), min(cache.blocks, -(-runner.facts.context_length // cache.block_size))
        self.width = width  # blocks of the longest sequence that fits
        self._inputs = StepInputs(most, width, cache.block_size, self._device)
        self._tokens = torch.zeros(most, dtype=torch.int64, device=self._device)
        self._records = torch.zeros(most, 4, dtype=torch.int32, device=self._device)
        shape, dtype = torch.Size((most, runner.facts.vocab_size)), runner.precision.compute
        self._arena = for_cache(self._device, shape.numel() * dtype.itemsize)
        self._logits = self._arena.zeros(shape, dtype)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.processors = torch.cuda.get_device_properties(self._device).multi_processor_count
        self._capture(runner)

    @torch.inference_mode()
    def _capture(self, runner: Runner) -> None:
        """Capture every bucket, the largest first, whose memory the others then use.

        Each step runs once before, so that nothing is compiled, loaded or allocated for good while it is captured.
        """
        with own_counters(self._device) as self._counters:
            for size in reversed(self.buckets):
                self._inputs.send([], size, {})
                self._step(runner, size)
                self._graphs[size] = captured(partial(self._step, runner, size), self._device)

    def rest(self) -> None:
        """Until `resume` no step runs, and the largest part of what they need is given back."""
        self._arena.sleep(keep=False)

    def resume(self) -> bool:
        """Whether the steps can go on.

        Raises:
            MemoryError, torch.OutOfMemoryError: they rest on.
        """
        self._arena.wake()
        return self._arena.addresses_kept

    def serves(self, step: GenerateStep) -> bool:
        """One token of each row, not too many rows, none of them too long."""
        if step.lane != "decode" or len(step.rows) > self.buckets[-1]:
            return False
        return max([len(row.blocks) for row in step.rows]) <= self.width

    def run(self, step: GenerateStep, sources: Mapping[int, int]) -> Output:
        """
        Args:
            sources: where in `latest` the tokens of sequences lie that the host does not know yet, by their ids.
        """
        count = len(step.rows)
        size = self.buckets[bisect_left(self.buckets, count)]
        self._inputs.send(step.rows, size, sources)
        self._graphs[size].replay()
        return Output(self._logits[:count], self._latest[:count])

    def _step(self, runner: Runner, rows: int) -> None:
        inputs, table = self._inputs.of(rows), self._inputs.table
        tokens, records, slots = self._tokens[:rows], self._records[:rows], inputs[3]
        spread(inputs, self._latest, tokens, records, table, self._cache.block_size)
        assert isinstance(runner.backbone, fused.FusedDecoder)
        plan = DecodePlan(self._cache.tensor, slots, records, table, runner.backbone.heads, self.processors)
        with attending(plan):
            hidden = runner.backbone(PackedBatch(tokens, inputs[2], tuple(range(rows + 1)), slots=slots))
        logits = self._logits[:rows]
        if runner.lm_head is not None:
            fused.product(hidden, runner.lm_head, logits)
        self._latest[:rows].copy_(logits.argmax(dim=-1))


def captured(
    step: Callable[[], None], device: torch.device, partition: Partition | None = None
) -> torch.cuda.CUDAGraph:
    """What `step` launches, which it has done once before; it will run on the whole device, or on this part of it."""
    graph = torch.cuda.CUDAGraph()
    stream = partition.capture_stream if partition else capture_stream(device)
    pool = partition.pool if partition else capture_pool(device)
    with capturing(), torch.cuda.stream(stream):
        make_workspace()
        # Other models go on meanwhile.
        graph.capture_begin(pool=pool.handle, capture_error_mode="thread_local")
        try:
            step()
        except BaseException:
            with suppress(RuntimeError):  # of a capture that is invalid by now; what made it so is raised
                graph.capture_end()
            raise
        graph.capture_end()
    return graph
