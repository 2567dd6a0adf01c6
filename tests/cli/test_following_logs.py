"""Following a log by looking at its end again and again: every line is shown once, however many came."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lodger.cli.logs import fresh


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 20))
def test_each_new_line_is_shown_once(before: int, new: int, window: int) -> None:
    lines = [f"line {n}" for n in range(before + new)]
    seen, now = lines[:before][-window:], lines[-window:]
    assert fresh(seen, now) == lines[max(before, len(lines) - window) :]


def test_repeated_lines_are_not_taken_for_old_ones() -> None:
    assert fresh(["x", "x"], ["x", "x", "x"]) == ["x"]
    assert fresh(["a", "b", "a"], ["b", "a", "b", "a"]) == ["b", "a"]


def test_a_log_that_was_moved_aside_starts_again() -> None:
    assert fresh(["old 1", "old 2"], ["new 1"]) == ["new 1"]
    assert fresh([], ["first"]) == ["first"]
    assert fresh(["only"], []) == []
