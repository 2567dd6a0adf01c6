"""Products with weights of half a byte equal those of the same numbers in float64, however they are cut."""

from __future__ import annotations

import pytest
import torch
from attention_cases import TOLERANCE, far
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.catalogue.int4 import BLOCK
from lodger.runtime.int4 import WORDS, Int4Linear, pack, pack_scales
from lodger.runtime.kernels.arrivals import own_counters
from lodger.runtime.kernels.int4_tiling import MOST_TOKENS, Tile, tile_for
from lodger.runtime.kernels.w4a16 import dequantised, product

Where = tuple[torch.device, torch.dtype]
Weight = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # words, scales, and what they mean: float32 [rows, columns]


@pytest.fixture
def half(where: Where) -> Where:
    """The kernel knows no float32, and the interpreter no bfloat16."""
    return where if where[1] != torch.float32 else (where[0], torch.float16)


def made(device: torch.device, rows: int, columns: int, group: int = 128) -> Weight:
    blocks = -(-columns // BLOCK)
    values = torch.randint(0, 16, (blocks * BLOCK, rows), dtype=torch.uint8)
    scales, zeros = (
        torch.rand(blocks * BLOCK // group, rows) / 50,
        torch.randint(0, 16, (blocks * BLOCK // group, rows)),
    )
    meant = values.float() - zeros.float().repeat_interleave(group, 0)
    meant *= scales.half().float().repeat_interleave(group, 0)
    words, both = pack(values).contiguous(), pack_scales(scales, zeros)
    return words.to(device), both.to(device), meant[:columns].T.contiguous().to(device)


def exact(x: torch.Tensor, meant: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    found = x.double() @ meant.double().T
    return found if bias is None else found + bias.double()


def inputs(where: Where, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=where[0]).to(where[1])


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("tokens", [1, 7, 16, 30, 64, 100])
def test_a_product_of_every_cut(tokens: int, splits: int, biased: bool, half: Where) -> None:
    words, scales, meant = made(half[0], 72, 1024)
    bias = inputs(half, 72) if biased else None
    x = inputs(half, tokens, 1024)
    tile = tile_for(tokens, 72, len(words), 8)._replace(splits=splits)
    assert far(product(x, words, scales, bias, tile), exact(x, meant, bias)) < TOLERANCE[half[1]]


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("columns", [32, 96, 256, 320])
def test_groups_of_each_width_and_columns_that_end_within_a_block(group: int, columns: int, half: Where) -> None:
    words, scales, meant = made(half[0], 40, columns, group)
    for tokens in (1, 20):
        x = inputs(half, tokens, columns)
        assert far(product(x, words, scales), exact(x, meant)) < TOLERANCE[half[1]]


@settings(max_examples=10, deadline=None)
@given(tokens=st.integers(1, 80), rows=st.integers(1, 25), columns=st.integers(1, 90), processors=st.integers(1, 132))
def test_any_shape(where: Where, tokens: int, rows: int, columns: int, processors: int) -> None:
    half = where if where[1] != torch.float32 else (where[0], torch.float16)
    words, scales, meant = made(half[0], 8 * rows, 8 * columns)
    x = inputs(half, tokens, 8 * columns)
    found = product(x, words, scales, None, tile_for(tokens, 8 * rows, len(words), processors))
    assert far(found, exact(x, meant)) < TOLERANCE[half[1]]


def test_what_is_beyond_the_last_column_is_not_read(half: Where) -> None:
    """The last token's inputs end where memory may."""
    words, scales, meant = made(half[0], 16, 40)
    room = torch.full((3 * 40 + 128,), torch.nan, device=half[0], dtype=half[1])
    x = room[: 3 * 40].view(3, 40).copy_(inputs(half, 3, 40))
    assert far(product(x, words, scales), exact(x, meant)) < TOLERANCE[half[1]]


def test_programs_that_share_a_tile_add_up_in_the_same_order_each_time(half: Where) -> None:
    words, scales, _ = made(half[0], 64, 2048)
    x = inputs(half, 5, 2048)
    tile = tile_for(5, 64, len(words), 132)
    assert tile.splits > 2
    first = product(x, words, scales, None, tile)
    assert all(torch.equal(product(x, words, scales, None, tile), first) for _ in range(3))


def test_what_is_captured_counts_apart(half: Where) -> None:
    words, scales, _ = made(half[0], 64, 2048)
    x = inputs(half, 5, 2048)
    tile = Tile(8, 64, 4, 4, 3)
    first = product(x, words, scales, None, tile)
    with own_counters(half[0]) as counters:
        counters += 1000  # as if programs of another product were under way: nobody is the last of its tile
        assert not torch.equal(product(x, words, scales, None, tile), first)
        counters.zero_()
        assert torch.equal(product(x, words, scales, None, tile), first)
        assert not counters.any()
    assert torch.equal(product(x, words, scales, None, tile), first)


@pytest.mark.parametrize(("rows", "columns", "group"), [(24, 512, 128), (40, 328, 64), (16, 100, 32)])
def test_made_dense_it_is_the_meant_number_rounded(rows: int, columns: int, group: int, where: Where) -> None:
    words, scales, meant = made(where[0], rows, columns, group)
    for first, count in ((0, rows), (8, rows - 8), (8, 5)):
        out = torch.full((count, columns), torch.nan, device=where[0], dtype=where[1])
        assert torch.equal(dequantised(words, scales, first, out), meant[first : first + count].to(where[1]))


@pytest.mark.parametrize("biased", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("tokens", [1, 9, MOST_TOKENS + 8])
def test_a_layer_computes_the_same_for_few_and_for_many_tokens(
    tokens: int, biased: bool, half: Where, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lodger.runtime.quantised.DENSE_PIECE", 96)  # several pieces, the last one short
    words, scales, meant = made(half[0], 304, 96)
    layer = Int4Linear(words, scales, 96, inputs(half, 304) if biased else None)
    x = inputs(half, tokens, 96)
    expected = exact(x, meant, layer.bias)
    assert far(layer(x), expected) < TOLERANCE[half[1]]
    assert far(layer(x[None]), expected[None]) < TOLERANCE[half[1]]


@pytest.mark.gpu
def test_a_captured_product_is_the_same_when_replayed(half: Where) -> None:
    words, scales, meant = made(half[0], 640, 2048)
    x = inputs(half, 3, 2048)
    product(x, words, scales)
    graph = torch.cuda.CUDAGraph()
    with own_counters(half[0]) as counters, torch.cuda.graph(graph):
        out = product(x, words, scales)
    for _ in range(3):
        x.copy_(inputs(half, 3, 2048))
        graph.replay()
        assert far(out, exact(x, meant)) < TOLERANCE[half[1]]
        assert not counters.any()  # and they are kept, as whoever replays must


def test_a_word_is_sixteen_of_a_row_and_block() -> None:
    assert pack(torch.zeros(256, 8, dtype=torch.uint8)).shape == (2, 8, WORDS)
