"""How far a set of files is, told not more often than anyone can look."""

from __future__ import annotations

import threading
import time

from lodger.hub.base import Report, Work

INTERVAL = 0.2  # seconds between two tellings of one bar


class Bar:
    """Bytes done of something, with a part of its own for each file. Used by several threads."""

    def __init__(self, title: str, total: int, report: Report, *, done: int = 0, whole: Bar | None = None) -> None:
        self._title, self._total, self._done = title, total, done
        self._report, self._whole = report, whole
        self._lock = threading.RLock()
        self._told = float("-inf")
        self.advance(0)

    def part(self, name: str, total: int) -> Bar:
        """A file of the set."""
        return Bar(f"{self._title}/{name}", total, self._report, whole=self)

    def advance(self, count: int) -> None:
        with self._lock:
            self.move_to(self._done + count)

    def move_to(self, done: int) -> None:
        with self._lock:  # of a part before that of its whole, never the other way round
            done = min(max(0, done), self._total)
            count, self._done = done - self._done, done
            now = time.monotonic()
            news = count != 0 or self._told == float("-inf")
            if news and (now - self._told >= INTERVAL or done == self._total):
                self._told = now
                self._report(Work(self._title, done, self._total))
            if self._whole:
                self._whole.advance(count)
