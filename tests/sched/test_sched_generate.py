"""What the scheduler of chats promises, scene by scene; its promises under any order have a file of their own."""

from __future__ import annotations

import pytest
from fake_decoder import continuation
from scheduler_bench import Bench

from lodger.errors import InternalError
from lodger.sched.sequence import Sequence
from lodger.sched.step import GenerateStep


def rows(step: GenerateStep | None) -> list[tuple[int, int, int, bool]]:
    """(sequence, start, tokens, sample) of each row."""
    return [(row.sequence, row.start, len(row.tokens), row.sample) for row in step.rows] if step else []


def test_no_step_takes_a_sequence_that_is_held() -> None:
    bench = Bench(blocks=6)
    bench.add([1, 2, 3], [4, 5, 6], [7, 8, 9])
    bench.sequences[2].held = True
    assert [row[0] for row in rows(bench.prefill())] == [0, 1]
    bench.sequences[0].held = True
    assert [row[0] for row in rows(bench.decode())] == [1]
    bench.sequences[1].held = True
    assert not bench.scheduler.has_decode()
    assert bench.decode() is bench.prefill() is None
    for sequence in bench.sequences.values():
        sequence.held = False
    bench.drain()
    assert bench.answers_are_right()


def test_a_long_prompt_is_prefilled_in_chunks_and_only_the_last_one_samples() -> None:
    bench = Bench()
    bench.add(list(range(10)))
    assert rows(bench.prefill(4)) == [(0, 0, 4, False)]
    assert not bench.scheduler.has_decode()
    assert rows(bench.prefill(4)) == [(0, 4, 4, False)]
    assert rows(bench.prefill(4)) == [(0, 8, 2, True)]
    assert bench.scheduler.has_decode()
    assert rows(bench.decode(4)) == [(0, 10, 1, True)]
    assert bench.sequences[0].generated == continuation(range(10), 2)


def test_a_begun_prompt_goes_before_new_ones_and_the_rest_of_the_budget_to_them() -> None:
    bench = Bench()
    bench.add([1] * 6, [2] * 6, [3] * 6)
    assert rows(bench.prefill(4)) == [(0, 0, 4, False)]
    assert rows(bench.prefill(10)) == [(0, 4, 2, True), (1, 0, 6, True), (2, 0, 2, False)]


def test_admission_is_first_come_first_served_up_to_max_running() -> None:
    bench = Bench(max_running=2)
    bench.add([1, 2], [3, 4], [5, 6])
    assert [row.sequence for row in bench.prefill().rows] == [0, 1]
    assert not bench.scheduler.has_prefill()
    assert bench.prefill() is None
    bench.scheduler.finish(0)
    assert [row.sequence for row in bench.prefill().rows] == [2]


def test_a_prompt_with_a_known_beginning_computes_only_the_rest() -> None:
    bench = Bench(block_size=4)
    bench.add([*range(12), 70])
    bench.drain()
    bench.add([*range(12), 80, 81])
    assert rows(bench.prefill()) == [(1, 12, 2, True)]
    assert bench.sequences[1].cached_tokens == 12
    bench.drain()
    assert bench.answers_are_right()


def test_a_known_prompt_still_computes_its_last_token() -> None:
    bench = Bench(block_size=4)
    bench.add(list(range(8)))
    bench.drain()
    bench.add(list(range(8)))
    assert rows(bench.prefill()) == [(1, 4, 4, True)]


def test_equal_prompts_that_come_together_are_computed_once() -> None:
    bench = Bench(block_size=4)
    bench.add(*[[*range(40), 100 + i] for i in range(8)])
    while bench.scheduler.has_prefill():
        bench.prefill(16)
    assert bench.model.computed == 40 + 8
    assert [s.cached_tokens for s in bench.sequences.values()] == [0] + [40] * 7
    bench.drain()
    assert bench.answers_are_right()


def test_who_waits_for_a_shared_beginning_lets_others_pass_and_is_next_after_it() -> None:
    bench = Bench(block_size=4, max_running=3)
    shared = list(range(8))
    bench.add([*shared, 1], [*shared, 2], [50, 51], [60, 61])
    assert [row.sequence for row in bench.prefill(100).rows] == [0, 2, 3]
    bench.scheduler.finish(2)
    assert rows(bench.prefill(100)) == [(1, 8, 1, True)]


def test_the_wait_for_a_shared_beginning_ends_when_the_other_is_cancelled() -> None:
    bench = Bench(block_size=4)
    bench.add(list(range(12)), list(range(12)))
    bench.prefill(5)
    bench.scheduler.cancel(0)
    assert rows(bench.prefill(100)) == [(1, 4, 8, True)]


def test_without_free_blocks_the_newest_goes_back_and_says_the_same_in_the_end() -> None:
    bench = Bench(blocks=6, block_size=4, max_running=4)
    bench.add([1] * 7, [2] * 7, max_new_tokens=12)
    bench.drain()
    assert bench.sequences[0].preemptions == 0
    assert bench.sequences[1].preemptions > 0
    assert bench.answers_are_right()


def test_nobody_is_admitted_into_the_blocks_that_those_running_need_next() -> None:
    bench = Bench(blocks=5, block_size=4)
    bench.add([1] * 8, max_new_tokens=8)
    bench.prefill()
    bench.add([2] * 12)
    assert bench.pool.free_count == 3
    assert not bench.scheduler.has_prefill()
    bench.drain()
    assert [s.preemptions for s in bench.sequences.values()] == [0, 0]


def test_the_preempted_sequence_is_the_first_to_come_back() -> None:
    bench = Bench(blocks=5, block_size=4)
    bench.add([1] * 8, [2] * 4, max_new_tokens=8)
    bench.prefill()
    bench.add([3])
    while not bench.sequences[1].preemptions:
        bench.decode()
    bench.scheduler.finish(0)
    assert bench.prefill().rows[0].sequence == 1


def test_who_comes_back_to_all_but_the_last_token_is_not_decoded_while_a_prefill_computes_it() -> None:
    bench = Bench(blocks=4, block_size=2)
    bench.add([1], [2, 3, 4], max_new_tokens=6)
    bench.prefill()
    while not bench.sequences[1].preemptions:
        bench.decode()
    bench.scheduler.finish(0)
    step = bench.scheduler.next_prefill(100)
    assert step is not None
    assert [len(row.tokens) for row in step.rows] == [1]
    assert bench.scheduler.next_decode(100) is None
    bench.scheduler.complete(step, bench.model.run(step))
    assert bench.decode() is not None
    assert bench.sequences[1].generated == continuation([2, 3, 4], len(bench.sequences[1].generated))


def test_preemption_does_not_change_what_is_reported_as_cached() -> None:
    bench = Bench(blocks=6, block_size=4, max_running=4)
    bench.add([1] * 7, [2] * 7, max_new_tokens=12)
    bench.drain()
    assert [s.cached_tokens for s in bench.sequences.values()] == [0, 0]


def test_more_chats_than_the_budget_take_turns() -> None:
    bench = Bench(max_running=5)
    bench.add(*[[i] for i in range(5)], max_new_tokens=50)
    bench.prefill()
    for _ in range(5):  # 10 rows: two for each
        assert bench.decode(2).tokens == 2
    assert [len(s.generated) for s in bench.sequences.values()] == [3] * 5


def test_a_failed_step_can_be_asked_for_again_and_smaller() -> None:
    bench = Bench()
    bench.add(list(range(10)))
    assert bench.scheduler.next_prefill(10).tokens == 10
    assert bench.scheduler.next_prefill(5).tokens == 5
    bench.drain(budget=5)
    assert bench.answers_are_right()


def test_a_sequence_that_ends_while_its_step_runs_is_ignored_by_complete() -> None:
    bench = Bench()
    bench.add([1, 2, 3], [4, 5, 6])
    bench.prefill()
    step = bench.scheduler.next_decode(10)
    bench.scheduler.cancel(0)
    bench.scheduler.complete(step, bench.model.run(step))
    assert len(bench.sequences[0].generated) == 1
    assert len(bench.sequences[1].generated) == 2


def test_a_sequence_preempted_while_its_step_runs_is_computed_anew() -> None:
    bench = Bench(blocks=4, block_size=2)
    bench.add([1, 1], max_new_tokens=6)
    bench.prefill()
    bench.add([2, 2, 2, 2], max_new_tokens=2)
    in_flight = bench.scheduler.next_prefill(10)
    sampled = bench.model.run(in_flight)
    while not bench.sequences[1].preemptions:
        bench.decode()
    bench.scheduler.complete(in_flight, sampled)
    assert (bench.sequences[1].computed, bench.sequences[1].generated) == (0, [])
    bench.drain()
    assert bench.answers_are_right()


def test_nothing_is_scheduled_beyond_max_new_tokens() -> None:
    bench = Bench()
    bench.add([1, 2], max_new_tokens=1)
    bench.prefill()
    assert not bench.scheduler.has_decode()
    assert bench.decode() is None


def test_cancel_knows_every_place_and_minds_no_unknown_id() -> None:
    bench = Bench(max_running=1)
    bench.add([1, 2], [3, 4])
    bench.prefill()
    for sequence_id in (1, 0, 0, 99):
        bench.scheduler.cancel(sequence_id)
    assert (bench.scheduler.waiting, bench.scheduler.running) == (0, 0)
    assert bench.pool.free_count == bench.pool.num_blocks


def test_prefill_tokens_counts_what_is_left_to_compute() -> None:
    bench = Bench()
    bench.add([1] * 10, [2] * 5)
    bench.prefill(4)
    assert bench.scheduler.prefill_tokens == 11
    bench.prefill(100)
    assert bench.scheduler.prefill_tokens == 0


def test_a_sequence_that_could_never_finish_is_refused_at_once() -> None:
    bench = Bench(blocks=2, block_size=4)
    with pytest.raises(InternalError, match="may grow to 9 tokens, the KV cache holds 8"):
        bench.add([1] * 5, max_new_tokens=5)
    bench.sequences.clear()
    bench.add([1] * 5, max_new_tokens=4)
    bench.drain()


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(InternalError):
        Sequence(1, [], max_new_tokens=1)
    with pytest.raises(InternalError):
        Sequence(1, [1], max_new_tokens=0)


def test_who_was_passed_while_waiting_for_a_shared_beginning_is_again_before_those_behind() -> None:
    bench = Bench(block_size=4)
    bench.add([*range(12), 70], [*range(12), 71], [80, 81])
    bench.prefill()  # the first, and the third, which passes the second
    assert [row[0] for row in rows(bench.decode())] == [0, 2]
    bench.prefill()
    assert [row[0] for row in rows(bench.decode())] == [0, 1, 2], "the oldest first"
