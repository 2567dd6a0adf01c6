"""Copies keys and values of one layer from their slots of the KV cache to where they lie end to end."""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

ROWS = 4  # tokens of one program


def gather(cache: torch.Tensor, layer: int, slots: torch.Tensor) -> torch.Tensor:
    """One launch for both.

    Args:
        cache: [layers, 2, blocks, block_size, kv_heads, head_dim], contiguous.
        slots: [K] int32 block * block_size + offset.

    Returns:
        [2, K, kv_heads, head_dim]: keys, values.
    """
    heads, dim = cache.shape[4:]
    out = cache.new_empty(2, len(slots), heads, dim)
    _gather[(triton.cdiv(len(slots), ROWS), 2)](
        cache,
        slots,
        out,
        len(slots),
        layer,
        *cache.stride()[:2],
        WIDTH=heads * dim,
        PADDED=triton.next_power_of_2(heads * dim),
        ROWS=ROWS,
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=["tokens", "layer"])
def _gather(
    cache, slots, out, tokens, layer, cache_layer, cache_value,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row, at = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, PADDED)
    which = tl.program_id(1)
    slot = tl.load(slots + row, mask=row < tokens, other=0).to(tl.int64)
    ours = (row < tokens)[:, None] & (at < WIDTH)[None, :]
    place = cache + layer.to(tl.int64) * cache_layer + which * cache_value
    found = tl.load(place + slot[:, None] * WIDTH + at[None, :], mask=ours)
    row = row.to(tl.int64) + which.to(tl.int64) * tokens
    tl.store(out + row[:, None] * WIDTH + at[None, :], found, mask=ours)
