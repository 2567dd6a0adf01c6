"""Paged attention equals float32 SDPA for every shape, mixture and layout, on fresh random inputs."""

from __future__ import annotations

import pytest
import torch
from attention_cases import LAYER, TOLERANCE, Built, Case, far
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.runtime.attention.paged import PagedPlan
from lodger.runtime.kernels.paged_attention import Tiles, attend
from lodger.runtime.kernels.store import store
from lodger.runtime.kernels.tiling import cut, decode_shape, splits_for

Where = tuple[torch.device, torch.dtype]


def attended(built: Built, processors: int) -> torch.Tensor:
    assert built.cache is not None
    plan = PagedPlan(built.batch, built.cache, built.query.device, processors, flash=False)
    return plan.attend(LAYER, *built.packed)


CASES = {
    "decode": Case((1, 1, 1), (4, 40, 133)),
    "decode-one-long": Case((1,), (1_500,)),
    "decode-on-a-block-border": Case((1, 1, 1), (15, 16, 31)),
    "decode-window": Case((1, 1, 1), (3, 40, 700), window=24),
    "first-token": Case((1, 1), (0, 0)),
    "fresh": Case((40, 17, 1), (0, 0, 0)),
    "chunks": Case((34, 9, 2), (48, 300, 5)),
    "chunk-after-much": Case((5,), (900,)),
    "chunk-window": Case((35, 20), (300, 0), window=33),
    "mixed": Case((1, 20, 1, 35), (90, 0, 12, 16)),
    "no-groups": Case((1, 20), (30, 8), heads=2, kv_heads=2),
    "group-of-7": Case((1, 50), (30, 8), heads=14, kv_heads=2),
    "group-of-32": Case((1, 9), (30, 8), heads=32, kv_heads=1),
    "head-80": Case((1, 20), (30, 40), head_dim=80),
    "head-96": Case((1, 20), (30, 40), head_dim=96),
    "head-128": Case((1, 20), (30, 40), head_dim=128),
    "head-256": Case((1, 20), (30, 40), head_dim=256),
    "block-1": Case((1, 20), (30, 40), block_size=1),
    "block-24": Case((1, 20), (30, 40), block_size=24),
    "block-256": Case((1, 20), (280, 40), block_size=256),
}


@pytest.mark.parametrize("processors", [1, 64], ids=["alone", "split"])
@pytest.mark.parametrize("name", CASES)
def test_attention_over_blocks_equals_attention_over_whole_sequences(name: str, processors: int, where: Where) -> None:
    built = CASES[name].build(*where)
    expected = built.expected()
    built.forget_what_no_sequence_owns()
    assert far(attended(built, processors), expected) < TOLERANCE[where[1]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 4))
    kv_heads = draw(st.integers(1, 3))
    return Case(
        lengths=tuple(draw(st.lists(st.integers(1, 24), min_size=count, max_size=count))),
        past=tuple(draw(st.lists(st.integers(0, 200), min_size=count, max_size=count))),
        heads=kv_heads * draw(st.integers(1, 8)),
        kv_heads=kv_heads,
        head_dim=draw(st.sampled_from([64, 72, 112, 128])),
        block_size=draw(st.sampled_from([8, 16, 20, 32, 128])),
        window=draw(st.none() | st.integers(1, 250)),
    )


@settings(max_examples=10, deadline=None)
@given(case=cases(), processors=st.sampled_from([1, 16, 132]))
def test_any_mixture_equals_float32(where: Where, case: Case, processors: int) -> None:
    built = case.build(*where)
    expected = built.expected()
    built.forget_what_no_sequence_owns()
    assert far(attended(built, processors), expected) < TOLERANCE[where[1]]


def test_storing_changes_the_slots_named_and_no_other(where: Where) -> None:
    built = Case((3, 1, 20), (0, 40, 7), kv_heads=3, head_dim=72).build(*where)
    assert built.cache is not None
    assert built.batch.slots is not None
    slots = built.batch.slots.clone()
    slots[[1, 5]] = -1
    expected = built.cache.tensor.clone()
    kept = slots >= 0
    by_slot = expected.flatten(2, 3)
    by_slot[LAYER, 0, slots[kept]], by_slot[LAYER, 1, slots[kept]] = built.key[kept], built.value[kept]
    store(built.cache.tensor, LAYER, slots, built.key, built.value)
    assert torch.equal(built.cache.tensor, expected)


@pytest.mark.parametrize("splits", [1, 4])
def test_the_empty_rows_of_a_padded_step_write_nothing(splits: int, where: Where) -> None:
    built = Case((1, 1), (700, 9)).build(*where)
    assert built.cache is not None
    expected = built.expected()
    store(built.cache.tensor, LAYER, built.batch.slots, built.key, built.value)
    records = torch.tensor([(0, 1, 700, 0), (0, 0, 0, 0), (1, 1, 9, 1), (1, 0, 5, 1)], dtype=torch.int32)
    table = torch.tensor([built.batch.blocks[0], built.batch.blocks[1] * 44], dtype=torch.int32)
    tiles = Tiles(records.to(where[0]), table.to(where[0]), decode_shape(2, 64), splits)
    out = torch.full((3, *built.query.shape[1:]), 7.0, device=where[0], dtype=where[1])
    attend(built.query, built.cache.tensor, LAYER, tiles, out, built.case.head_dim**-0.5, None)
    assert far(out[:2], expected) < TOLERANCE[where[1]]
    assert bool((out[2] == 7).all())


@given(
    rows=st.lists(st.tuples(st.integers(1, 300), st.integers(0, 900)), min_size=1, max_size=6), most=st.integers(1, 70)
)
def test_tiles_cover_every_new_token_once_and_the_longest_start_first(rows: list[tuple[int, int]], most: int) -> None:
    starts = [sum(count for count, _ in rows[:n]) for n in range(len(rows))]
    tiles = cut(
        [(start, count, past, n) for n, (start, (count, past)) in enumerate(zip(starts, rows, strict=True))], most
    )
    covered = sorted(token for tile in tiles for token in range(tile.token, tile.token + tile.tokens))
    assert covered == list(range(sum(count for count, _ in rows)))
    for tile in tiles:
        count, past = rows[tile.sequence]
        assert 0 < tile.tokens <= most
        assert tile.position - past == tile.token - starts[tile.sequence] <= count - tile.tokens
    assert [tile.position for tile in tiles] == sorted((tile.position for tile in tiles), reverse=True)


def test_keys_are_shared_only_where_tiles_are_few_and_keys_many() -> None:
    assert splits_for(programs=8, longest=8_192, least=128, processors=108) == 27
    assert splits_for(programs=8, longest=320, least=128, processors=108) == 3
    assert splits_for(programs=8, longest=100, least=128, processors=108) == 1
    assert splits_for(programs=512, longest=8_192, least=128, processors=108) == 1
    assert splits_for(programs=1, longest=100_000, least=128, processors=132) == 64
