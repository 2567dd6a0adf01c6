"""Weights of half a byte: groups of a row's columns share a scale and a zero point, and a number is (n - zero) * scale.

The form that one kernel multiplies with, whatever the published one was (`lodger.runtime.int4_stored`). A block is 128
columns of all rows, and blocks follow each other, so that what a program reads at a time lies in one piece.

- words: int32 [blocks, rows, 16]. Word j has the columns 2j and 2j + 1 of each of a block's four quarters: from the
  lowest bits on the odd ones, then, 16 bits higher, the even ones. Any of the eight is next to its neighbour when a
  word is shifted and masked once, and both are then bits of a half precision's fraction.
- scales: int32 [groups, rows], float16 in the lower 16 bits and the zero point, 0 to 15, in the upper ones. A block
  has 1, 2 or 4 groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import pad

from lodger.catalogue.int4 import BLOCK, groups_in_block
from lodger.runtime.int4_stored import StoredInt4
from lodger.runtime.kernels.int4_tiling import MOST_TOKENS
from lodger.runtime.quantised import Allocate, product_by_pieces

WORDS = BLOCK // 8  # of a row in a block
_PIECE = 2**22  # numbers that have a byte each while a matrix is packed again


def pack(values: torch.Tensor) -> torch.Tensor:
    """uint8 [columns, rows] of 0 to 15, whole blocks of columns -> words [blocks, rows, 16]."""
    quarters = values.view(len(values) // BLOCK, 4, WORDS, 2, values.shape[1]).to(torch.int32)
    words = torch.zeros_like(quarters[:, 0, :, 0])
    for quarter in range(4):
        for odd in range(2):
            words |= quarters[:, quarter, :, odd] << (4 * quarter + 16 * (1 - odd))
    return words.transpose(1, 2)


def pack_scales(scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """Both [groups, rows] -> int32 [groups, rows]."""
    return (zeros.to(torch.int32) << 16) | (scales.to(torch.float16).view(torch.int16).to(torch.int32) & 0xFFFF)


def pack_again(
    weights: Sequence[StoredInt4], device: torch.device, empty: Allocate | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices of as many columns, one below the other, as words and scales on `device`.

    They go to the device as they are stored, piece by piece. `empty` makes what is kept; None: torch does.
    """
    empty = empty or (lambda shape, dtype: torch.empty(shape, dtype=dtype, device=device))
    columns = weights[0].shape[1]
    rows = [weight.shape[0] for weight in weights]
    blocks, parts = -(-columns // BLOCK), groups_in_block(weights[0].packing.group)
    words = empty((blocks, sum(rows), WORDS), torch.int32)
    scales = empty((blocks * parts, sum(rows)), torch.int32)
    places = zip(words.split_with_sizes(rows, dim=1), scales.split_with_sizes(rows, dim=1), strict=True)
    for weight, (own_words, own_scales) in zip(weights, places, strict=True):
        _copy_words(weight, own_words)
        _copy_scales(weight, own_scales, parts)
    return words, scales


def _copy_words(weight: StoredInt4, words: torch.Tensor) -> None:
    rows, columns = weight.shape
    size = max(_PIECE // rows // BLOCK, 1)  # blocks
    for first in range(0, len(words), size):
        last = min(first + size, len(words))
        values = weight.values(first * BLOCK, min(last * BLOCK, columns), words.device)
        words[first:last] = pack(pad(values, (0, 0, 0, (last - first) * BLOCK - len(values))))


def _copy_scales(weight: StoredInt4, scales: torch.Tensor, parts: int) -> None:
    """A group that is wider than a block is repeated; those beyond the last column have the scale 0."""
    found = pack_scales(weight.scales.to(scales.device), weight.zero_points(scales.device))
    group = weight.packing.group or weight.shape[1]
    at = torch.arange(len(scales), device=scales.device) * (BLOCK // parts) // group
    scales.copy_(pad(found, (0, 0, 0, 1))[at.clamp_max(len(found))])


class Int4Linear(torch.nn.Module):
    """x @ weight.T + bias, with x in bfloat16 or float16 on a GPU.

    Args:
        words, scales: see this module.
        columns: of the weight, of which the last block may have fewer than 128.
    """

    def __init__(self, words: torch.Tensor, scales: torch.Tensor, columns: int, bias: torch.Tensor | None) -> None:
        from lodger.runtime.kernels import w4a16

        super().__init__()
        self.words, self.scales, self.columns, self.bias = words, scales, columns, bias
        self._kernels = w4a16

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.columns).contiguous()
        found = self._dense(rows) if len(rows) > MOST_TOKENS else self._few(rows)
        return found.view(*x.shape[:-1], -1)

    def _few(self, x: torch.Tensor) -> torch.Tensor:
        return self._kernels.product(x, self.words, self.scales, self.bias)

    def _dense(self, x: torch.Tensor) -> torch.Tensor:
        """So many tokens that arithmetic takes longer than reading weights: they are made dense a piece at a time."""
        return product_by_pieces(
            x,
            self.words.shape[1],
            lambda at, room: self._kernels.dequantised(self.words, self.scales, at.start, room),
            self.bias,
        )
