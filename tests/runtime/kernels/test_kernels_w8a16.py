"""Products with weights of one byte equal those of the same numbers in float64, however they are cut."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from attention_cases import TOLERANCE, far
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.runtime.kernels.arrivals import own_counters
from lodger.runtime.kernels.product_tiling import MOST_TOKENS, Tile, tile_for
from lodger.runtime.kernels.w8a16 import dequantised, product, worth
from lodger.runtime.quantised import QuantisedLinear, quantise

Where = tuple[torch.device, torch.dtype]
PROCESSORS = {"alone": 1, "shared": 8}


def made(where: Where, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every value of a byte, a scale for each row, and a bias."""
    weight = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, device=where[0])
    return weight, torch.rand(rows, device=where[0]) / 100, torch.randn(rows, device=where[0]).to(where[1])


def exact(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    found = x.double() @ (weight.double() * scale.double()[:, None]).T
    return found if bias is None else found + bias.double()


def inputs(where: Where, tokens: int, columns: int) -> torch.Tensor:
    return torch.randn(tokens, columns, device=where[0]).to(where[1])


def cut(tokens: int, rows: int, columns: int, processors: int) -> Tile:
    """For any card."""
    tile = tile_for(tokens, rows, columns, processors)
    assert tile is not None
    return tile


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("processors", PROCESSORS)
@pytest.mark.parametrize("tokens", [7, 64, 128, 200])
def test_a_product_of_every_cut(tokens: int, processors: str, biased: bool, where: Where) -> None:
    weight, scale, bias = made(where, 70, 1024)
    x = inputs(where, tokens, 1024)
    tile = cut(tokens, 70, 1024, PROCESSORS[processors])
    assert (tile.splits > 1) == (processors == "shared")
    found = product(x, weight, scale, bias if biased else None, tile)
    assert far(found, exact(x, weight, scale, bias if biased else None)) < TOLERANCE[where[1]]


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize(("rows", "columns"), [(64, 512), (71, 1100), (2, 96), (3, 2560)])
def test_one_token(rows: int, columns: int, biased: bool, where: Where) -> None:
    weight, scale, bias = made(where, rows, columns)
    x = inputs(where, 1, columns)
    found = product(x, weight, scale, bias if biased else None)
    assert far(found, exact(x, weight, scale, bias if biased else None)) < TOLERANCE[where[1]]


@pytest.mark.parametrize("tokens", [2, 30, 33, 100])
def test_what_was_measured_to_be_fastest(tokens: int, where: Where) -> None:
    weight, scale, bias = made(where, 130, 208)
    x = inputs(where, tokens, 208)
    assert worth(x, weight)
    assert far(product(x, weight, scale, bias), exact(x, weight, scale, bias)) < TOLERANCE[where[1]]


@settings(max_examples=10, deadline=None)
@given(tokens=st.integers(1, 80), rows=st.integers(1, 200), pairs=st.integers(1, 350), processors=st.integers(1, 132))
def test_any_shape(where: Where, tokens: int, rows: int, pairs: int, processors: int) -> None:
    columns = 2 * pairs
    weight, scale, bias = made(where, rows, columns)
    x = inputs(where, tokens, columns)
    found = product(x, weight, scale, bias, cut(tokens, rows, columns, processors))
    assert far(found, exact(x, weight, scale, bias)) < TOLERANCE[where[1]]


def test_programs_that_share_a_tile_add_up_in_the_same_order_each_time(where: Where) -> None:
    weight, scale, _ = made(where, 64, 2048)
    x = inputs(where, 5, 2048)
    tile = cut(5, 64, 2048, 132)
    assert tile.splits > 2
    first = product(x, weight, scale, None, tile)
    assert all(torch.equal(product(x, weight, scale, None, tile), first) for _ in range(3))


def test_what_is_captured_counts_apart_from_what_runs_meanwhile(where: Where) -> None:
    weight, scale, _ = made(where, 64, 2048)
    x = inputs(where, 5, 2048)
    tile = cut(5, 64, 2048, 132)
    first = product(x, weight, scale, None, tile)
    with own_counters(where[0]) as counters:
        counters += 1000  # as if programs of another product were under way: nobody is the last of its tile
        assert not torch.equal(product(x, weight, scale, None, tile), first)
        counters.zero_()
        assert torch.equal(product(x, weight, scale, None, tile), first)
        assert not counters.any()
        with ThreadPoolExecutor(1) as other:
            counters += 1000
            assert torch.equal(other.submit(product, x, weight, scale, None, tile).result(), first)
    assert torch.equal(product(x, weight, scale, None, tile), first)


@pytest.mark.parametrize(("rows", "columns"), [(9, 512), (20, 700)])
def test_made_dense_it_is_the_rounded_number(rows: int, columns: int, where: Where) -> None:
    weight, scale, _ = made(where, rows, columns)
    found = dequantised(weight, scale, torch.full((rows, columns), torch.nan, device=where[0], dtype=where[1]))
    assert torch.equal(found, (weight.float() * scale[:, None]).to(where[1]))


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize(("tokens", "columns"), [(1, 96), (9, 96), (40, 96), (40, 95), (MOST_TOKENS + 8, 96)])
def test_a_layer_computes_the_same_for_few_and_for_many_tokens(
    tokens: int, columns: int, biased: bool, where: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lodger.runtime.quantised.DENSE_PIECE", 96)  # several pieces, the last one short
    layer = QuantisedLinear(*quantise([torch.randn(300, columns)], where[0]), bias=None)
    if biased:
        layer.bias = torch.randn(300, device=where[0]).to(where[1])
    x = inputs(where, tokens, columns)
    expected = exact(x, layer.weight, layer.scale, layer.bias)
    assert far(layer(x), expected) < TOLERANCE[where[1]]
    assert far(layer(x[None]), expected[None]) < TOLERANCE[where[1]]
