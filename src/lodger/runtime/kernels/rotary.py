"""Everything between the projection to queries, keys and values and the attention, in one launch.

Norm of the query and key heads (Qwen3), rotary embedding (arXiv 2104.09864), new keys and values into the cache.
"""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# ruff: noqa: N803

from __future__ import annotations

import torch
import triton
import triton.language as tl

HEADS_AT_ONCE = 8


def angles(positions: torch.Tensor, frequencies: torch.Tensor, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of each token's angles, times `factor`.

    Args:
        positions: [T] of any integers.
        frequencies: float32 [head_dim / 2], radians a position.

    Returns:
        Two of float32 [T, head_dim / 2].
    """
    found = torch.empty(2, len(positions), len(frequencies), dtype=torch.float32, device=positions.device)
    width = len(frequencies)
    _angles[(len(positions),)](
        positions, frequencies, *found, factor, WIDTH=width, PADDED=triton.next_power_of_2(width), num_warps=1
    )
    return found[0], found[1]


@triton.jit(do_not_specialize_on_alignment=["positions"])  # a row of the packed inputs begins anywhere
def _angles(positions, frequencies, cos, sin, factor, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    token, at = tl.program_id(0), tl.arange(0, PADDED)
    angle = tl.load(positions + token).to(tl.float32) * tl.load(frequencies + at, mask=at < WIDTH, other=0.0)
    tl.store(cos + token * WIDTH + at, tl.cos(angle) * factor, mask=at < WIDTH)
    tl.store(sin + token * WIDTH + at, tl.sin(angle) * factor, mask=at < WIDTH)


def rotate_and_store(
    qkv: torch.Tensor,
    heads: int,
    cos: torch.Tensor,
    sin: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    epsilon: float,
    cache: torch.Tensor,
    layer: int,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Queries ready to attend; computed in float32.

    Args:
        qkv: [T, (heads + 2 * kv_heads) * head_dim], contiguous: query heads, key heads, value heads.
        cos, sin: [T, head_dim] or [T, head_dim / 2] of each token's position, rows contiguous. Both halves of a head
            turn by the same angles, so only the first half is read.
        norms: weights of the query and the key norm, [head_dim] each; None where the model has none.
        cache: [layers, 2, blocks, block_size, kv_heads, head_dim].
        slots: [T] block * block_size + offset; nothing is stored at a negative one.

    Returns:
        [T, heads, head_dim].
    """
    tokens, (_, _, _, block_size, kv_heads, dim) = len(qkv), cache.shape
    query = qkv.new_empty(tokens, heads, dim)
    query_weight, key_weight = (qkv, qkv) if norms is None else norms
    _rotate[(tokens, triton.cdiv(heads + 2 * kv_heads, HEADS_AT_ONCE))](
        qkv,
        query_weight,
        key_weight,
        cos,
        sin,
        query,
        cache,
        slots,
        layer,
        epsilon,
        cos.stride(0),
        sin.stride(0),
        *cache.stride()[:4],
        HEADS=heads,
        KV_HEADS=kv_heads,
        BLOCK_SIZE=block_size,
        DIM=dim,
        HALF=triton.next_power_of_2(dim // 2),
        AT_ONCE=HEADS_AT_ONCE,
        NORMED=norms is not None,
        num_warps=4,
    )
    return query


@triton.jit
def turned(place, inside, cos, sin, norm, epsilon, DIM: tl.constexpr, PADDED: tl.constexpr, NORMED: tl.constexpr):
    """Heads of one token at `place` [N, 1], normed and turned by its angles: [N, PADDED] in float32."""
    dim = tl.arange(0, PADDED)
    is_low = dim < DIM // 2
    other = tl.where(is_low, dim + DIM // 2, dim - DIM // 2)
    known = inside & (dim < DIM)[None, :]
    a = tl.load(place + dim[None, :], mask=known, other=0.0).to(tl.float32)
    b = tl.load(place + other[None, :], mask=known, other=0.0).to(tl.float32)
    if NORMED:
        scale = tl.rsqrt(tl.sum(a * a, 1) / DIM + epsilon)[:, None]
        a *= scale * tl.load(norm + dim, mask=dim < DIM, other=0.0).to(tl.float32)[None, :]
        b *= scale * tl.load(norm + other, mask=dim < DIM, other=0.0).to(tl.float32)[None, :]
    angle = tl.where(is_low, dim, other)
    c = tl.load(cos + angle, mask=dim < DIM, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=dim < DIM, other=0.0).to(tl.float32)
    return a * c[None, :] + b * tl.where(is_low, -s, s)[None, :]


@triton.jit(do_not_specialize=["layer"])
def _rotate(
    qkv, query_weight, key_weight, cos, sin, query, cache, slots, layer, epsilon, cos_token, sin_token, cache_layer,
    cache_value, cache_block, cache_slot, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    DIM: tl.constexpr, HALF: tl.constexpr, AT_ONCE: tl.constexpr, NORMED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE))[:, None]
    low = tl.arange(0, HALF)
    inside = low < DIM // 2
    high = (low + DIM // 2)[None, :]
    low = low[None, :]
    is_query, is_key = head < HEADS, (head >= HEADS) & (head < HEADS + KV_HEADS)
    ours = (head < HEADS + 2 * KV_HEADS) & inside[None, :]

    place = qkv + token * (HEADS + 2 * KV_HEADS) * DIM + head * DIM
    a = tl.load(place + low, mask=ours, other=0.0).to(tl.float32)
    b = tl.load(place + high, mask=ours, other=0.0).to(tl.float32)
    turns = is_query | is_key
    if NORMED:
        scale = tl.rsqrt(tl.sum(a * a + b * b, 1) / DIM + epsilon)[:, None]
        at_query, at_key = is_query & inside[None, :], is_key & inside[None, :]
        one_a = tl.load(query_weight + low + head * 0, mask=at_query, other=0.0)
        one_b = tl.load(query_weight + high + head * 0, mask=at_query, other=0.0)
        two_a = tl.load(key_weight + low + head * 0, mask=at_key, other=0.0)
        two_b = tl.load(key_weight + high + head * 0, mask=at_key, other=0.0)
        a = tl.where(turns, a * scale * (one_a + two_a).to(tl.float32), a)
        b = tl.where(turns, b * scale * (one_b + two_b).to(tl.float32), b)
    c = tl.load(cos + token * cos_token + low, mask=inside[None, :], other=0.0).to(tl.float32)
    s = tl.load(sin + token * sin_token + low, mask=inside[None, :], other=0.0).to(tl.float32)
    turned_a = tl.where(turns, a * c - b * s, a).to(query.dtype.element_ty)
    turned_b = tl.where(turns, b * c + a * s, b).to(query.dtype.element_ty)

    place = query + (token * HEADS + head) * DIM
    tl.store(place + low, turned_a, mask=is_query & ours)
    tl.store(place + high, turned_b, mask=is_query & ours)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        place = cache + layer.to(tl.int64) * cache_layer + slot // BLOCK_SIZE * cache_block
        place += slot % BLOCK_SIZE * cache_slot
        place += tl.where(is_key, head - HEADS, head - HEADS - KV_HEADS) * DIM + tl.where(is_key, 0, 1) * cache_value
        tl.store(place + low, turned_a, mask=(head >= HEADS) & ours)
        tl.store(place + high, turned_b, mask=(head >= HEADS) & ours)
