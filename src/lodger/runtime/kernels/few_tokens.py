"""Products of 2 to 32 tokens with a weight in their own dtype or of one byte.

A weight is read once; as bytes it becomes the half precision on the way, and the scale of a row multiplies its finished
sums. The weight is the left operand, so that there may be fewer tokens than a left operand must have rows. Reading the
weight is what limits this, then the tokens that each program reads from L2.

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
from lodger.runtime.kernels.few_tokens_tiling import Tile, tile_for
from lodger.runtime.kernels.one_token import Matrix


def product(
    x: torch.Tensor,
    matrix: Matrix,
    *,
    gated: bool = False,
    out: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """x @ matrix, summed in float32.

    Args:
        x: [T, columns], contiguous.
        gated: the matrix is a gate above as many rows: silu(x @ gate) * (x @ rest), known as SwiGLU.
        out: [T, rows], contiguous; where the result goes.
        tile: how it is cut; None for what was measured to be fastest.

    Returns:
        [T, rows] in x's dtype; with `gated` half as many as the matrix has.
    """
    tokens, (rows, columns) = len(x), matrix.values.shape
    rows = rows // 2 if gated else rows
    tile = tile or tile_for(tokens, rows, columns, processors(x.device), scaled=matrix.scale is not None)
    out = x.new_empty(tokens, rows) if out is None else out
    tiles, parts, arrived = shares(x, out, rows, tile, sums=2 if gated else 1)
    _product[(tiles, tile.splits)](
        x,
        matrix.values,
        x if matrix.scale is None else matrix.scale,
        x if matrix.bias is None else matrix.bias,
        out,
        parts,
        arrived,
        tokens,
        rows,
        columns,
        TOKENS=tile.tokens,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        SHARED=tile.splits > 1,
        GATED=gated,
        SCALED=matrix.scale is not None,
        BIASED=matrix.bias is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


@triton.jit(do_not_specialize=["tokens", "rows"])
def _product(
    x, weight, scale, bias, out, parts, arrived, tokens, rows, columns,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SHARED: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    tile, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    across = tl.cdiv(tokens, TOKENS)  # tiles of the same rows are neighbours, so that a weight comes from memory once
    row = (tile // across) * ROWS + tl.arange(0, ROWS)
    token = (tile % across) * TOKENS + tl.arange(0, TOKENS)
    steps = tl.cdiv(columns, COLUMNS)
    begin = steps * split // splits
    count = steps * (split + 1) // splits - begin
    column = begin * COLUMNS + tl.arange(0, COLUMNS)
    # Beyond an edge the last row or token is read again, and what comes of it is not stored.
    start = weight + tl.minimum(row, rows - 1).to(tl.int64) * columns
    start_beside = start + rows.to(tl.int64) * columns
    inputs = x + tl.minimum(token, tokens - 1).to(tl.int64)[None, :] * columns + column[:, None]
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    beside = tl.zeros([ROWS, TOKENS], tl.float32)
    for step in tl.range(0, count):
        at = step * COLUMNS + column
        inside = (at < columns)[None, :]
        a = tl.load(inputs + step * COLUMNS, mask=(at < columns)[:, None], other=0.0)
        w = tl.load(start[:, None] + at[None, :], mask=inside, other=0, eviction_policy="evict_first")
        total = tl.dot(w.to(a.dtype), a, total, input_precision="ieee")
        if GATED:
            u = tl.load(start_beside[:, None] + at[None, :], mask=inside, other=0, eviction_policy="evict_first")
            beside = tl.dot(u.to(a.dtype), a, beside, input_precision="ieee")
    if SHARED:
        size = ROWS * TOKENS
        own = tl.arange(0, ROWS)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
        parts += tile.to(tl.int64) * splits * (2 * size if GATED else size) + own
        tl.store(parts + split * size, total)
        if GATED:
            tl.store(parts + (splits + split) * size, beside)
        tl.debug_barrier()  # every thread has stored its sums before one says so
        if tl.atomic_add(arrived + tile, 1, sem="acq_rel") != splits - 1:
            return
        tl.store(arrived + tile, 0)
        total = _added(parts, splits, ROWS, TOKENS)
        if GATED:
            beside = _added(parts + splits * size, splits, ROWS, TOKENS)
    inside = row < rows
    total = _finished(total, scale, bias, row, inside, SCALED, BIASED)
    if GATED:
        total *= tl.sigmoid(total)
        total *= _finished(beside, scale + rows, bias + rows, row, inside, SCALED, BIASED)
    place = out + token.to(tl.int64)[None, :] * rows + row[:, None]
    tl.store(place, total.to(out.dtype.element_ty), mask=inside[:, None] & (token < tokens)[None, :])


@triton.jit
def _added(parts, splits, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    total = tl.load(parts, cache_modifier=".cg")
    for other in tl.range(1, splits, loop_unroll_factor=4):
        total += tl.load(parts + other * (ROWS * TOKENS), cache_modifier=".cg")
    return total


@triton.jit
def _finished(total, scale, bias, row, inside, SCALED: tl.constexpr, BIASED: tl.constexpr):
    if SCALED:
        total *= tl.load(scale + row, mask=inside, other=0.0)[:, None]
    if BIASED:
        total += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    return total
