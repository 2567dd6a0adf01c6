"""Whom the scheduler lets in, and when: as many as can stay, in the order in which they came."""

from __future__ import annotations

import pytest
from scheduler_bench import Bench


def warm(bench: Bench, max_new_tokens: int) -> None:
    """Answers of this length have been seen."""
    for _ in range(8):
        bench.add([9], max_new_tokens=max_new_tokens)
        bench.drain()


def preempted(bench: Bench) -> int:
    return sum(sequence.preemptions for sequence in bench.sequences.values())


@pytest.mark.parametrize("told", [8, 60], ids=["a limit that is reached", "a limit that says nothing"])
def test_a_crowd_is_let_in_as_far_as_it_can_stay(told: int) -> None:
    """Twelve at once of 8 + 8 tokens, 4 blocks each in the end, 20 blocks: five can stay."""

    def crowd(seen: bool) -> Bench:
        bench = Bench(blocks=20, block_size=4, max_running=16)
        if seen:
            warm(bench, 8)
        bench.add(*[[20 + n] * 8 for n in range(12)], max_new_tokens=told)
        first = bench.prefill()
        assert first is not None
        assert len(first.rows) == (5 if seen else 7)
        while bench.scheduler.running or bench.scheduler.waiting:
            for sequence in bench.sequences.values():
                if sequence.blocks and len(sequence.generated) >= 8:
                    bench.scheduler.finish(sequence.id)
            bench.decode()
            bench.prefill()
        return bench

    assert preempted(crowd(seen=True)) == 0
    assert preempted(crowd(seen=False)) > 0


def test_the_last_few_do_not_wait_to_run_alone() -> None:
    bench = Bench(blocks=20, block_size=4, max_running=16)
    warm(bench, 8)
    bench.add(*[[20 + n] * 8 for n in range(6)], max_new_tokens=8)
    assert len(bench.prefill().rows) == 6, "one more than can stay, and none after it"
    bench.drain()
    assert preempted(bench) == 1
    assert bench.answers_are_right()


def test_a_long_prompt_is_let_in_though_short_ones_come_without_end() -> None:
    bench = Bench(blocks=20, block_size=4, max_running=16)
    warm(bench, 8)
    bench.add(*[[20 + n] * 8 for n in range(7)], max_new_tokens=8)
    bench.prefill()
    bench.add([11] * 60, max_new_tokens=8)
    long = bench.sequences[max(bench.sequences)]
    for turn in range(60):
        bench.add([100 + turn, 1, 2], [200 + turn, 1, 2], max_new_tokens=8)
        bench.decode()
        for sequence in bench.sequences.values():
            if sequence.exhausted and sequence.blocks:
                bench.scheduler.finish(sequence.id)
        bench.prefill()
        if long.blocks:
            return
        assert not any(s.computed for s in bench.sequences.values() if s.arrival > long.arrival), "nobody passes"
    raise AssertionError("it starves")


def test_who_would_end_after_another_is_let_in_before_its_end_once_they_need_no_more_than_there_is() -> None:
    bench = Bench(blocks=20, block_size=4, max_running=16)
    warm(bench, 40)
    bench.add([20] * 8, [21] * 8, max_new_tokens=41)  # 12 blocks each in the end
    first, second = list(bench.sequences.values())[-2:]
    bench.add([22] * 60)  # has no room beside them
    assert len(bench.prefill().rows) == 1
    for _ in range(40):
        if not second.blocks:
            bench.decode()
            bench.prefill()
    assert 16 < len(first.generated) < 32
    bench.drain()
    assert preempted(bench) == 0


def test_what_others_will_need_is_asked_again_when_one_of_them_leaves() -> None:
    bench = Bench(blocks=20, block_size=4, max_running=16)
    warm(bench, 8)
    bench.add(*[[20 + n] * 8 for n in range(12)], max_new_tokens=8)
    bench.prefill()
    assert not bench.scheduler.has_prefill()
    running = next(s for s in bench.sequences.values() if s.blocks)
    bench.scheduler.cancel(running.id)
    assert len(bench.prefill().rows) == 1
