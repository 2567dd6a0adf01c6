"""Products of activations in a half precision with weights of one byte: x @ (weight * scale).T, known as W8A16.

A weight is read once, as it is stored, and becomes the half precision on the way: every integer of 8 bits is exact in
it, so the only error is that of rounding the weight (`lodger.runtime.quantised`). The scale of a row multiplies its
finished sums.

Where a product has fewer tiles than the card has room for, several programs share the columns of a tile; the last to
finish adds up what all of them found, always in the same order.
"""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from lodger.runtime.kernels.arrivals import counters
from lodger.runtime.kernels.product_tiling import Tile, tile_for


def product(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """x @ (weight * scale).T + bias, summed in float32.

    Args:
        x: [T, columns], contiguous, bfloat16 or float16.
        weight: int8 [rows, columns], contiguous.
        scale: float32 [rows].
        bias: [rows].
        tile: how it is cut; None for what was measured to be fastest.

    Returns:
        [T, rows] in x's dtype.
    """
    out = x.new_empty(len(x), len(weight))
    rows, columns = weight.shape
    if len(x) == 1 and tile is None:
        _one_token(x, weight, scale, bias, out)
    else:
        _tiled(x, weight, scale, bias, out, tile or tile_for(len(x), rows, columns, _processors(x.device)))
    return out


def dequantised(weight: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """weight * scale, rounded to `out`'s dtype and written to `out` [rows, columns], which is returned."""
    rows, columns = weight.shape
    grid = (triton.cdiv(rows, 8), triton.cdiv(columns, 512))
    _dequantise[grid](weight, scale, out, rows, columns, ROWS=8, COLUMNS=512, num_warps=4)
    return out


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _tiled(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, tile: Tile
) -> None:
    tokens, (rows, columns) = len(x), weight.shape
    tiles = triton.cdiv(rows, tile.rows) * triton.cdiv(tokens, tile.tokens)
    shared = tile.splits > 1
    parts = x.new_empty(tiles * tile.splits * tile.rows * tile.tokens, dtype=torch.float32) if shared else out
    _product[(tiles, tile.splits)](
        x,
        weight,
        scale,
        scale if bias is None else bias,
        out,
        parts,
        counters(x.device) if shared else out,
        tokens,
        rows,
        columns,
        TOKENS=tile.tokens,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        LEFT=tile.weight_left,
        SHARED=shared,
        BIASED=bias is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _one_token(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    rows, columns = weight.shape
    _vector[(triton.cdiv(rows, 2),)](
        x,
        weight,
        scale,
        scale if bias is None else bias,
        out,
        rows,
        columns,
        ROWS=2,
        COLUMNS=512,
        BIASED=bias is not None,
        num_warps=1,
    )


@triton.jit(do_not_specialize=["tokens"])
def _product(
    x, weight, scale, bias, out, parts, arrived, tokens, rows, columns,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    LEFT: tl.constexpr, SHARED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    tile, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    across = tl.cdiv(tokens, TOKENS)  # tiles of the same rows are neighbours, so that a weight comes from memory once
    row = (tile // across) * ROWS + tl.arange(0, ROWS)
    token = (tile % across) * TOKENS + tl.arange(0, TOKENS)
    steps = tl.cdiv(columns, COLUMNS)
    begin = steps * split // splits
    column = begin * COLUMNS + tl.arange(0, COLUMNS)
    # Beyond an edge the last row or token is read again, and what comes of it is not stored.
    weights = weight + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * columns + column[None, :]
    inputs = x + tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * columns + column[None, :]
    total = tl.zeros([ROWS, TOKENS] if LEFT else [TOKENS, ROWS], tl.float32)
    for step in tl.range(0, steps * (split + 1) // splits - begin):
        inside = (step * COLUMNS + column < columns)[None, :]
        w = tl.load(weights + step * COLUMNS, mask=inside, other=0, eviction_policy="evict_first")
        a = tl.load(inputs + step * COLUMNS, mask=inside, other=0.0)
        total = tl.dot(w.to(a.dtype), tl.trans(a), total) if LEFT else tl.dot(a, tl.trans(w.to(a.dtype)), total)
    if LEFT:
        row, token = row[:, None], token[None, :]
        own = tl.arange(0, ROWS)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
    else:
        row, token = row[None, :], token[:, None]
        own = tl.arange(0, TOKENS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    if SHARED:
        parts += tile.to(tl.int64) * splits * (ROWS * TOKENS) + own
        tl.store(parts + split * (ROWS * TOKENS), total)
        tl.debug_barrier()  # every thread has stored its sums before one says so
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") != splits - 1:
            return
        tl.store(arrived + tile, 0)
        total = tl.load(parts, cache_modifier=".cg")
        for other in tl.range(1, splits):
            total += tl.load(parts + other * (ROWS * TOKENS), cache_modifier=".cg")
    total *= tl.load(scale + row, mask=row < rows, other=0.0)
    if BIASED:
        total += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)
    place = out + token.to(tl.int64) * rows + row
    tl.store(place, total.to(out.dtype.element_ty), mask=(row < rows) & (token < tokens))


@triton.jit
def _vector(
    x, weight, scale, bias, out, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BIASED: tl.constexpr
):
    """One token: every weight is used once, so that tensor cores would only wait for it."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    weights = weight + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * columns + column[None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.range(0, columns, COLUMNS, num_stages=3):
        inside = start + column < columns
        w = tl.load(weights + start, mask=inside[None, :], other=0, eviction_policy="evict_first")
        a = tl.load(x + start + column, mask=inside, other=0.0)
        total += w.to(tl.float32) * a.to(tl.float32)[None, :]
    inside = row < rows
    found = tl.sum(total, 1) * tl.load(scale + row, mask=inside, other=0.0)
    if BIASED:
        found += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row, found.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _dequantise(weight, scale, out, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    value = tl.load(weight + place, mask=inside, other=0).to(tl.float32)
    value *= tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
