"""Products of activations in a half precision with weights of one byte: x @ (weight * scale).T, known as W8A16.

A weight is read once, as it is stored, and becomes the half precision on the way: every integer of 8 bits is exact in
it, so the only error is that of rounding the weight (`lodger.runtime.quantised`). The scale of a row multiplies its
finished sums. The weight is the left operand, which tensor cores take from registers, two bytes of a row at a time.

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

from lodger.runtime.kernels import few_tokens, one_token
from lodger.runtime.kernels.arrivals import processors, shares
from lodger.runtime.kernels.few_tokens_tiling import MOST_FEW
from lodger.runtime.kernels.product_tiling import Tile, tile_for

_HOPPER = (9, 0)
_ALIGNED = 16  # bytes, of what Hopper's copies begin at


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
        tile: how it is cut; None for what was measured to be fastest, and then it must be `worth` it.

    Returns:
        [T, rows] in x's dtype.
    """
    if tile is None and len(x) <= MOST_FEW:
        matrix = one_token.Matrix(weight, scale, bias)
        return one_token.product(x, matrix) if len(x) == 1 else few_tokens.product(x, matrix)
    tile = tile or _tile(x, weight)
    assert tile is not None
    out = x.new_empty(len(x), len(weight))
    if tile.hopper:
        from lodger.runtime.kernels import w8a16_hopper

        w8a16_hopper.product(x, weight, scale, bias, out, tile)
    else:
        _tiled(x, weight, scale, bias, out, tile)
    return out


def worth(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `product` is faster than the library's with the weight made dense, that included."""
    return len(x) <= MOST_FEW or _tile(x, weight) is not None


def _tile(x: torch.Tensor, weight: torch.Tensor) -> Tile | None:
    hopper = _is_hopper(x.device) and not (x.data_ptr() % _ALIGNED or weight.data_ptr() % _ALIGNED)
    rows, columns = weight.shape
    return tile_for(len(x), rows, columns, processors(x.device), hopper=hopper)


def dequantised(weight: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """weight * scale, rounded to `out`'s dtype and written to `out` [rows, columns], which is returned."""
    rows, columns = weight.shape
    grid = (triton.cdiv(rows, 8), triton.cdiv(columns, 512))
    _dequantise[grid](weight, scale, out, rows, columns, ROWS=8, COLUMNS=512, num_warps=4)
    return out


@cache
def _is_hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) == _HOPPER


def _tiled(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, tile: Tile
) -> None:
    tokens, (rows, columns) = len(x), weight.shape
    tiles, parts, arrived = shares(x, out, rows, tile)
    _product[(tiles, tile.splits)](
        x,
        weight.view(torch.int16),
        scale,
        scale if bias is None else bias,
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
        BIASED=bias is not None,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


@triton.jit(do_not_specialize=["tokens"])
def _product(
    x, pairs, scale, bias, out, parts, arrived, tokens, rows, columns,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SHARED: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    tile, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    across = tl.cdiv(tokens, TOKENS)  # tiles of the same rows are neighbours, so that a weight comes from memory once
    row = (tile // across) * ROWS + tl.arange(0, ROWS)
    token = (tile % across) * TOKENS + tl.arange(0, TOKENS)
    steps = tl.cdiv(columns, COLUMNS)
    begin = steps * split // splits
    column = begin * COLUMNS + tl.arange(0, COLUMNS)
    pair = begin * (COLUMNS // 2) + tl.arange(0, COLUMNS // 2)
    # Beyond an edge the last row or token is read again, and what comes of it is not stored.
    weights = pairs + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * (columns // 2) + pair[None, :]
    inputs = x + tl.minimum(token, tokens - 1).to(tl.int64)[:, None] * columns + column[None, :]
    total = tl.zeros([ROWS, TOKENS], tl.float32)
    for step in tl.range(0, steps * (split + 1) // splits - begin):
        inside = (step * (COLUMNS // 2) + pair < columns // 2)[None, :]
        w = tl.load(weights + step * (COLUMNS // 2), mask=inside, other=0, eviction_policy="evict_first")
        a = tl.load(inputs + step * COLUMNS, mask=(step * COLUMNS + column < columns)[None, :], other=0.0)
        total = _ended(tl.dot(_halves(w, a.dtype), tl.trans(a), total), a.dtype)
    row, token = row[:, None], token[None, :]
    own = tl.arange(0, ROWS)[:, None] * TOKENS + tl.arange(0, TOKENS)[None, :]
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
def _halves(pairs, half: tl.constexpr):
    """Two bytes in each of [ROWS, N] as [ROWS, 2 N] of half: bits are put behind an exponent, and what that added is
    taken away. Eight instructions for four weights; the compiler's own way has to take bytes apart first."""
    if half == tl.bfloat16:  # seven bits behind 128; the eighth makes 256 of 128, which is then taken away
        both = tl.inline_asm_elementwise(
            """{
            .reg .b32 p, low, high, minus;
            mov.b32 minus, 0xbf80bf80;
            prmt.b32 p, $1, 0x43, 0x4140;
            and.b32 low, p, 0xff7fff7f;
            and.b32 high, p, 0xff80ff80;
            fma.rn.bf16x2 $0, high, minus, low;
            }""",
            "=r,r",
            [pairs.to(tl.uint16, bitcast=True).to(tl.uint32)],
            dtype=tl.uint32,
            is_pure=True,
            pack=1,
        )
    elif half == tl.float16:  # the byte plus 128 behind 1024
        both = tl.inline_asm_elementwise(
            """{
            .reg .b32 p, middle;
            mov.b32 middle, 0x64806480;
            xor.b32 p, $1, 0x8080;
            prmt.b32 p, p, 0x64, 0x4140;
            sub.f16x2 $0, p, middle;
            }""",
            "=r,r",
            [pairs.to(tl.uint16, bitcast=True).to(tl.uint32)],
            dtype=tl.uint32,
            is_pure=True,
            pack=1,
        )
    if half == tl.float32:  # in the interpreter
        first, second = ((pairs << 8) >> 8).to(half), (pairs >> 8).to(half)
    else:
        first = both.to(tl.uint16).to(half, bitcast=True)
        second = (both >> 16).to(tl.uint16).to(half, bitcast=True)
    return tl.reshape(tl.join(first, second), [pairs.shape[0], 2 * pairs.shape[1]])


@triton.jit
def _ended(total, half: tl.constexpr):
    """`total`, and no product still at work. On Hopper one runs on while the next weights take the registers that it
    reads: Triton 3.6 waits too late (sums were off by 17 %), unless something else is done with the sums."""
    if half != tl.float32:
        total = tl.inline_asm_elementwise("", "=r,0", [total], dtype=tl.float32, is_pure=True, pack=1)
    return total


@triton.jit
def _dequantise(weight, scale, out, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    value = tl.load(weight + place, mask=inside, other=0).to(tl.float32)
    value *= tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
