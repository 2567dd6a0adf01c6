"""What the pace promises to chats while other work runs between their tokens."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.sched.arbiter import SMALLEST_STEP, micro_step_tokens
from lodger.sched.pace import INTERVAL_MS, LEAST_SHARE, Pace, pause_ms

STEP = 8192
rates = st.floats(1, 2000)  # tokens per millisecond
decodes = st.floats(0.5, 60)  # milliseconds


def test_a_fast_decode_leaves_the_rest_of_the_interval_and_a_slow_one_a_share() -> None:
    assert pause_ms(4.0) == INTERVAL_MS - 4.0
    assert pause_ms(20.0) == LEAST_SHARE * 20.0


@given(decodes, decodes)
def test_chats_that_take_longer_never_get_a_worse_interval_than_they_must(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert low + pause_ms(low) <= high + pause_ms(high) + 1e-9
    assert high + pause_ms(high) <= max(INTERVAL_MS, (1 + LEAST_SHARE) * high) + 1e-9


def test_before_anything_is_measured_a_micro_step_is_a_share_of_a_step() -> None:
    pace = Pace()
    assert pace.budget("m3", STEP) == micro_step_tokens(True, STEP)
    pace.decoded(4)
    assert pace.budget("m3", STEP) == micro_step_tokens(True, STEP)


@settings(max_examples=100, deadline=None)
@given(decodes, rates, st.integers(1, STEP))
def test_at_steady_speed_every_micro_step_but_the_first_fits_the_pause(
    decode: float, rate: float, step_tokens: int
) -> None:
    pace = Pace()
    for turn in range(20):
        pace.decoded(decode)
        tokens = pace.budget("m3", step_tokens)
        assert 1 <= tokens <= step_tokens
        assert turn == 0 or tokens / rate <= pause_ms(decode) + 1e-6 or tokens <= SMALLEST_STEP
        pace.ran("m3", tokens, tokens / rate)


@settings(max_examples=100, deadline=None)
@given(decodes, st.lists(rates, min_size=2, max_size=30))
def test_a_lane_that_gets_slower_is_too_long_twice_at_most(decode: float, speeds: Sequence[float]) -> None:
    """A micro-step is over its time only where the lane is slower than in both of its last measurements."""
    pace, before = Pace(), list[float]()
    pace.decoded(decode)
    for rate in speeds:
        tokens = pace.budget("m3", STEP)
        if before and rate >= max(before[-2:]) and tokens > SMALLEST_STEP:
            assert tokens / rate <= pause_ms(decode) + 1e-6
        pace.ran("m3", tokens, tokens / rate)
        before.append(rate)


def test_a_host_that_was_held_up_once_makes_no_lane_slow() -> None:
    pace = Pace()
    pace.decoded(4)
    pace.ran("m3", 2000, 3)
    expected = pace.budget("m3", STEP)
    pace.ran("m3", 2000, 20)
    assert pace.budget("m3", STEP) == expected
    pace.ran("m3", 2000, 20)
    assert pace.budget("m3", STEP) == int(100 * pause_ms(4))
    pace.ran("m3", 200, 1.5)
    pace.ran("m3", 200, 20)
    assert pace.budget("m3", STEP) > SMALLEST_STEP, "once more it is not believed at first"


@given(rates)
def test_a_lane_that_gets_faster_is_believed_by_and_by(rate: float) -> None:
    pace = Pace()
    pace.decoded(4)
    pace.ran("m3", 100, 100 / rate)
    for _ in range(30):
        pace.ran("m3", 100, 100 / (2 * rate))
    wanted = 2 * rate * pause_ms(4)
    assert 0.98 * wanted - 1 <= max(pace.budget("m3", 10**6), 0.98 * wanted - 1) <= max(wanted, SMALLEST_STEP) + 1


def test_lanes_are_measured_apart_and_nothing_is_learned_of_nothing() -> None:
    pace = Pace()
    pace.decoded(4)
    pace.ran("m3", 0, 3)
    pace.ran("ranker", 1000, 1)
    assert pace.budget("m3", STEP) == micro_step_tokens(True, STEP)
    assert pace.budget("ranker", STEP) == int(1000 * pause_ms(4))
