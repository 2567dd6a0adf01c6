"""Weights of one byte are as near to the stored ones as their row's scale allows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger import toolchain
from lodger.errors import MissingDependency
from lodger.runtime import quantised
from lodger.runtime.kernels.product_tiling import MOST_TILES, MOST_TOKENS, tile_for
from lodger.runtime.precision import precision, with_int8
from lodger.runtime.quantised import quantise

CPU = torch.device("cpu")


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    columns=st.integers(1, 70),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    spread=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_no_number_is_off_by_more_than_half_a_step_of_its_row(
    seed: int, rows: list[int], columns: int, dtype: torch.dtype, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [(torch.randn(n, columns, generator=generator) * spread).to(dtype) for n in rows]
    whole = torch.cat(weights).double()
    values, scales = quantise(weights, CPU)
    assert torch.equal(torch.cat(weights).double(), whole), "the stored numbers stay as they are"
    assert values.dtype == torch.int8
    assert scales.dtype == torch.float32
    assert values.shape == whole.shape
    off = (values.double() * scales.double()[:, None] - whole).abs()
    assert (off <= scales.double()[:, None] * (0.5 + 1e-4)).all()
    assert (values.abs().amax(dim=1) == 127).all(), "each row uses the whole range"


def test_a_row_of_zeros_stays_zero_and_touches_no_other() -> None:
    weight = torch.randn(3, 8)
    weight[1] = 0
    values, scales = quantise([weight], CPU)
    assert not values[1].any()
    assert scales[1] == 0
    assert torch.isfinite(scales).all()
    assert torch.equal(values[[0, 2]], quantise([weight[[0, 2]]], CPU)[0])


def test_what_was_quantised_is_quantised_to_itself() -> None:
    values, scales = quantise([torch.randn(20, 64)], CPU)
    again, same = quantise([values.float() * scales[:, None]], CPU)
    assert torch.equal(again, values)
    assert torch.allclose(same, scales, rtol=1e-6)


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.randn(30, 16), torch.randn(7, 16)]
    whole = quantise(weights, CPU)
    monkeypatch.setattr(quantised, "_PIECE", 16 * 4)
    assert all(torch.equal(one, other) for one, other in zip(quantise(weights, CPU), whole, strict=True))


def test_a_number_that_is_none_is_not_hidden() -> None:
    weight = torch.randn(2, 8)
    weight[1, 3] = torch.nan
    assert quantise([weight], CPU)[1].isnan().tolist() == [False, True]


@given(
    tokens=st.integers(1, 20_000),
    rows=st.integers(1, 200_000),
    columns=st.integers(1, 30_000),
    processors=st.integers(1, 200),
    hopper=st.booleans(),
)
def test_a_cut_shares_no_more_tiles_than_are_counted_and_gives_each_program_work(
    tokens: int, rows: int, columns: int, processors: int, hopper: bool
) -> None:
    tile = tile_for(tokens, rows, columns, processors, hopper=hopper)
    if tile is None:
        assert columns % 2 or tokens > MOST_TOKENS
        return
    assert columns % 2 == 0
    assert hopper or tokens <= MOST_TOKENS
    assert columns % 16 == 0 or not tile.hopper
    assert tile.splits >= 1
    if tile.splits > 1:
        assert -(-rows // tile.rows) * -(-tokens // tile.tokens) <= MOST_TILES
        assert tile.splits * tile.columns <= columns
        assert tile.splits * -(-rows // tile.rows) * -(-tokens // tile.tokens) <= 4 * processors


def test_many_tokens_are_dense_where_the_largest_tiles_would_leave_a_card_idle() -> None:
    """Qwen3-4B on an H100's 132 processors, as measured."""
    shapes = {"qkv": (6144, 2560), "out": (2560, 4096), "gate_up": (19456, 2560), "down": (2560, 9728)}
    own = {
        tokens: {name for name, (rows, columns) in shapes.items() if tile_for(tokens, rows, columns, 132, hopper=True)}
        for tokens in (300, 512, 1024, 2048, 8192)
    }
    assert own[300] == own[512] == {"qkv", "gate_up", "down"}
    assert own[1024] == own[2048] == {"qkv", "gate_up"}
    assert not own[8192], "the gates took 1,300 us so, and 1,162 dense"
    assert not any(tile_for(512, rows, columns, 132) for rows, columns in shapes.values())


def test_weights_of_a_byte_need_what_builds_our_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda:0")
    dense = precision("bfloat16", card)
    monkeypatch.setattr(toolchain, "missing", lambda: ["a C compiler (gcc or clang)"])
    with pytest.raises(MissingDependency, match=r"int8 weights need a C compiler \(gcc or clang\)"):
        with_int8(dense, card)
    monkeypatch.setattr(toolchain, "missing", list)
    assert with_int8(dense, card).int8
