"""What is expected of the chats that run: how long they become, and how much of the KV cache that takes."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.sched.forecast import Lengths, peak

chats = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 30)), min_size=1, max_size=12)


SIZE = 4  # tokens of a block


def most_in_use(chats: list[tuple[int, int]], lefts: list[int], rooms: list[int]) -> int:
    """Blocks in use at the worst time, token by token; `lefts`: tokens that each will make, `rooms`: those that go into
    the last block it has."""
    grown = list(zip(chats, lefts, rooms, strict=True))
    return max(
        sum(blocks + -(-max(token - room, 0) // SIZE) for (_, blocks), left, room in grown if left >= token)
        for token in range(max(lefts) + 1)
    )


@settings(max_examples=200, deadline=None)
@given(chats=chats, data=st.data())
def test_chats_that_grow_in_step_never_need_more_than_the_peak(
    chats: list[tuple[int, int]], data: st.DataObject
) -> None:
    rooms = [data.draw(st.integers(0, SIZE - 1)) for _ in chats]
    in_last = [data.draw(st.integers(1, SIZE)) for _ in chats]
    lefts = [
        (growth - 1) * SIZE + room + some if growth else min(room, some)
        for (growth, _), room, some in zip(chats, rooms, in_last, strict=True)
    ]
    assert most_in_use(chats, lefts, rooms) <= peak(chats, used=sum(blocks for _, blocks in chats))


@given(alike=st.integers(1, 100), growth=st.integers(0, 12), blocks=st.integers(1, 30))
def test_the_peak_of_chats_that_are_alike_is_what_they_need(alike: int, growth: int, blocks: int) -> None:
    assert peak([(growth, blocks)] * alike, used=alike * blocks) == alike * (blocks + growth)
    assert peak([(growth, blocks)] * alike, used=blocks) == blocks + alike * growth, "all of them the same blocks"


@settings(max_examples=100, deadline=None)
@given(chats=chats, data=st.data())
def test_blocks_that_several_have_are_counted_once_and_never_given_back_too_soon(
    chats: list[tuple[int, int]], data: st.DataObject
) -> None:
    shared = data.draw(st.integers(0, min(blocks for _, blocks in chats)))  # of the same beginning
    used = sum(blocks for _, blocks in chats) - shared * (len(chats) - 1)
    own = [(growth, blocks - shared) for growth, blocks in chats]
    lefts = [growth * SIZE for growth, _ in own]
    assert most_in_use(own, lefts, [0] * len(own)) + shared <= peak(chats, used)
    assert peak(chats, used) <= peak(chats, used=sum(blocks for _, blocks in chats))


def test_answers_are_expected_to_be_as_the_last_ones() -> None:
    lengths = Lengths()
    assert not lengths
    for tokens in (300, *[20, 20, 100] * 40):  # the first one is forgotten
        lengths.add(tokens)
    assert lengths
    fresh = Counter(lengths.expected(0, number) for number in range(300))
    assert set(fresh) == {20, 100}
    assert 190 <= fresh[20] <= 210, "as often as they came"
    assert {lengths.expected(20, number) for number in range(50)} == {100}, "it has not ended after 20"
    assert 100 < lengths.expected(100, 7) < 150, "longer than all the last ones"


@settings(max_examples=100, deadline=None)
@given(ended=st.lists(st.integers(1, 50), max_size=80), made=st.integers(0, 60), number=st.integers(1, 10**6))
def test_no_answer_is_expected_to_end_before_it_is(ended: list[int], made: int, number: int) -> None:
    lengths = Lengths()
    for tokens in ended:
        lengths.add(tokens)
    assert lengths.expected(made, number) > made
