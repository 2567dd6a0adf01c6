"""Which captured forward serves which texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lodger.plan.footprint import CAPTURED_TEXTS
from lodger.runtime import encoder_graphs
from lodger.runtime.encoder import Layers
from lodger.runtime.encoder_graphs import EncoderGraphs, _tiles, bucket_for, bucket_within, buckets
from lodger.runtime.kernels.tiling import TEXT_ROWS, text_tiles
from lodger.runtime.packed import pack_items
from lodger.runtime.partition import STEPS
from lodger.sched.step import Item

BUCKETS = buckets(132)
tokens = st.integers(1, BUCKETS[-1])


@given(st.integers(1, 300))
def test_buckets_grow_with_the_device_up_to_what_the_plan_counts(processors: int) -> None:
    sizes = buckets(processors)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] <= CAPTURED_TEXTS
    assert buckets(132)[-1] == STEPS[-1] == CAPTURED_TEXTS


@given(st.lists(st.integers(1, 600), min_size=1, max_size=100))
def test_texts_run_in_the_smallest_bucket_that_has_room_and_tiles(lengths: list[int]) -> None:
    fitting = [n for n in BUCKETS if sum(lengths) <= n and len(text_tiles(lengths)) <= _tiles(n)]
    assert bucket_for(lengths, BUCKETS) == (fitting[0] if fitting else 0)


@given(tokens)
def test_a_step_of_a_buckets_size_wastes_nothing(count: int) -> None:
    size = bucket_within(count, BUCKETS)
    assert size in BUCKETS
    assert size <= count or size == BUCKETS[0]
    assert bucket_for([size], BUCKETS) == size


@given(tokens)
def test_no_bucket_is_much_larger_than_its_step(count: int) -> None:
    assert bucket_for([count], BUCKETS) <= max(64, 2 * count)
    assert count < 1024 or bucket_for([count], BUCKETS) < 1.34 * count + 1


@pytest.mark.parametrize("length", [1, 3, 8, 20])
def test_a_request_of_64_short_texts_has_its_tiles(length: int) -> None:
    assert bucket_for([length] * 64, BUCKETS) == max(256, bucket_for([64 * length], BUCKETS))


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60))
def test_tiles_cover_every_token_of_every_text_once(lengths: list[int]) -> None:
    covered = []
    for first, end, start, _ in text_tiles(lengths):
        assert start <= first < end
        covered += range(first, min(first + TEXT_ROWS, end))
    assert covered == list(range(sum(lengths)))


@given(st.lists(st.integers(32, 512), min_size=1, max_size=40))
def test_texts_of_common_lengths_always_have_tiles_enough(lengths: list[int]) -> None:
    total = sum(lengths)
    if total <= BUCKETS[-1]:
        assert bucket_for(lengths, BUCKETS) == bucket_for([total], BUCKETS)


class Replayed(NamedTuple):
    replay: Callable[[], None]


@torch.inference_mode()
def test_a_second_model_of_the_same_weights_gets_its_larger_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first one's may be running: nothing of theirs is touched."""
    made: list[int] = []  # tokens of the forward that was captured
    ran: list[int] = []

    def forward(inputs: torch.Tensor, tiles: torch.Tensor) -> Layers:
        ran.append(inputs.shape[1])
        yield
        return inputs.sum(dim=0)[:, None].expand(-1, 8).half()

    def captured(step: Callable[[], None], *_: object) -> Replayed:
        made.append(ran[-1])
        return Replayed(step)

    monkeypatch.setattr(encoder_graphs, "captured", captured)
    graphs = EncoderGraphs(forward, 8, torch.float16, torch.device("cpu"), (64, 128, 256, 512))
    graphs.warm_up(100)
    assert made == ran == [128, 64]
    batch = pack_items([Item(0, 0, tuple(range(5, 75)))], 0, torch.device("cpu"))
    assert batch.stacked is not None
    before = graphs.run(batch)
    tiles = graphs._tiles.clone()
    graphs.warm_up(512)
    assert made == [128, 64, 512, 256]
    assert torch.equal(before, batch.stacked.sum(dim=0)[:, None].expand(-1, 8).half())
    assert torch.equal(graphs._tiles, tiles)
    assert all(graphs.serves([length]) for length in (1, 70, 200, 512))
    graphs.warm_up(512)
    assert len(made) == 4


def test_what_an_earlier_step_left_behind_a_shorter_one_is_of_the_same_kind() -> None:
    """A token's id is no position: a row of the table of positions that is not there must never be read."""
    graphs = EncoderGraphs(
        lambda inputs, tiles: pytest.fail("nothing runs"), 8, torch.float16, torch.device("cpu"), BUCKETS
    )
    graphs._prepare()
    for kind in range(3):
        graphs._inputs_of(BUCKETS[-1])[kind] = kind + 1
    for size in BUCKETS:
        assert all(graphs._inputs_of(size)[kind].unique().tolist() == [kind + 1] for kind in range(3))
