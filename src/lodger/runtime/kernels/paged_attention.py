"""Attention over a paged KV cache: one new token of many sequences, or chunks of them after any past.

One program serves a tile: some tokens of one sequence and all query heads that share one key head, as the rows of one
matrix, so that every key is read once for all of them (grouped queries, arXiv 2305.13245). It sweeps the keys with an
online softmax (FlashAttention, arXiv 2205.14135). Where there are too few tiles to fill the card, several programs
share the keys of a tile (Flash-Decoding); the last to finish merges what all of them found, always in the same order.
"""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from lodger.runtime.kernels.arrivals import counters
from lodger.runtime.kernels.rotary import turned
from lodger.runtime.kernels.tiling import MOST_SPLITS, Shape

LOG2_E = 1.4426950408889634


class Turn(NamedTuple):
    """What still has to happen to heads that come as their product left them, one token a tile."""

    cos: torch.Tensor  # float32 [T, head_dim] or half of it, of each token's position
    sin: torch.Tensor
    norms: tuple[torch.Tensor, torch.Tensor] | None  # of queries and keys
    epsilon: float
    slots: torch.Tensor  # [T]: where the new keys and values go


class Tiles(NamedTuple):
    """What one launch works on."""

    records: torch.Tensor  # [tiles, 4] int32: first token in the packed row, tokens, position of the first, sequence
    table: torch.Tensor  # [sequences, blocks] int32: block of each block_size tokens
    shape: Shape
    splits: int  # programs that share the keys of one tile


def attend(
    query: torch.Tensor,
    cache: torch.Tensor,
    layer: int,
    tiles: Tiles,
    out: torch.Tensor,
    scale: float,
    window: int | None,
    turn: Turn | None = None,
) -> None:
    """Causal attention of the tokens that `tiles` names; a tile without tokens writes nothing.

    Args:
        query: [T, heads, head_dim], the last dimension contiguous; with `turn` [T, heads + 2 * kv_heads, head_dim], the
            new keys and values after them, which go into the cache then.
        cache: [layers, 2, blocks, block_size, kv_heads, head_dim]; the new tokens' keys and values are in it already.
        out: [T, heads, head_dim], contiguous; only the rows of the tiles' tokens are written.
        scale: factor on the scores.
        window: keys that a query sees, counting its own; None is all.
    """
    (heads, dim), kv_heads = out.shape[1:], cache.shape[4]
    given = turn or Turn(query, query, None, 0.0, query)
    shape, splits = tiles.shape, tiles.splits
    programs = (kv_heads, len(tiles.records), splits)  # neighbours read neighbouring keys
    parts, sums = (out, out) if splits == 1 else _workspace(programs, shape.rows, dim, query.device)
    _attend[programs](
        query,
        cache,
        out,
        parts,
        sums,
        out if splits == 1 else counters(query.device),
        tiles.records,
        tiles.table,
        *given[:2],
        *(given.norms or (query, query)),
        given.slots,
        layer,
        window or 0,
        scale * LOG2_E,
        given.epsilon,
        *query.stride()[:2],
        *(angles.stride(0) for angles in given[:2]),
        *cache.stride()[:5],
        tiles.table.stride(0),
        HEADS=heads,
        GROUP=heads // kv_heads,
        DIM=dim,
        PADDED=max(16, triton.next_power_of_2(dim)),
        BLOCK_SIZE=cache.shape[3],
        ROWS=shape.rows,
        KEYS=shape.keys,
        LEAST=shape.least,
        SPLITS=1 if splits == 1 else 8 if splits <= 8 else MOST_SPLITS,
        WINDOWED=window is not None,
        TURNED=turn is not None,
        NORMED=given.norms is not None,
        num_warps=shape.warps,
        num_stages=shape.stages,
    )


def _workspace(
    programs: tuple[int, int, int], rows: int, dim: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each program found [programs, rows, dim] and the logarithm of its softmax's sum [programs, rows]."""
    parts = torch.empty((*programs, rows, dim), dtype=torch.float32, device=device)
    return parts, torch.empty((*programs, rows), dtype=torch.float32, device=device)


@triton.jit
def _keys_of(first, count, window, splits, KEYS: tl.constexpr, LEAST: tl.constexpr, WINDOWED: tl.constexpr):
    """The keys [begin, end) that a tile sees, and how many of them each of `splits` programs takes."""
    end = first + count
    begin = first * 0
    if WINDOWED:
        begin = tl.maximum(0, first - window + 1) // KEYS * KEYS
    share = tl.cdiv(tl.cdiv(end - begin, KEYS), splits) * KEYS
    return begin, end, tl.maximum(share, LEAST)


@triton.jit
def _sweep(
    start, end, query, highest, total, found, keys, values, table, position, window, scale, cache_block, cache_slot,
    BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
    WINDOWED: tl.constexpr,
):  # fmt: skip
    """Keys [start, end), KEYS at a time. MASKED: some of them lie after a query, before its window, or past `end`."""
    dim = tl.arange(0, PADDED)
    for at in range(start, end, KEYS):
        j = at + tl.arange(0, KEYS)
        if MASKED:
            block = tl.load(table + j // BLOCK_SIZE, mask=j < end, other=0).to(tl.int64)
        else:
            block = tl.load(table + j // BLOCK_SIZE).to(tl.int64)
        slot = block * cache_block + j % BLOCK_SIZE * cache_slot
        if MASKED:
            known = (dim < DIM)[None, :] & (j < end)[:, None]
            key = tl.load(keys + slot[None, :] + dim[:, None], mask=tl.trans(known), other=0.0)
            value = tl.load(values + slot[:, None] + dim[None, :], mask=known, other=0.0)
        elif DIM < PADDED:
            key = tl.load(keys + slot[None, :] + dim[:, None], mask=(dim < DIM)[:, None], other=0.0)
            value = tl.load(values + slot[:, None] + dim[None, :], mask=(dim < DIM)[None, :], other=0.0)
        else:
            key = tl.load(keys + slot[None, :] + dim[:, None])
            value = tl.load(values + slot[:, None] + dim[None, :])
        score = tl.dot(query, key, input_precision="ieee") * scale
        if MASKED:
            seen = j[None, :] <= position[:, None]
            if WINDOWED:
                seen = seen & (j[None, :] > position[:, None] - window)
            score = tl.where(seen, score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))  # finite from the start, so that no -inf - -inf can arise
        chance = tl.exp2(score - higher[:, None])
        fade = tl.exp2(highest - higher)
        total = total * fade + tl.sum(chance, 1)
        found = tl.dot(chance.to(value.dtype), value, found * fade[:, None], input_precision="ieee")
        highest = higher
    return highest, total, found


@triton.jit(do_not_specialize=["layer", "window", "table_sequence"])
def _attend(
    query, cache, out, parts, sums, arrived, records, table, cos, sin, query_norm, key_norm, slots, layer, window,
    scale, epsilon, query_token, query_head, cos_token, sin_token, cache_layer, cache_value, cache_block, cache_slot,
    cache_head, table_sequence, HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, LEAST: tl.constexpr, SPLITS: tl.constexpr,
    WINDOWED: tl.constexpr, TURNED: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    kv_head, tile, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(2)
    token, count, first, sequence = _record(records + tile * 4)
    begin, end, share = _keys_of(first, count, window, splits, KEYS, LEAST, WINDOWED)
    start = begin + split * share
    if (count == 0) | (start >= end):
        return
    sharing = tl.cdiv(end - begin, share)

    row = tl.arange(0, ROWS)
    dim = tl.arange(0, PADDED)
    own = row // GROUP < count
    head = kv_head * GROUP + row % GROUP
    at = (token + row // GROUP).to(tl.int64)
    stored = own[:, None] & (dim < DIM)[None, :]
    place = query + (at * query_token + head * query_head)[:, None]
    keys = cache + layer.to(tl.int64) * cache_layer + kv_head * cache_head
    values = keys + cache_value
    if TURNED:
        cos += token * cos_token
        sin += token * sin_token
        q = turned(place, own[:, None], cos, sin, query_norm, epsilon, DIM, PADDED, NORMED).to(cache.dtype.element_ty)
        if start + share >= end:  # the newest key is this program's
            new = query + token.to(tl.int64) * query_token + (HEADS + kv_head) * query_head
            slot = tl.load(slots + token).to(tl.int64)
            slot = slot // BLOCK_SIZE * cache_block + slot % BLOCK_SIZE * cache_slot
            _store_newest(
                new, HEADS // GROUP * query_head, keys + slot, values + slot, cos, sin, key_norm, epsilon, DIM, PADDED,
                NORMED,
            )  # fmt: skip
    else:
        q = tl.load(place + dim[None, :], mask=stored, other=0.0)
    highest, total, found = _swept(
        start, tl.minimum(end, start + share), first, first + row // GROUP, window, q, keys, values,
        table + sequence.to(tl.int64) * table_sequence, scale, cache_block, cache_slot, BLOCK_SIZE, DIM, PADDED, ROWS,
        KEYS, WINDOWED,
    )  # fmt: skip
    if SPLITS > 1:
        group = tile * tl.num_programs(0) + kv_head
        parts += group.to(tl.int64) * splits * (ROWS * DIM)
        sums += group * splits * ROWS
        tl.store(parts + (split * ROWS + row)[:, None] * DIM + dim[None, :], found, mask=stored)
        tl.store(sums + split * ROWS + row, tl.where(total > 0, highest + tl.log2(total), float("-inf")), mask=own)
        tl.debug_barrier()  # every thread has stored what it found before one says so
        if tl.atomic_add(arrived + group, 1, sem="acq_rel") != sharing - 1:
            return
        tl.store(arrived + group, 0)
        found = _merged(parts, sums, sharing, own, DIM, PADDED, ROWS, SPLITS)
    tl.store(out + (at * HEADS + head)[:, None] * DIM + dim[None, :], found.to(out.dtype.element_ty), mask=stored)


@triton.jit
def _record(place):
    return tl.load(place), tl.load(place + 1), tl.load(place + 2), tl.load(place + 3)


@triton.jit
def _store_newest(
    new, to_value, key_slot, value_slot, cos, sin, norm, epsilon, DIM: tl.constexpr, PADDED: tl.constexpr,
    NORMED: tl.constexpr,
):  # fmt: skip
    """The key head at `new`, normed and turned, and its value head go into their slots. The whole program sees them."""
    one = tl.arange(0, 1)[:, None]
    place = one * 0 + tl.arange(0, PADDED)[None, :]
    known = place < DIM
    key = turned(new + one, one == 0, cos, sin, norm, epsilon, DIM, PADDED, NORMED)
    tl.store(key_slot + place, key.to(key_slot.dtype.element_ty), mask=known)
    tl.store(value_slot + place, tl.load(new + to_value + place, mask=known), mask=known)
    tl.debug_barrier()


@triton.jit
def _swept(
    start, end, first, position, window, query, keys, values, table, scale, cache_block, cache_slot,
    BLOCK_SIZE: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    WINDOWED: tl.constexpr,
):  # fmt: skip
    """Of keys [start, end): each row's highest score, the sum of its chances, and what it found."""
    highest = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, PADDED], tl.float32)
    middle = start
    if not WINDOWED:  # keys that every row of the tile sees need no mask
        middle = start + tl.maximum(tl.minimum(end, first + 1) - start, 0) // KEYS * KEYS
        highest, total, found = _sweep(
            start, middle, query, highest, total, found, keys, values, table, position, window, scale,
            cache_block, cache_slot, BLOCK_SIZE, DIM, PADDED, KEYS, False, False,
        )  # fmt: skip
    highest, total, found = _sweep(
        middle, end, query, highest, total, found, keys, values, table, position, window, scale,
        cache_block, cache_slot, BLOCK_SIZE, DIM, PADDED, KEYS, True, WINDOWED,
    )  # fmt: skip
    some = tl.where(total > 0, total, 1.0)  # a row may see none of one program's keys
    return highest, total, found / some[:, None]


@triton.jit
def _merged(
    parts, sums, sharing, own, DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, SPLITS: tl.constexpr
):
    """[ROWS, PADDED]: what `sharing` programs found of a tile, each weighed by its share of the softmax's sum."""
    row, dim, split = tl.arange(0, ROWS), tl.arange(0, PADDED), tl.arange(0, SPLITS)
    stored = own[:, None] & (dim < DIM)[None, :]
    ran = (split < sharing)[:, None] & own[None, :]
    weight = tl.load(sums + split[:, None] * ROWS + row[None, :], mask=ran, other=float("-inf"), cache_modifier=".cg")
    highest = tl.where(own, tl.max(weight, 0), 0.0)
    whole = tl.where(own, tl.sum(tl.exp2(weight - highest[None, :]), 0), 1.0)
    found = tl.zeros([ROWS, PADDED], tl.float32)
    for other in tl.range(0, sharing, loop_unroll_factor=4):
        one = tl.load(sums + other * ROWS + row, mask=own, other=float("-inf"), cache_modifier=".cg")
        place = parts + (other * ROWS + row)[:, None] * DIM + dim[None, :]
        part = tl.load(place, mask=stored, other=0.0, cache_modifier=".cg")
        found += part * tl.exp2(one - highest)[:, None]
    return found / whole[:, None]
