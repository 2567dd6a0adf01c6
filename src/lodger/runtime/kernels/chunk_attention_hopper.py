"""Causal attention of many new tokens on Hopper, over keys and values that lie end to end (as FlashAttention 3 does).

One program serves some tokens of one sequence and all query heads that share one key head, as the rows of one matrix.
Its tensor cores multiply queries with the next keys, and the last probabilities with their values, while its threads
make probabilities of the scores before (arXiv 2407.08608, section 3.2). Triton's compiler waits for each product
instead, so this is written in Gluon; see `w8a16_hopper`.
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

copy = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
barrier = getattr(gl, "barrier", None) or gl.thread_barrier

LOG2_E = 1.4426950408889634
ROWS, KEYS, DIM = 128, 128, 128
WARPS = 8
_SHARED = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, records: torch.Tensor, out: torch.Tensor, scale: float
) -> None:
    """
    Args:
        query: [T, heads, DIM], the last dimension contiguous; heads is a power of two times kv_heads.
        key, value: [K, kv_heads, DIM], contiguous.
        records: [tiles, 4] int32: first token in the packed row, tokens (at most ROWS / (heads / kv_heads)), position
            of the first, row of the sequence's first key.
        out: [T, heads, DIM], contiguous; only the rows of the tiles' tokens are written.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    _attend[(kv_heads, len(records))](
        query,
        TensorDescriptor.from_tensor(key.view(len(key), -1), [KEYS, DIM], _SHARED),
        TensorDescriptor.from_tensor(value.view(len(value), -1), [KEYS, DIM], _SHARED),
        out,
        records,
        scale * LOG2_E,
        *query.stride()[:2],
        HEADS=heads,
        GROUP=heads // kv_heads,
        ROWS=ROWS,
        num_warps=WARPS,
    )


@gluon.jit
def _barriers():
    """Two, by which copies say that they have come."""
    ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(2):
        mbarrier.init(ready.index(i), count=1)
    fence_async_shared()
    barrier()
    return ready


@gluon.jit
def _ask(keys, values, row, column, ready, k, v):
    """The values of KEYS rows of one head are to come, and the keys of as many before them. Behind the first block
    nobody needs these; rows beyond either end of the tensor are zeros."""
    mbarrier.expect(ready, 2 * keys.block_type.nbytes)
    copy(keys, [row - keys.block_shape[0], column], ready, k)
    copy(values, [row, column], ready, v)


@gluon.jit
def _rows(record, kv_head, GROUP: gl.constexpr, ROWS: gl.constexpr, DIM: gl.constexpr, layout: gl.constexpr):
    """Of each row of a tile its token and its query head, the numbers of a head, and whether the row is one."""
    row = gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    dim = gl.arange(0, DIM, gl.SliceLayout(0, layout))
    token = gl.load(record) + row // GROUP
    own = (row // GROUP < gl.load(record + 1))[:, None]
    return token.to(gl.int64), kv_head * GROUP + row % GROUP, dim[None, :], own


@gluon.jit
def _probabilities(score, highest, total, position, first_key, scale, masked, KEYS: gl.constexpr, summed: gl.constexpr):
    """Of one block of keys: what is to be multiplied with their values, and the factor on what was found before."""
    if masked:
        key = gl.arange(0, KEYS, gl.SliceLayout(0, summed))
        score = gl.where(key[None, :] <= (position - first_key)[:, None], score, float("-inf"))
    higher = gl.maximum(highest, gl.max(score, 1) * scale)
    chance = gl.exp2(score * scale - higher[:, None])
    fade = gl.exp2(highest - higher)
    return chance, higher, total * fade + gl.sum(chance, 1), fade


@gluon.jit
def _found(
    query, keys, values, record, kv_head, scale, query_token, query_head,
    GROUP: gl.constexpr, ROWS: gl.constexpr, packed: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    """[ROWS, DIM] of one tile. From the last block of keys to the first, so that what needs a mask comes first."""
    KEYS: gl.constexpr = keys.block_shape[0]
    DIM: gl.constexpr = keys.block_shape[1]
    HALF: gl.constexpr = keys.dtype
    summed: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[num_warps, 1], instr_shape=[16, KEYS, 16]
    )
    left: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=summed, k_width=2)
    first = gl.load(record + 2)
    blocks = gl.cdiv(first + gl.load(record + 1), KEYS)
    column, last = kv_head * DIM, gl.load(record + 3) + (blocks - 1) * KEYS
    q = gl.allocate_shared_memory(HALF, [ROWS, DIM], keys.layout)
    ks = gl.allocate_shared_memory(HALF, [2, KEYS, DIM], keys.layout)
    vs = gl.allocate_shared_memory(HALF, [2, KEYS, DIM], keys.layout)
    ready = _barriers()
    mbarrier.expect(ready.index(0), keys.block_type.nbytes)
    copy(keys, [last, column], ready.index(0), ks.index(0))
    _ask(keys, values, last, column, ready.index(1), ks.index(1), vs.index(0))
    at, head, dim, own = _rows(record, kv_head, GROUP, ROWS, DIM, packed)
    q.store(gl.load(query + (at * query_token + head * query_head)[:, None] + dim, mask=own, other=0.0))
    fence_async_shared()
    barrier()

    position = first + gl.arange(0, ROWS, gl.SliceLayout(1, summed)) // GROUP
    highest = gl.full([ROWS], -1e30, gl.float32, gl.SliceLayout(1, summed))
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, summed))
    found = gl.zeros([ROWS, DIM], gl.float32, summed)
    none = gl.zeros([ROWS, KEYS], gl.float32, summed)
    mbarrier.wait(ready.index(0), 0)
    score = warpgroup_mma(q, ks.index(0).permute((1, 0)), none, use_acc=False, is_async=True)
    score = warpgroup_mma_wait(0, deps=[score])
    key = (blocks - 1) * KEYS
    chance, highest, total, fade = _probabilities(score, highest, total, position, key, scale, True, KEYS, summed)
    p = gl.convert_layout(chance.to(HALF), left)
    for i in range(1, blocks):
        now, later = i % 2, (i + 1) % 2
        barrier()  # every warp's products with what lay there have ended
        _ask(keys, values, last - i * KEYS, column, ready.index(later), ks.index(later), vs.index(now))
        mbarrier.wait(ready.index(now), (i // 2) & 1)
        running = warpgroup_mma(q, ks.index(now).permute((1, 0)), none, use_acc=False, is_async=True)
        adding = warpgroup_mma(p, vs.index(later), found, is_async=True)
        score = warpgroup_mma_wait(1, deps=[running])
        masked = key > first + 1
        key -= KEYS
        chance, highest, total, fade = _probabilities(score, highest, total, position, key, scale, masked, KEYS, summed)
        following = gl.convert_layout(chance.to(HALF), left)
        found, p = warpgroup_mma_wait(0, deps=[adding, p])
        found = found * fade[:, None]
        p = following
    mbarrier.wait(ready.index(blocks % 2), (blocks // 2) & 1)
    adding = warpgroup_mma(p, vs.index((blocks - 1) % 2), found, is_async=True)
    found, p = warpgroup_mma_wait(0, deps=[adding, p])
    for i in gl.static_range(2):
        mbarrier.invalidate(ready.index(i))
    return found / total[:, None]


@gluon.jit(do_not_specialize=["scale"])
def _attend(
    query, keys, values, out, records, scale, query_token, query_head,
    HEADS: gl.constexpr, GROUP: gl.constexpr, ROWS: gl.constexpr, num_warps: gl.constexpr,
):  # fmt: skip
    DIM: gl.constexpr = keys.block_shape[1]
    packed: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [num_warps, 1], [1, 0])
    kv_head, record = gl.program_id(0), records + gl.program_id(1) * 4
    found = _found(query, keys, values, record, kv_head, scale, query_token, query_head, GROUP, ROWS, packed, num_warps)
    at, head, dim, own = _rows(record, kv_head, GROUP, ROWS, DIM, packed)  # not kept in registers till now
    place = out + ((at * HEADS + head) * DIM)[:, None] + dim
    gl.store(place, gl.convert_layout(found.to(keys.dtype), packed), mask=own)
