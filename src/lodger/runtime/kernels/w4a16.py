"""Products of activations in a half precision with weights of half a byte, known as W4A16 (`lodger.runtime.int4`).

A weight is read once, as it is stored. Its numbers become a half precision without being converted: four bits beside
those of 128 in bfloat16, or of 1024 in float16, are 128 + n or 1024 + n, and subtracting 128 + zero or 1024 + zero is
exact. One shift and one mask make two of them, and the order in which a word holds its eight is that in which tensor
cores take them. The scale of a group multiplies its finished sums, so the only error is that of the stored weight.

Where a product has fewer tiles than the card has room for, several programs share the columns of a tile; the last to
finish adds up what all of them found, always in the same order.
"""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lodger.runtime.kernels.arrivals import processors, shares
from lodger.runtime.kernels.int4_tiling import Tile, tile_for


def product(
    x: torch.Tensor,
    words: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """x @ weight.T + bias, summed in float32.

    Args:
        x: [T, columns], contiguous, bfloat16 or float16.
        words: int32 [blocks, rows, 16], contiguous.
        scales: int32 [groups, rows].
        bias: [rows].
        tile: how it is cut; None for what was measured to be fastest.

    Returns:
        [T, rows] in x's dtype.
    """
    (tokens, columns), (blocks, rows, _) = x.shape, words.shape
    tile = tile or tile_for(tokens, rows, blocks, processors(x.device))
    out = x.new_empty(tokens, rows)
    tiles, parts, arrived = shares(x, out, rows, tile)
    _product[(tiles, tile.splits)](
        x,
        words,
        scales,
        out if bias is None else bias,
        out,
        parts,
        arrived,
        tokens,
        rows,
        columns,
        TOKENS=tile.tokens,
        ROWS=tile.rows,
        GROUPS=len(scales) // blocks,
        WHOLE=columns % 128 == 0,
        SHARED=tile.splits > 1,
        BIASED=bias is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def dequantised(words: torch.Tensor, scales: torch.Tensor, first: int, out: torch.Tensor) -> torch.Tensor:
    """`out` [n, columns], filled with the weight's rows from `first` on, each number rounded to its dtype."""
    blocks, rows, _ = words.shape
    grid = (triton.cdiv(len(out), 16), blocks)
    own = first, len(out), rows, out.shape[1]
    _dequantise[grid](words, scales, out, *own, ROWS=16, GROUPS=len(scales) // blocks, num_warps=4)
    return out


@triton.jit
def _numbers(words, quarter: tl.constexpr, dtype: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS, 32]: the numbers of one quarter of a block, each plus 128 or 1024."""
    both = ((words >> (4 * quarter)) & 0x000F000F) | (0x43004300 if dtype == tl.bfloat16 else 0x64006400)
    even = (both >> 16).to(tl.int16).to(dtype, bitcast=True)
    odd = both.to(tl.int16).to(dtype, bitcast=True)
    return tl.join(even, odd).reshape(ROWS, 32)


@triton.jit
def _zero(scale, dtype: tl.constexpr):
    """Zero points, each plus 128 or 1024."""
    return ((scale >> 16) | (0x4300 if dtype == tl.bfloat16 else 0x6400)).to(tl.int16).to(dtype, bitcast=True)


@triton.jit
def _scale(scale):
    return scale.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit(do_not_specialize=["tokens"])
def _product(
    x, words, scales, bias, out, parts, arrived, tokens, rows, columns,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
    WHOLE: tl.constexpr, SHARED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    tile, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    across = tl.cdiv(tokens, TOKENS)  # tiles of the same rows are neighbours, so that a weight comes from memory once
    row = (tile // across) * ROWS + tl.arange(0, ROWS)
    token = (tile % across) * TOKENS + tl.arange(0, TOKENS)
    blocks = tl.cdiv(columns, 128)
    # Beyond an edge the last row or token is read again, and what comes of it is not stored.
    own_row, column = tl.minimum(row, rows - 1), tl.arange(0, 32)
    weights = words + own_row[:, None] * 16 + tl.arange(0, 16)[None, :]
    inputs = x + tl.minimum(token, tokens - 1)[:, None] * columns + column[None, :]
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    for block in tl.range(blocks * split // splits, blocks * (split + 1) // splits):
        w = tl.load(weights + block * rows * 16, eviction_policy="evict_first")
        for group in tl.static_range(GROUPS):
            both = tl.load(scales + (block * GROUPS + group) * rows + own_row)
            zero = _zero(both, x.dtype.element_ty)
            sums = tl.zeros([ROWS, TOKENS], tl.float32)
            for quarter in tl.static_range(group * 4 // GROUPS, (group + 1) * 4 // GROUPS):
                first = block * 128 + quarter * 32
                if WHOLE:
                    a = tl.load(inputs + first)
                else:
                    a = tl.load(inputs + first, mask=(first + column < columns)[None, :], other=0.0)
                n = _numbers(w, quarter, x.dtype.element_ty, ROWS) - zero[:, None]
                sums = tl.dot(n, tl.trans(a), sums)
            total += sums * _scale(both)[:, None]
    row, token = row[:, None], token[None, :]
    if SHARED:
        own = tl.arange(0, ROWS)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
        parts += tile.to(tl.int64) * splits * (ROWS * TOKENS) + own
        tl.store(parts + split * (ROWS * TOKENS), total)
        tl.debug_barrier()  # every thread has stored its sums before one says so
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") != splits - 1:
            return
        tl.store(arrived + tile, 0)
        total = tl.load(parts, cache_modifier=".cg")
        for other in tl.range(1, splits):
            total += tl.load(parts + other * (ROWS * TOKENS), cache_modifier=".cg")
    if BIASED:
        total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)
    tl.store(out + token * rows + row, total.to(out.dtype.element_ty), mask=(row < rows) & (token < tokens))


@triton.jit(do_not_specialize=["first", "count"])
def _dequantise(words, scales, out, first, count, rows, columns, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    row, block = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1)
    stored = tl.minimum(first + row, rows - 1)
    w = tl.load(words + block * rows * 16 + stored[:, None] * 16 + tl.arange(0, 16)[None, :])
    for quarter in tl.static_range(4):
        both = tl.load(scales + (block * GROUPS + quarter * GROUPS // 4) * rows + stored)
        # float16 has all of them exactly, whatever they become
        n = _numbers(w, quarter, tl.float16, ROWS) - _zero(both, tl.float16)[:, None]
        value = n.to(tl.float32) * _scale(both)[:, None]
        column = block * 128 + quarter * 32 + tl.arange(0, 32)
        inside = (row < count)[:, None] & (column < columns)[None, :]
        tl.store(out + row[:, None] * columns + column[None, :], value.to(out.dtype.element_ty), mask=inside)
