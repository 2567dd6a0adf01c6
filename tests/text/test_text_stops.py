"""What the matcher of stop strings promises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger.text.stops import StopMatcher


def read(stops: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    """All that comes out, and whether a stop string was met."""
    matcher = StopMatcher(stops)
    shown, hit = "", False
    for piece in pieces:
        text, hit = matcher.push(piece)
        shown += text
    return shown + matcher.flush(), hit


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (("END",), "one END two END", ("one ", True)),
        (("END",), "nothing of it EN", ("nothing of it EN", False)),
        (("\n\n", "."), "a. b\n\n", ("a", True)),
        (("abcd", "bc"), "xabcd", ("xa", True)),
        (("bc", "abc"), "xabc", ("x", True)),
        (("aab",), "aaaab", ("aa", True)),
        (("END",), "END", ("", True)),
        ((), "free", ("free", False)),
        (("",), "free", ("free", False)),
        (("。",), "你好。再见", ("你好", True)),
    ],
)
def test_text_ends_before_the_stop_that_is_complete_first(
    stops: tuple[str, ...], text: str, expected: tuple[str, bool]
) -> None:
    assert read(stops, [text]) == expected
    assert read(stops, list(text)) == expected


def test_only_what_may_become_a_stop_is_held_back() -> None:
    matcher = StopMatcher(("</answer>",))
    assert matcher.push("so < 3 </ans") == ("so < 3 ", False)
    assert matcher.push("ured> ") == ("</ansured> ", False)
    assert matcher.push("<") == ("", False)
    assert matcher.flush() == "<"


def test_after_a_stop_nothing_more_comes() -> None:
    matcher = StopMatcher(("y", "x"))
    assert matcher.met is None
    assert matcher.push("axb") == ("a", True)
    assert matcher.met == "x"
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""


letters = st.text("ab", max_size=30)


@settings(max_examples=300, deadline=None)
@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple),
    text=letters,
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_how_the_text_is_cut_changes_nothing(stops: tuple[str, ...], text: str, cuts: list[int]) -> None:
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in zip(places, places[1:], strict=False)]
    shown, hit = read(stops, pieces)
    assert (shown, hit) == read(stops, [text])
    assert hit == any(stop in text for stop in stops)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
