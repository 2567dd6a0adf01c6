"""Marks in a text that arrives in pieces: where the first is, and what may still become one."""

from __future__ import annotations

from collections.abc import Sequence


def first_mark(text: str, marks: Sequence[str]) -> tuple[int, str] | None:
    """Offset of the mark that begins first, and the mark itself: of two that begin together the longer one."""
    found = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark)) >= 0]
    return (min(found)[0], min(found)[2]) if found else None


def sure(text: str, marks: Sequence[str]) -> int:
    """How many characters of `text`, which holds no mark, stand before what may become white space and a mark."""
    longest = max(map(len, marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            text = text[:-length]
            break
    return len(text.rstrip())
