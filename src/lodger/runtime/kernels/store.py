"""Writes the keys and values of new tokens into their slots of the KV cache."""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl


def store(cache: torch.Tensor, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """One launch for both.

    Args:
        cache: [layers, 2, blocks, block_size, kv_heads, head_dim].
        slots: [T] block * block_size + offset; a negative one stores nothing, as the padding of a captured step needs.
        key, value: [T, kv_heads, head_dim], the last dimension contiguous.
    """
    tokens, heads, dim = key.shape
    _store[(tokens,)](
        key,
        value,
        cache,
        slots,
        layer,
        *key.stride()[:2],
        *value.stride()[:2],
        *cache.stride()[:4],
        BLOCK_SIZE=cache.shape[3],
        DIM=dim,
        WIDTH=heads * dim,
        PADDED=triton.next_power_of_2(heads * dim),
        num_warps=4,
    )


@triton.jit(do_not_specialize=["layer"])
def _store(
    key,
    value,
    cache,
    slots,
    layer,
    key_token,
    key_head,
    value_token,
    value_head,
    cache_layer,
    cache_value,
    cache_block,
    cache_slot,
    BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token).to(tl.int64)
    if slot < 0:
        return
    at = tl.arange(0, PADDED)
    head, dim = at // DIM, at % DIM
    place = cache + layer.to(tl.int64) * cache_layer + slot // BLOCK_SIZE * cache_block + slot % BLOCK_SIZE * cache_slot
    k = tl.load(key + token * key_token + head * key_head + dim, mask=at < WIDTH)
    v = tl.load(value + token * value_token + head * value_head + dim, mask=at < WIDTH)
    tl.store(place + at, k, mask=at < WIDTH)
    tl.store(place + cache_value + at, v, mask=at < WIDTH)
