"""Whole forwards of an encoder as CUDA graphs: some hundred launches for the price of one.

For each of some numbers of tokens (`BUCKETS`) a forward is captured; one of fewer tokens runs in the next larger
bucket. All of them, of all models, work in the same memory: only one runs at a time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import partial
from typing import Protocol

import torch

from lodger.runtime.encoder import Layers, finish
from lodger.runtime.graphs import captured
from lodger.runtime.kernels.tiling import TEXT_ROWS, text_tiles
from lodger.runtime.packed import PackedBatch
from lodger.runtime.recovery import is_out_of_memory
from lodger.runtime.upload import upload

# Beside chats a step is cut to a bucket. Those between are left out that are no faster than the next larger one: on an
# H100 1,792 tokens take 2.53 ms and 2,048 take 2.66, 2,304 take 3.24 and 2,560 3.36.
BUCKETS: tuple[int, ...] = (64, 128, 256, 384, 512, 768, 1024, 1280, 1536, 2048, 2560, 3072, 4096)
_SHORT = 32  # tokens of a text: where more of them are shorter, there may not be tiles for all
_LEAST_TILES = 16


class Forward(Protocol):
    def __call__(self, inputs: torch.Tensor, tiles: torch.Tensor) -> Layers:
        """See `FusedEncoder.forward`."""
        ...


class EncoderGraphs:
    """The captured forwards of one model. The addresses of its weights are part of them: `forget` where they move.

    Args:
        forward: does not keep the host waiting for the device.
        width: of hidden states.
    """

    def __init__(self, forward: Forward, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._forward, self._device, self._shape, self._dtype = forward, device, (BUCKETS[-1], width), dtype
        self._captured: dict[int, torch.cuda.CUDAGraph | None] = {}  # None: there was no memory to capture it
        self._inputs = self._tiles = self._hidden = torch.empty(0)

    def serves(self, batch: PackedBatch) -> bool:
        """Not too many tokens, nor too many texts of few tokens."""
        tokens = batch.offsets[-1]
        if not 0 < tokens <= BUCKETS[-1]:
            return False
        size = bucket_for(tokens)
        count = sum(-(-length // TEXT_ROWS) for length in batch.lengths)
        return count <= _tiles(size) and self._graph(size) is not None

    def run(self, batch: PackedBatch) -> torch.Tensor:
        """[T, width]; the next forward overwrites it."""
        assert batch.stacked is not None
        tokens = batch.offsets[-1]
        size = bucket_for(tokens)
        graph = self._graph(size)
        assert graph is not None
        tiles = text_tiles(batch.lengths)
        tiles += [(0, 0, 0, 0)] * (_tiles(size) - len(tiles))
        self._tiles[: len(tiles)].copy_(upload(tiles, torch.int32, self._device))
        self._inputs_of(size)[:, :tokens].copy_(batch.stacked)
        graph.replay()
        return self._hidden[:tokens]

    def warm_up(self, most: int) -> None:
        """Capture all forwards of up to `most` tokens now, the largest first, whose memory the others then use."""
        for size in reversed(BUCKETS[: bisect_left(BUCKETS, most) + 1]):
            self._graph(size)

    def forget(self) -> None:
        """Give back what was captured."""
        self._captured.clear()
        self._inputs = self._tiles = self._hidden = torch.empty(0)

    def _graph(self, size: int) -> torch.cuda.CUDAGraph | None:
        if size not in self._captured:
            try:
                self._captured[size] = self._capture(size)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self._captured[size] = None
        return self._captured[size]

    @torch.inference_mode()
    def _capture(self, size: int) -> torch.cuda.CUDAGraph:
        """After one run of it, so that nothing is compiled or loaded while it is captured."""
        self._prepare()
        self._tiles.zero_()  # those of a longer step would write behind this one's tensors
        self._step(size)
        return captured(partial(self._step, size), self._device)

    def _prepare(self) -> None:
        """What all buckets read and write."""
        if not len(self._hidden):
            self._inputs = torch.zeros(3, BUCKETS[-1], dtype=torch.int64, device=self._device)
            self._tiles = torch.zeros(_tiles(BUCKETS[-1]), 4, dtype=torch.int32, device=self._device)
            self._hidden = torch.zeros(self._shape, dtype=self._dtype, device=self._device)

    def _step(self, size: int) -> None:
        self._hidden[:size].copy_(finish(self._forward(self._inputs_of(size), self._tiles[: _tiles(size)])))

    def _inputs_of(self, size: int) -> torch.Tensor:
        """[3, size]. Behind what was sent stands what other steps sent there: tokens where tokens belong, and positions
        where positions do, so that every row of a table that is looked up exists. They attend to nothing."""
        return self._inputs[:, :size]


def bucket_for(tokens: int) -> int:
    """The smallest that holds them."""
    return BUCKETS[bisect_left(BUCKETS, tokens)]


def bucket_within(tokens: int) -> int:
    """The largest of no more tokens, or the smallest of all."""
    return BUCKETS[max(bisect_right(BUCKETS, tokens) - 1, 0)]


def _tiles(size: int) -> int:
    """Tiles of attention in a bucket: enough for texts of `_SHORT` tokens or more, and for some short ones."""
    return max(size // _SHORT, size // TEXT_ROWS + _LEAST_TILES)
