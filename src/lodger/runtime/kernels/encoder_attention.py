"""Attention of whole texts that lie in one row, every token to every other of its text.

One program serves a tile, some neighbouring tokens of one text and one head, and sweeps the text's keys with an online
softmax (FlashAttention, arXiv 2205.14135). It reads queries, keys and values where the product left them. Which tiles
there are is a table on the device: a captured launch serves any texts that need no more tiles than it has.
"""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lodger.runtime.kernels.tiling import TEXT_ROWS

LOG2_E = 1.4426950408889634
_KEYS = 64  # read at a time


def attend_texts(qkv: torch.Tensor, head_dim: int, tiles: torch.Tensor, scale: float) -> torch.Tensor:
    """
    Args:
        qkv: [T, 3 * heads * head_dim], contiguous: query heads, key heads, value heads.
        tiles: [tiles, 4] int32: first token, token after the last of its text, first token of its text; 0s are none.
        scale: factor on the scores, above 0.

    Returns:
        [T, heads * head_dim]; rows that no tile has are whatever they were.
    """
    width = qkv.shape[1] // 3
    out = qkv.new_empty(len(qkv), width)
    _attend[(width // head_dim, len(tiles))](
        qkv,
        out,
        tiles,
        scale * LOG2_E,
        WIDTH=width,
        DIM=head_dim,
        PADDED=max(16, triton.next_power_of_2(head_dim)),
        ROWS=TEXT_ROWS,
        KEYS=_KEYS,
        num_warps=4,
        num_stages=3,
    )
    return out


@triton.jit
def _sweep(
    start, stop, end, query, highest, total, found, keys, values, scale, WIDTH: tl.constexpr, DIM: tl.constexpr,
    PADDED: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Keys [start, stop), KEYS at a time. MASKED: some of them lie at or past `end`."""
    dim = tl.arange(0, PADDED)
    for at in range(start, stop, KEYS):
        j = at + tl.arange(0, KEYS)
        place = j.to(tl.int64) * (3 * WIDTH)
        if MASKED:
            known = (j < end)[:, None] & (dim < DIM)[None, :]
            key = tl.load(keys + place[None, :] + dim[:, None], mask=tl.trans(known), other=0.0)
            value = tl.load(values + place[:, None] + dim[None, :], mask=known, other=0.0)
        elif DIM < PADDED:
            key = tl.load(keys + place[None, :] + dim[:, None], mask=(dim < DIM)[:, None], other=0.0)
            value = tl.load(values + place[:, None] + dim[None, :], mask=(dim < DIM)[None, :], other=0.0)
        else:
            key = tl.load(keys + place[None, :] + dim[:, None])
            value = tl.load(values + place[:, None] + dim[None, :])
        score = tl.dot(query, key, input_precision="ieee")
        if MASKED:
            score = tl.where((j < end)[None, :], score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1) * scale)  # finite from the start: no -inf - -inf can arise
        chance = tl.exp2(score * scale - higher[:, None])  # one operation, which scaling before would not be
        fade = tl.exp2(highest - higher)
        total = total * fade + tl.sum(chance, 1)
        found = tl.dot(chance.to(value.dtype), value, found * fade[:, None], input_precision="ieee")
        highest = higher
    return highest, total, found


@triton.jit
def _attend(
    qkv, out, tiles, scale, WIDTH: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    head, tile = tl.program_id(0), tl.program_id(1)
    first = tl.load(tiles + tile * 4)
    end = tl.load(tiles + tile * 4 + 1)
    start = tl.load(tiles + tile * 4 + 2)
    if first >= end:
        return
    row = first + tl.arange(0, ROWS)
    dim = tl.arange(0, PADDED)
    own = (row < end)[:, None] & (dim < DIM)[None, :]
    place = row.to(tl.int64)[:, None]
    queries = qkv + head * DIM
    query = tl.load(queries + place * (3 * WIDTH) + dim[None, :], mask=own, other=0.0)
    keys, values = queries + WIDTH, queries + 2 * WIDTH

    highest = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    found = tl.zeros([ROWS, PADDED], tl.float32)
    middle = start + (end - start) // KEYS * KEYS
    highest, total, found = _sweep(
        start, middle, end, query, highest, total, found, keys, values, scale, WIDTH, DIM, PADDED, KEYS, False
    )
    highest, total, found = _sweep(
        middle, end, end, query, highest, total, found, keys, values, scale, WIDTH, DIM, PADDED, KEYS, True
    )
    found = found / total[:, None]
    tl.store(out + place * WIDTH + head * DIM + dim[None, :], found.to(out.dtype.element_ty), mask=own)
