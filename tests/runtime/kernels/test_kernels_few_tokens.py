"""Products of few tokens equal those of the same numbers in float64, with whatever is computed beside them."""

from __future__ import annotations

import pytest
import torch
from attention_cases import TOLERANCE, far
from torch.nn.functional import silu

from lodger.runtime.kernels import few_tokens, one_token
from lodger.runtime.kernels.few_tokens_tiling import tile_for
from lodger.runtime.kernels.one_token import Matrix, Share

Where = tuple[torch.device, torch.dtype]
EPSILON = 1e-6


def random(where: Where, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=where[0]).to(where[1])


def matrix(where: Where, rows: int, columns: int, *, int8: bool, biased: bool) -> Matrix:
    bias = random(where, rows) if biased else None
    if int8:  # every value of a byte
        values = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, device=where[0])
        return Matrix(values, torch.rand(rows, device=where[0]) / 50 / columns**0.5, bias)
    return Matrix(random(where, rows, columns) / columns**0.5, None, bias)


def exact(x: torch.Tensor, matrix: Matrix, *, gated: bool) -> torch.Tensor:
    weight = matrix.values.double()
    if matrix.scale is not None:
        weight = weight * matrix.scale.double()[:, None]
    found = x.double() @ weight.T
    if matrix.bias is not None:
        found += matrix.bias.double()
    if gated:
        gate, up = found.chunk(2, dim=1)
        return silu(gate) * up
    return found


def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x * (x.pow(2).mean(-1, keepdim=True) + EPSILON).rsqrt() * weight.double()


@pytest.mark.parametrize("int8", [True, False], ids=["int8", "dense"])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "whole"])
@pytest.mark.parametrize(("rows", "columns"), [(10, 1024), (6, 700)])
def test_one_token(rows: int, columns: int, gated: bool, biased: bool, int8: bool, where: Where) -> None:
    own = matrix(where, rows, columns, int8=int8, biased=biased)
    x, weight = random(where, 1, columns), random(where, columns)
    expected = exact(x, own, gated=gated)
    assert far(one_token.product(x, own, gated=gated), expected) < TOLERANCE[where[1]]
    residual = random(where, 1, len(expected[0]))
    expected = exact(normed(x, weight), own, gated=gated) + residual.double()
    found = one_token.product(x, own, (weight, EPSILON), gated=gated, residual=residual)
    assert found is residual
    assert far(found, expected) < TOLERANCE[where[1]]


@pytest.mark.parametrize("int8", [True, False], ids=["int8", "dense"])
@pytest.mark.parametrize("share", [Share(1, 512, 1), Share(4, 512, 1), Share(2, 1024, 2), Share(8, 512, 2)])
def test_one_token_however_it_is_shared(share: Share, int8: bool, where: Where) -> None:
    own, x = matrix(where, 9, 2560, int8=int8, biased=False), random(where, 1, 2560)
    assert far(one_token.product(x, own, share=share), exact(x, own, gated=False)) < TOLERANCE[where[1]]


def test_a_chain_of_products(where: Where) -> None:
    """Over and over: whoever reads too soon finds numbers of the run before."""
    width, links = (2560, 12) if where[0].type == "cuda" else (8, 3)
    chain = [matrix(where, width, width, int8=n % 2 == 0, biased=False) for n in range(links)]
    first, other = random(where, 1, width), random(where, 1, width)
    for x in (first, other, first):
        found, expected = x.clone(), x.double()
        for own in chain:
            step = one_token.product(found, own, (torch.ones_like(x[0]), EPSILON))
            expected = exact(normed(found, torch.ones_like(x[0])), own, gated=False)
            assert far(step, expected) < TOLERANCE[where[1]]
            found = step


@pytest.mark.parametrize("int8", [True, False], ids=["int8", "dense"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "whole"])
@pytest.mark.parametrize("processors", [1, 8], ids=["alone", "shared"])
@pytest.mark.parametrize("tokens", [2, 8, 13, 32])
def test_few_tokens(tokens: int, processors: int, gated: bool, int8: bool, where: Where) -> None:
    own, x = matrix(where, 140, 1100, int8=int8, biased=tokens != 8), random(where, tokens, 1100)
    tile = tile_for(tokens, 70 if gated else 140, 1100, processors)
    assert (tile.splits > 1) == (processors == 8)
    expected = exact(x, own, gated=gated)
    assert far(few_tokens.product(x, own, gated=gated, tile=tile), expected) < TOLERANCE[where[1]]
    assert far(few_tokens.product(x, own, gated=gated), expected) < TOLERANCE[where[1]]


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_single_row(tokens: int, where: Where) -> None:
    own, x = matrix(where, 2, 96, int8=True, biased=True), random(where, tokens, 96)
    product = one_token.product if tokens == 1 else few_tokens.product
    out = torch.empty(tokens, 1, device=where[0], dtype=where[1])
    assert product(x, own, gated=True, out=out) is out
    assert far(out, exact(x, own, gated=True)) < TOLERANCE[where[1]]
