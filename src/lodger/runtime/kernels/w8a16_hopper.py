"""W8A16 on Hopper, for so many tokens that its tensor cores are what there is to wait for.

They read both operands from shared memory and work by themselves. While they multiply one piece of the weight, the
program's threads make the next one dense, and the copy engine brings those after it: so bytes cost next to nothing.
Triton's compiler has no such schedule (it converts a piece and then waits for its product), so this is written in
Gluon, its explicit language, of which the names that changed between Triton 3.6 and 3.9 are taken as they are found.
"""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803, N806

from __future__ import annotations

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from lodger.runtime.kernels.arrivals import shares
from lodger.runtime.kernels.product_tiling import Tile

copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
barrier = getattr(gl, "barrier", None) or gl.thread_barrier

_INPUTS = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
_BYTES = gl.NVMMASharedLayout(swizzle_byte_width=64, element_bitwidth=8, rank=2)


def product(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, tile: Tile
) -> None:
    """x @ (weight * scale).T + bias, written to `out`; see `w8a16.product`.

    x and weight begin at multiples of 16 bytes, and so do their rows.
    """
    tokens, (rows, columns) = len(x), weight.shape
    tiles, parts, arrived = shares(x, out, rows, tile)
    _product[(tiles, tile.splits)](
        TensorDescriptor.from_tensor(x, [tile.tokens, tile.columns], _INPUTS),
        TensorDescriptor.from_tensor(weight, [tile.rows, tile.columns], _BYTES),
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
        STAGES=tile.stages,
        SHARED=tile.splits > 1,
        BIASED=bias is not None,
        num_warps=tile.warps,
    )


@gluon.jit
def _ask(inputs, weight, token, row, column, ready, xs, ws, wanted):
    """A piece of both operands is to come; zeros stand for what is beyond an edge."""
    mbarrier.expect(ready, inputs.block_type.nbytes + weight.block_type.nbytes, wanted)
    copy(inputs, [token, column], ready, xs, wanted)
    copy(weight, [row, column], ready, ws, wanted)


@gluon.jit
def _sums(
    inputs, weight, first_token, first_row, begin, count,
    TOKENS: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """[ROWS, TOKENS] of `count` pieces of columns."""
    COLUMNS: gl.constexpr = 64  # what the swizzled rows of a half precision hold
    HALF: gl.constexpr = inputs.dtype
    converted: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [num_warps, 1], [1, 0])
    summed: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[num_warps, 1], instr_shape=[16, TOKENS, 16]
    )
    xs = gl.allocate_shared_memory(HALF, [STAGES, TOKENS, COLUMNS], inputs.layout)
    ws = gl.allocate_shared_memory(gl.int8, [STAGES, ROWS, COLUMNS], weight.layout)
    dense = gl.allocate_shared_memory(HALF, [2, ROWS, COLUMNS], inputs.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(ready.index(i), count=1)
    fence_async_shared()
    barrier()
    for i in gl.static_range(STAGES - 1):
        at = (begin + i) * COLUMNS
        _ask(inputs, weight, first_token, first_row, at, ready.index(i), xs.index(i), ws.index(i), i < count)
    total = gl.zeros([ROWS, TOKENS], gl.float32, summed)
    mbarrier.wait(ready.index(0), 0)
    dense.index(0).store(ws.index(0).load(converted).to(HALF))
    fence_async_shared()
    barrier()
    for i in range(count):
        running = warpgroup_mma(dense.index(i % 2), xs.index(i % STAGES).permute((1, 0)), total, is_async=True)
        total = warpgroup_mma_wait(1, deps=[running])  # the product before this one has ended, in every warp
        barrier()
        later = i + STAGES - 1
        at, to = (begin + later) * COLUMNS, later % STAGES
        _ask(inputs, weight, first_token, first_row, at, ready.index(to), xs.index(to), ws.index(to), later < count)
        if i + 1 < count:
            following = (i + 1) % STAGES
            mbarrier.wait(ready.index(following), ((i + 1) // STAGES) & 1)
            dense.index((i + 1) % 2).store(ws.index(following).load(converted).to(HALF))
            fence_async_shared()
        barrier()
    total = warpgroup_mma_wait(0, deps=[total])
    for i in gl.static_range(STAGES):
        mbarrier.invalidate(ready.index(i))
    return total


@gluon.jit(do_not_specialize=["tokens"])
def _product(
    inputs, weight, scale, bias, out, parts, arrived, tokens, rows, columns,
    TOKENS: gl.constexpr, ROWS: gl.constexpr, STAGES: gl.constexpr, SHARED: gl.constexpr, BIASED: gl.constexpr,
    num_warps: gl.constexpr,
):  # fmt: skip
    tile = gl.program_id(0)
    split = gl.program_id(1)
    splits = gl.num_programs(1)
    across = gl.cdiv(tokens, TOKENS)  # tiles of the same rows are neighbours
    first_row = (tile // across) * ROWS
    first_token = (tile % across) * TOKENS
    steps = gl.cdiv(columns, inputs.block_shape[1])
    begin = steps * split // splits
    count = steps * (split + 1) // splits - begin
    total = _sums(inputs, weight, first_token, first_row, begin, count, TOKENS, ROWS, STAGES, num_warps)
    stored: gl.constexpr = (
        gl.BlockedLayout([8, 1], [8, 4], [1, num_warps], [0, 1])
        if ROWS == 64
        else gl.BlockedLayout([8, 1], [16, 2], [1, num_warps], [0, 1])
    )
    found = gl.convert_layout(total, stored)
    row = gl.arange(0, ROWS, gl.SliceLayout(1, stored))
    token = gl.arange(0, TOKENS, gl.SliceLayout(0, stored))
    if SHARED:
        own = row[:, None] + token[None, :] * ROWS
        parts += tile.to(gl.int64) * splits * (ROWS * TOKENS)
        gl.store(parts + split * (ROWS * TOKENS) + own, found)
        barrier()  # every thread has stored its sums before one says so
        if gl.atomic_add(arrived + tile, 1, sem="acq_rel") != splits - 1:
            return
        gl.store(arrived + tile, 0)
        found = gl.load(parts + own, cache_modifier=".cg")
        for other in range(1, splits):
            found += gl.load(parts + other * (ROWS * TOKENS) + own, cache_modifier=".cg")
    row += first_row
    token += first_token
    found *= gl.load(scale + row, mask=row < rows, other=0.0)[:, None]
    if BIASED:
        found += gl.load(bias + row, mask=row < rows, other=0.0).to(gl.float32)[:, None]
    place = out + token.to(gl.int64)[None, :] * rows + row[:, None]
    gl.store(place, found.to(inputs.dtype), mask=(row < rows)[:, None] & (token < tokens)[None, :])
