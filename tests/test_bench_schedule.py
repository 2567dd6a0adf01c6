"""What the scheduler's decisions cost, by the simulation of them: with the real lane, and no device."""

from __future__ import annotations

import pytest

from bench import schedule


@pytest.mark.parametrize("name", ["128-tight", "128-tight-no-limits", "128-unlike-tight"])
def test_a_crowd_that_does_not_fit_loses_nothing_to_the_order_in_which_it_is_let_in(name: str) -> None:
    found = schedule.play(schedule.SCENES[name])
    assert (found["put back"], found["tokens again"]) == (0, 0)
    assert found["gap max"] < 100, "ms: nobody who has begun pauses for longer than for two steps of prompts"
    if name != "128-unlike-tight":
        assert found["decode steps"] < 2 * 127 + 12, "two waves and what it takes to let them in"


def test_what_is_not_known_yet_is_learned() -> None:
    assert schedule.play(schedule.SCENES["128-tight"], rounds=1)["put back"] > 0


def test_long_prompts_beside_chats_do_not_hold_them_up() -> None:
    found = schedule.play(schedule.SCENES["long-beside"])
    assert found["gap max"] < 15
    assert found["first p99"] < 400
