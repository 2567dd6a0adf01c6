"""The kernels around the products of a decoder layer equal their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from attention_cases import LAYER, LAYERS, TOLERANCE, far
from torch.nn.functional import silu

from lodger.runtime.attention.paged import DecodePlan
from lodger.runtime.kernels.norm import rms_norm
from lodger.runtime.kernels.paged_attention import Turn
from lodger.runtime.kernels.rotary import angles, rotate_and_store
from lodger.runtime.kernels.swiglu import swiglu

Where = tuple[torch.device, torch.dtype]
EPSILON = 1e-6


def random(where: Where, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=where[0]).to(where[1])


def norm_of(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * (x.pow(2).mean(-1, keepdim=True) + EPSILON).rsqrt() * weight.double()


@pytest.mark.parametrize("width", [64, 96, 2560])
@pytest.mark.parametrize("tokens", [1, 5])
def test_norm(tokens: int, width: int, where: Where) -> None:
    x, weight = random(where, tokens, width), random(where, width)
    assert far(rms_norm(x, weight, EPSILON), norm_of(x, weight)) < TOLERANCE[where[1]]


@pytest.mark.parametrize("width", [96, 2560])
def test_norm_adds_to_the_residual_stream_first(width: int, where: Where) -> None:
    x, residual, weight = random(where, 5, width), random(where, 5, width), random(where, width)
    added = x + residual
    found = rms_norm(x, weight, EPSILON, residual)
    assert torch.equal(residual, added)
    assert far(found, norm_of(added, weight)) < TOLERANCE[where[1]]


def test_norm_of_zeros_is_zero(where: Where) -> None:
    assert not rms_norm(random(where, 2, 96) * 0, random(where, 96), EPSILON).any()


@pytest.mark.parametrize("width", [70, 1024, 3000])
def test_swiglu(width: int, where: Where) -> None:
    gate_up = random(where, 3, 2 * width) * 4
    gate, up = gate_up.double().chunk(2, dim=1)
    assert far(swiglu(gate_up), silu(gate) * up) < TOLERANCE[where[1]]


def test_angles_of_far_positions(where: Where) -> None:
    positions = torch.tensor([0, 1, 319, 40_959, 131_071], device=where[0])
    frequencies = 1 / 1e6 ** (torch.arange(0, 72, 2, device=where[0]) / 72)
    cos, sin = angles(positions, frequencies, 1.5)
    turn = positions[:, None].float() * frequencies
    assert torch.allclose(cos, turn.cos() * 1.5, atol=1e-6)
    assert torch.allclose(sin, turn.sin() * 1.5, atol=1e-6)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x cos + rotate_half(x) sin, of [T, heads, head_dim]."""
    low, high = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-high, low), dim=-1) * sin[:, None]


@pytest.mark.parametrize("normed", [True, False], ids=["normed", "plain"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 64), (14, 2, 64), (3, 3, 80), (32, 8, 128), (8, 1, 256)])
def test_queries_are_normed_and_turned_and_keys_and_values_stored(
    heads: int, kv_heads: int, dim: int, normed: bool, where: Where
) -> None:
    tokens, size = 5, 8
    qkv = random(where, tokens, (heads + 2 * kv_heads) * dim)
    angles = torch.rand(tokens, dim // 2, device=where[0]).mul_(6).repeat(1, 2)
    weights = (random(where, dim), random(where, dim)) if normed else None
    cache = random(where, LAYERS, 2, 9, size, kv_heads, dim)
    slots = torch.tensor([9, 3, -1, 60, 0], device=where[0])
    expected = cache.clone()

    found = rotate_and_store(qkv, heads, angles.cos(), angles.sin(), weights, EPSILON, cache, LAYER, slots)

    query, key, value = qkv.view(tokens, -1, dim).split((heads, kv_heads, kv_heads), dim=1)
    if weights:
        query, key = norm_of(query, weights[0]), norm_of(key, weights[1])
    turn = (angles.double().cos(), angles.double().sin())
    assert far(found, rotated(query.double(), *turn)) < TOLERANCE[where[1]]
    kept = slots >= 0
    stored = cache.flatten(2, 3)[LAYER][:, slots[kept]]
    assert far(stored[0], rotated(key.double(), *turn)[kept]) < TOLERANCE[where[1]]
    assert torch.equal(stored[1], value[kept])
    expected.flatten(2, 3)[LAYER][:, slots[kept]] = stored
    assert torch.equal(cache, expected), "no other slot changed"


def test_half_a_table_of_angles_is_enough(where: Where) -> None:
    qkv, cache = random(where, 2, 4 * 64), random(where, LAYERS, 2, 2, 8, 1, 64)
    angles = torch.rand(2, 32, device=where[0]).repeat(1, 2)
    slots = torch.tensor([0, 9], device=where[0])
    whole = rotate_and_store(qkv, 2, angles.cos(), angles.sin(), None, EPSILON, cache, LAYER, slots)
    half = angles[:, :32].contiguous()
    assert torch.equal(rotate_and_store(qkv, 2, half.cos(), half.sin(), None, EPSILON, cache, LAYER, slots), whole)


@pytest.mark.parametrize("processors", [1, 64], ids=["alone", "split"])
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 64), (3, 3, 80), (8, 1, 256)])
def test_heads_turned_where_they_attend(
    heads: int, kv_heads: int, dim: int, window: int | None, processors: int, where: Where
) -> None:
    """As by two launches; the last of the rows stands for nobody."""
    size, past = 16, torch.tensor([0, 140, 47, 5], dtype=torch.int32, device=where[0])
    caches = [random(where, LAYERS, 2, 4 * 10, size, kv_heads, dim)]
    caches.append(caches[0].clone())
    table = torch.randperm(4 * 10, device=where[0]).to(torch.int32).view(4, 10)
    own = torch.arange(4, dtype=torch.int32, device=where[0])
    slots = table[own.long(), past.long() // size] * size + past % size
    slots[3] = -1
    records = torch.stack([own, (slots >= 0).int(), past, own], dim=1).contiguous()
    qkv = random(where, 4, (heads + 2 * kv_heads) * dim)
    weights = (random(where, dim), random(where, dim)) if dim > 64 else None
    cos, sin = angles(past, 1 / 1e6 ** (torch.arange(0, dim, 2, device=where[0]) / dim), 1.0)
    plans = [DecodePlan(cache, slots, records, table, heads, processors) for cache in caches]

    turned = Turn(cos, sin, weights, EPSILON, slots)
    found = plans[0].attend_new(LAYER, qkv.view(4, -1, dim), dim**-0.5, window, turned)

    query = rotate_and_store(qkv, heads, cos, sin, weights, EPSILON, caches[1], LAYER, slots)
    expected = plans[1].attend_stored(LAYER, query, dim**-0.5, window)
    assert far(found[:3], expected[:3]) < TOLERANCE[where[1]]
    assert far(caches[0], caches[1]) < TOLERANCE[where[1]]
