"""Whole forwards of an encoder as CUDA graphs: some hundred launches for the price of one.

For each of some numbers of tokens (`buckets`) a forward is captured; one of fewer tokens runs in the next larger
bucket. All of them, of all models, work in the same memory: only one runs at a time. Those of a partition are apart.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch

from lodger.runtime.arena import apart
from lodger.runtime.encoder import Layers, finish
from lodger.runtime.graphs import captured
from lodger.runtime.kernels.tiling import TEXT_ROWS, text_tiles
from lodger.runtime.packed import PackedBatch
from lodger.runtime.partition import Partition
from lodger.runtime.recovery import where_memory_allows
from lodger.runtime.upload import upload

# Between chats a step is cut to a bucket. Those between are left out that are no faster than the next larger one: on an
# H100 1,792 tokens take 2.53 ms and 2,048 take 2.66, 2,304 take 3.24 and 2,560 3.36.
_BUCKETS: tuple[int, ...] = (64, 128, 256, 384, 512, 768, 1024, 1280, 1536, 2048, 2560, 3072, 4096)
# Tokens for each multiprocessor in the largest: then a product with 1,024 columns has one tile of 128 x 256 for each,
# and those with 3,072 and 4,096 columns have three and four.
_FILLS = 32
_MOST = 4224  # the plan counts memory for so many (CAPTURED_TEXTS)
_SHORT = 32  # tokens of a text: where more of them are shorter, there may not be tiles for all
_MANY = 64  # texts of any length that all steps but the smallest have tiles for


class Forward(Protocol):
    def __call__(self, inputs: torch.Tensor, tiles: torch.Tensor) -> Layers:
        """See `FusedEncoder.forward`."""
        ...


class EncoderGraphs:
    """The captured forwards of one model. The addresses of its weights are part of them: `forget` where they move.

    Args:
        forward: does not keep the host waiting for the device.
        width: of hidden states.
        partition: where they run, if not on the whole device.
    """

    def __init__(
        self,
        forward: Forward,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        buckets: tuple[int, ...],
        partition: Partition | None = None,
    ) -> None:
        self._forward, self._device, self._dtype, self._partition = forward, device, dtype, partition
        self.buckets, self._shape = buckets, (buckets[-1], width)
        self._captured: dict[int, torch.cuda.CUDAGraph] = {}
        self._inputs = self._tiles = self._hidden = torch.empty(0)

    def serves(self, lengths: Sequence[int]) -> bool:
        """Texts of so many tokens: not too many together, nor too many texts of few tokens."""
        return bucket_for(lengths, self.buckets) in self._captured

    def run(self, batch: PackedBatch) -> torch.Tensor:
        """[T, width]; the next forward overwrites it."""
        assert batch.stacked is not None
        tokens, size = batch.offsets[-1], bucket_for(batch.lengths, self.buckets)
        tiles = text_tiles(batch.lengths)
        tiles += [(0, 0, 0, 0)] * (_tiles(size) - len(tiles))
        self._tiles[: len(tiles)].copy_(upload(tiles, torch.int32, self._device))
        self._inputs_of(size)[:, :tokens].copy_(batch.stacked)
        self._captured[size].replay()
        return self._hidden[:tokens]

    def warm_up(self, most: int) -> None:
        """Capture all forwards of up to `most` tokens that are not there yet, the largest first, whose memory the
        others then use. Those that there is no memory for are left out. Another model of the same weights may be
        running what it has captured of them."""
        for size in reversed(self.buckets[: bisect_left(self.buckets, most) + 1]):
            if size not in self._captured:
                with where_memory_allows():
                    self._captured[size] = self._capture(size)
        if self._partition is not None:
            torch.cuda.current_stream(self._device).synchronize()  # what was prepared there is used on another

    def forget(self) -> None:
        """Give back what was captured."""
        self._captured.clear()
        self._inputs = self._tiles = self._hidden = torch.empty(0)

    @torch.inference_mode()
    def _capture(self, size: int) -> torch.cuda.CUDAGraph:
        """After one run over nobody's text, so that nothing is compiled or loaded while it is captured. What captured
        forwards read and write is not touched: one may be running."""
        self._prepare()
        finish(self._forward(torch.zeros_like(self._inputs_of(size)), torch.zeros_like(self._tiles[: _tiles(size)])))
        return captured(partial(self._step, size), self._device, self._partition)

    def _prepare(self) -> None:
        """What all buckets read and write."""
        if not len(self._hidden):
            self._inputs = torch.zeros(3, self.buckets[-1], dtype=torch.int64, device=self._device)
            self._tiles = torch.zeros(_tiles(self.buckets[-1]), 4, dtype=torch.int32, device=self._device)
            self._hidden = apart(self._shape, self._dtype, self._device)

    def _step(self, size: int) -> None:
        self._hidden[:size].copy_(finish(self._forward(self._inputs_of(size), self._tiles[: _tiles(size)])))

    def _inputs_of(self, size: int) -> torch.Tensor:
        """[3, size]. Behind what was sent stands what other steps sent there: tokens where tokens belong, and positions
        where positions do, so that every row of a table that is looked up exists. They attend to nothing."""
        return self._inputs[:, :size]


def buckets(processors: int) -> tuple[int, ...]:
    """Of a device with so many multiprocessors."""
    most = min(max(_FILLS * processors, 64), _MOST)
    return (*(size for size in _BUCKETS if size < most), most)


def bucket_for(lengths: Sequence[int], sizes: tuple[int, ...]) -> int:
    """The smallest that has room for these texts, and tiles; 0 where none has."""
    tokens, tiles = sum(lengths), sum(-(-length // TEXT_ROWS) for length in lengths)
    return next((size for size in sizes if tokens <= size and tiles <= _tiles(size)), 0)


def bucket_within(tokens: int, sizes: tuple[int, ...]) -> int:
    """The largest of no more tokens, or the smallest of all."""
    return sizes[max(bisect_right(sizes, tokens) - 1, 0)]


def _tiles(size: int) -> int:
    """Tiles of attention in a bucket: enough for texts of `_SHORT` tokens or more, and for some short ones."""
    return max(size // _SHORT, min(size // 4 + TEXT_ROWS // 4, _MANY))
