"""What the pool of KV blocks promises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.errors import InternalError
from lodger.sched.blocks import BlockPool


def compute(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Blocks of a sequence whose tokens were all computed without the cache."""
    blocks = pool.allocate(pool.blocks_for(len(tokens)))
    pool.publish(tokens, blocks, 0, len(tokens))
    return blocks


def test_a_known_beginning_is_found_in_full_blocks() -> None:
    pool = BlockPool(8, 4)
    blocks = compute(pool, list(range(10)))
    assert pool.match_prefix([*range(8), 50, 51]) == blocks[:2]
    assert pool.match_prefix([*range(4), 50, 51, 52, 53, 54]) == blocks[:1]
    assert pool.match_prefix([50, *range(1, 10)]) == []


def test_never_the_whole_prompt_is_found() -> None:
    pool = BlockPool(8, 4)
    blocks = compute(pool, list(range(8)))
    assert pool.match_prefix(list(range(8))) == blocks[:1]
    assert pool.match_prefix(list(range(9))) == blocks


def test_equal_tokens_after_different_ones_are_not_the_same_block() -> None:
    pool = BlockPool(8, 2)
    compute(pool, [1, 1, 7, 7])
    assert pool.match_prefix([2, 2, 7, 7, 9]) == []


def test_a_block_is_free_when_its_last_holder_lets_go_and_still_found_until_its_room_is_needed() -> None:
    pool = BlockPool(3, 2)
    blocks = compute(pool, [1, 2, 3])
    shared = pool.match_prefix([1, 2, 9])
    assert pool.free_count == 1
    pool.release(blocks)
    assert pool.free_count == 2
    pool.release(shared)
    assert pool.free_count == 3
    assert pool.match_prefix([1, 2, 9]) == shared
    pool.release(shared)
    pool.allocate(3)
    assert pool.match_prefix([1, 2, 9]) == []
    pool.check()


def test_the_least_recently_used_is_evicted_first_and_ends_before_beginnings() -> None:
    pool = BlockPool(4, 2)
    old, new = compute(pool, [1, 1, 2, 2]), compute(pool, [3, 3, 4, 4])
    pool.release(old)
    pool.release(new)
    assert pool.allocate(3) == [old[1], old[0], new[1]]
    assert pool.match_prefix([3, 3, 4, 4, 5]) == new[:1]


def test_two_that_computed_the_same_leave_one_copy_behind() -> None:
    pool = BlockPool(4, 2)
    first, twin = compute(pool, [1, 2]), compute(pool, [1, 2])
    pool.release(first)
    pool.release(twin)
    pool.check()
    assert pool.match_prefix([1, 2, 3]) == first
    assert sorted(pool.allocate(3)) == sorted({0, 1, 2, 3} - set(first))


def test_the_twin_of_an_evicted_block_takes_its_place() -> None:
    pool = BlockPool(2, 2)
    first, twin = compute(pool, [1, 2]), compute(pool, [1, 2])
    pool.release(first)
    pool.allocate(1)
    pool.release(twin)
    pool.check()
    assert pool.match_prefix([1, 2, 3]) == twin


def test_a_block_filled_by_several_steps_is_found_once_it_is_full() -> None:
    pool = BlockPool(4, 4)
    blocks = pool.allocate(2)
    tokens = list(range(6))
    pool.publish(tokens, blocks, 0, 3)
    assert pool.match_prefix([*range(4), 9]) == []
    pool.publish(tokens, blocks, 3, 6)
    assert pool.match_prefix([*range(4), 9]) == blocks[:1]


def test_more_than_there_is_and_giving_back_twice_are_refused_with_numbers() -> None:
    pool = BlockPool(4, 2)
    with pytest.raises(InternalError, match="5 KV blocks asked, 4 of 4 free"):
        pool.allocate(5)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(InternalError, match="released more often"):
        pool.release(blocks)


@pytest.mark.parametrize("harm", ["_blank", "_idle", "_references", "_digest"])
def test_check_finds_what_is_wrong(harm: str) -> None:
    pool = BlockPool(4, 2)
    pool.release(compute(pool, [1, 2, 3, 4]))
    pool.allocate(1)
    pool.check()
    record = getattr(pool, harm)
    if harm == "_references":
        record[record.index(1)] = 0
    elif harm == "_digest":
        record[next(iter(record))] = b"wrong"
    else:
        record.popitem() if harm == "_idle" else record.pop()
    with pytest.raises(InternalError):
        pool.check()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.booleans()), max_size=25))
def test_no_block_is_lost_or_doubled(texts: list[tuple[list[int], bool]]) -> None:
    pool = BlockPool(7, 2)
    held: list[list[int]] = []
    for tokens, let_go in texts:
        cached = pool.match_prefix(tokens)
        missing = pool.blocks_for(len(tokens)) - len(cached)
        if missing > pool.free_count:
            pool.release(cached)
        else:
            blocks = cached + pool.allocate(missing)
            pool.publish(tokens, blocks, len(cached) * 2, len(tokens))
            held.append(blocks)
        if let_go and held:
            pool.release(held.pop(0))
        pool.check()
        assert pool.free_count == 7 - len({block for blocks in held for block in blocks})
