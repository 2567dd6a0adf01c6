"""What the chats that run will need of the KV cache before they end."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable

_RECENT = 64  # answers that the next ones are expected to resemble
_LITTLE = 16  # tokens that an answer longer than all of those is expected to go on for
_GOLDEN = 0.6180339887  # of whose multiples any few that follow each other are spread evenly, modulo 1


class Lengths:
    """How many tokens the last answers of one model had, and so how many the next ones will have."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=_RECENT)
        self._sorted: list[int] = []

    def __bool__(self) -> bool:
        """Something is known."""
        return bool(self._recent)

    def add(self, tokens: int) -> None:
        """An answer ended after so many."""
        self._recent.append(tokens)
        self._sorted = sorted(self._recent)

    def expected(self, made: int, number: int) -> int:
        """Tokens of an answer that has `made` of them already: as many as one of the last ones that had more.

        Which one, its `number` says: chats numbered in a row are expected to end as differently as the last ones did,
        and not all at once.
        """
        shorter = bisect_right(self._sorted, made)
        longer = len(self._sorted) - shorter
        return self._sorted[shorter + int(number * _GOLDEN % 1 * longer)] if longer else made + _LITTLE


def peak(chats: Iterable[tuple[int, int]], used: int) -> int:
    """No more blocks than this are in use at any time until all these chats have ended, if each makes a token at a
    time and nobody else comes.

    When one that takes g more ends, the others have taken at most g + 1 each: their blocks do not end where its do.

    Args:
        chats: of each how many blocks it will still take, and how many it has. They give back all of them at their end.
        used: blocks that are in use now; fewer than they have together where some have the same.
    """
    held = most = longer = 0
    last = -1
    for alive, (growth, blocks) in enumerate(sorted(chats, reverse=True), 1):
        held += blocks  # of those that grow as long as this one
        if growth != last:
            longer, last = alive - 1, growth
        most = max(most, min(held, used) + alive * growth + longer)
    return most
