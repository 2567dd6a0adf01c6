"""Products of one token with a weight in its own dtype or of one byte, and what stands beside them in a layer.

Every number of a weight is used once, so that reading the weight is all that such a product takes. One warp reads some
rows from end to end, without shared memory, while the numbers of its next step are on their way.

The norm of the input needs no launch of its own: its weight multiplies the input on the way, the squares are summed
beside, and 1 / root mean square multiplies the finished sums. So does the scale of a row of bytes.
"""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl


class Matrix(NamedTuple):
    """What x is multiplied with: x @ (values * scale).T + bias."""

    values: torch.Tensor  # [rows, columns] in x's dtype, or int8
    scale: torch.Tensor | None  # float32 [rows] of int8
    bias: torch.Tensor | None  # [rows]


class Share(NamedTuple):
    """One program's share of the work."""

    rows: int
    columns: int  # read at a time
    warps: int


def share_for(rows: int, *, gated: bool, scaled: bool) -> Share:
    """What an H100 measured to be fastest for Qwen3-4B's products."""
    if scaled:  # beside bytes the input weighs twice as much, so more rows share it
        return Share(2, 512, 2) if gated else Share(8, 512, 2) if rows > 4096 else Share(2, 1024, 2)
    if gated or rows > 32_768:
        return Share(1, 512, 1)
    return Share(4, 512, 1) if rows > 4096 else Share(2, 1024, 1)


def product(
    x: torch.Tensor,
    matrix: Matrix,
    norm: tuple[torch.Tensor, float] | None = None,
    *,
    gated: bool = False,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    share: Share | None = None,
) -> torch.Tensor:
    """x @ matrix + residual, summed in float32.

    Args:
        x: [1, columns], contiguous.
        norm: weight [columns] and epsilon of a root mean square norm that x passes first.
        gated: the matrix is a gate above as many rows: silu(x @ gate) * (x @ rest), known as SwiGLU.
        residual: [1, rows], contiguous; becomes the result.
        out: [1, rows], contiguous; where the result goes, if not into `residual`.

    Returns:
        [1, rows] in x's dtype; with `gated` half as many as the matrix has.
    """
    rows, columns = matrix.values.shape
    rows = rows // 2 if gated else rows
    if residual is not None:
        out = residual
    elif out is None:
        out = x.new_empty(1, rows)
    share = share or share_for(rows, gated=gated, scaled=matrix.scale is not None)
    # In the interpreter numbers are float32, and every byte is one.
    each = 4 if matrix.scale is not None and columns % 4 == 0 and x.dtype != torch.float32 else 1
    _product[(triton.cdiv(rows, share.rows),)](
        x,
        x if norm is None else norm[0],
        matrix.values.view(torch.int32) if each == 4 else matrix.values,
        x if matrix.scale is None else matrix.scale,
        x if matrix.bias is None else matrix.bias,
        out,
        rows,
        columns,
        0.0 if norm is None else norm[1],
        ROWS=share.rows,
        COLUMNS=share.columns,
        NORMED=norm is not None,
        GATED=gated,
        SCALED=matrix.scale is not None,
        BIASED=matrix.bias is not None,
        ADDED=residual is not None,
        EACH=each,
        num_warps=share.warps,
    )
    return out


@triton.jit
def _read(place, start, columns, COLUMNS: tl.constexpr, EACH: tl.constexpr):
    inside = start // EACH + tl.arange(0, COLUMNS // EACH) < columns // EACH
    return tl.load(place + start // EACH, mask=inside[None, :], other=0, eviction_policy="evict_first")


@triton.jit(do_not_specialize=["rows"])
def _product(
    x, norm, weight, scale, bias, out, rows, columns, epsilon,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, NORMED: tl.constexpr, GATED: tl.constexpr, SCALED: tl.constexpr,
    BIASED: tl.constexpr, ADDED: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    # Beyond the last row it is read again, and what comes of it is not stored.
    place = tl.minimum(row, rows - 1).to(tl.int64)[:, None] * (columns // EACH)
    first = weight + place + tl.arange(0, COLUMNS // EACH)[None, :]
    second = first + rows.to(tl.int64) * (columns // EACH)
    w = _read(first, 0, columns, COLUMNS, EACH)
    if GATED:
        u = _read(second, 0, columns, COLUMNS, EACH)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    beside = tl.zeros([ROWS, COLUMNS], tl.float32)
    squares = tl.zeros([COLUMNS], tl.float32)
    for start in tl.range(0, columns, COLUMNS):
        next_w = _read(first, start + COLUMNS, columns, COLUMNS, EACH)
        if GATED:
            next_u = _read(second, start + COLUMNS, columns, COLUMNS, EACH)
        inside = start + column < columns
        a = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)
        if NORMED:
            squares += a * a
            a *= tl.load(norm + start + column, mask=inside, other=0.0).to(tl.float32)
        total += _numbers(w, EACH) * a[None, :]
        w = next_w
        if GATED:
            beside += _numbers(u, EACH) * a[None, :]
            u = next_u
    factor = 1.0
    if NORMED:
        factor = tl.rsqrt(tl.sum(squares, 0) / columns + epsilon)
    found = _finished(tl.sum(total, 1) * factor, scale, bias, row, row < rows, SCALED, BIASED)
    if GATED:
        found *= tl.sigmoid(found)
        found *= _finished(tl.sum(beside, 1) * factor, scale + rows, bias + rows, row, row < rows, SCALED, BIASED)
    if ADDED:
        found += tl.load(out + row, mask=row < rows, other=0.0).to(tl.float32)
    tl.store(out + row, found.to(out.dtype.element_ty), mask=row < rows)


@triton.jit
def _numbers(w, EACH: tl.constexpr):
    """In float32."""
    if EACH == 4:  # bytes at one address
        w = _floats(w)
    return w.to(tl.float32)


@triton.jit
def _floats(words):
    """Four bytes in each of [ROWS, N] as [ROWS, 4 N] of float32. A byte comes to lie in the last bits of 2^23, which is
    then taken away: an A100 or H100 converts integers at an eighth of the speed at which it adds."""
    a, b, c, d = tl.inline_asm_elementwise(
        """{
        .reg .b32 four;
        xor.b32 four, $4, 0x80808080;
        prmt.b32 $0, four, 0x4b000000, 0x7440;
        prmt.b32 $1, four, 0x4b000000, 0x7441;
        prmt.b32 $2, four, 0x4b000000, 0x7442;
        prmt.b32 $3, four, 0x4b000000, 0x7443;
        }""",
        "=r,=r,=r,=r,r",
        [words],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )
    found = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(found, [words.shape[0], 4 * words.shape[1]]) - 8388736.0  # 2^23 + 128


@triton.jit
def _finished(total, scale, bias, row, inside, SCALED: tl.constexpr, BIASED: tl.constexpr):
    if SCALED:
        total *= tl.load(scale + row, mask=inside, other=0.0)
    if BIASED:
        total += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)
    return total
