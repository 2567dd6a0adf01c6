"""What the queue of texts to encode promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.errors import InternalError
from lodger.sched.encode import BYPASS, EncodeQueue, Job
from lodger.sched.step import EncodeStep, Item


def job(job_id: int, *lengths: int) -> Job:
    return Job(job_id, "embed", tuple(Item(job_id, i, (7,) * length) for i, length in enumerate(lengths)))


def queue(*jobs: Job) -> EncodeQueue:
    made = EncodeQueue("embed")
    for one in jobs:
        made.add(one)
    return made


def texts(step: EncodeStep | None) -> list[tuple[int, int]]:
    """(job, length) of each text of a step."""
    return [(item.job, len(item.tokens)) for item in step.items] if step else []


def steps(waiting: EncodeQueue, budget: int) -> list[EncodeStep]:
    found = []
    while waiting.has_work():
        step = waiting.next_step(budget)
        assert step is not None
        found.append(step)
    return found


def test_texts_of_several_callers_share_a_step() -> None:
    step = queue(job(1, 10, 10), job(2, 10, 10), job(3, 10)).next_step(100)
    assert sorted(texts(step)) == [(1, 10), (1, 10), (2, 10), (2, 10), (3, 10)]


def test_a_single_text_goes_before_bulk_that_came_earlier() -> None:
    waiting = queue(job(1, *[50] * 10), job(2, 5))
    assert waiting.urgent
    assert texts(waiting.next_step(100)) == [(2, 5), (1, 50)]
    assert not waiting.urgent


def test_the_longest_text_that_fits_goes_first() -> None:
    waiting = queue(job(1, 10, 60, 30, 50))
    assert [texts(step) for step in steps(waiting, 100)] == [[(1, 60), (1, 30), (1, 10)], [(1, 50)]]


def test_a_text_longer_than_a_step_runs_alone() -> None:
    waiting = queue(job(1, 300, 20), job(2, 20, 20))
    assert [texts(step) for step in steps(waiting, 100)] == [[(1, 300)], [(1, 20), (2, 20), (2, 20)]]


def test_endless_queries_hold_up_bulk_only_so_long() -> None:
    waiting = queue(job(0, *[90] * 3))
    led_by_bulk = []
    for turn in range(3 * (BYPASS + 1)):
        waiting.add(job(1 + turn, 100))
        led_by_bulk.append(texts(waiting.next_step(100))[0][0] == 0)
    assert led_by_bulk == ([False] * BYPASS + [True]) * 3


def test_the_order_of_bulk_requests_is_that_of_their_arrival() -> None:
    waiting = queue(*[job(i, *[40] * 4) for i in range(5)])
    seen = [job_id for step in steps(waiting, 100) for job_id, _ in texts(step)]
    assert seen == sorted(seen)


def test_a_cancelled_request_leaves_and_an_unknown_one_is_fine() -> None:
    waiting = queue(job(1, 60, 60), job(2, 30))
    waiting.next_step(70)
    waiting.cancel(1)
    waiting.cancel(77)
    assert not waiting.has_work()
    assert waiting.waiting_tokens == 0
    assert waiting.next_step(100) is None


def test_requests_that_cannot_be_kept_apart_or_never_end_are_refused() -> None:
    waiting = queue(job(1, 10))
    for wrong in (job(1, 10, 10), Job(2, "embed", ()), Job(3, "rerank", job(3, 10).items)):
        with pytest.raises(InternalError):
            waiting.add(wrong)


lengths = st.lists(st.integers(0, 120), min_size=1, max_size=12)
arrivals = st.lists(st.tuples(st.lists(lengths, max_size=3), st.integers(1, 150), st.booleans()), max_size=12)


@settings(max_examples=100, deadline=None)
@given(arrivals)
def test_every_text_runs_once_and_no_step_is_over_its_budget(
    turns: Sequence[tuple[list[list[int]], int, bool]],
) -> None:
    waiting = EncodeQueue("embed")
    expected: set[tuple[int, int]] = set()
    seen: Counter[tuple[int, int]] = Counter()
    jobs = 0
    for new, budget, cancel in turns:
        for sizes in new:
            jobs += 1
            waiting.add(job(jobs, *sizes))
            expected |= {(jobs, index) for index in range(len(sizes))}
        if cancel and jobs:
            waiting.cancel(jobs)
            expected -= {key for key in expected if key[0] == jobs and not seen[key]}
        for step in [waiting.next_step(budget)] if waiting.has_work() else []:
            assert step.tokens <= budget or len(step.items) == 1
            seen.update((item.job, item.index) for item in step.items)
        assert waiting.waiting_tokens >= 0
    for step in steps(waiting, 100):
        seen.update((item.job, item.index) for item in step.items)
    assert seen == Counter(expected)
    assert waiting.waiting_tokens == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=2, max_size=8), st.lists(st.integers(1, 100), min_size=1, max_size=5))
def test_the_bound_holds_for_the_oldest_bulk_request(sizes: list[int], queries: list[int]) -> None:
    """However many queries keep coming, its n texts are done after n * (BYPASS + 1) steps."""
    waiting = queue(job(0, *sizes))
    done = 0
    for turn in range(len(sizes) * (BYPASS + 1)):
        for place, length in enumerate(queries):
            waiting.add(job(1 + turn * len(queries) + place, length))
        done += sum(1 for job_id, _ in texts(waiting.next_step(100)) if job_id == 0)
    assert done == len(sizes)
