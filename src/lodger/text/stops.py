"""`StopMatcher`: end a text that arrives in pieces before the first stop string."""

from __future__ import annotations


class StopMatcher:
    """Text up to the stop string that is complete first; of two that end together, before the longer one.

    Only what may still become a stop string is held back, and how the text is cut into pieces changes nothing in what
    comes out in all.

    Attributes:
        met: the stop string that ended the text.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.met: str | None = None

    def push(self, text: str) -> tuple[str, bool]:
        """What can be shown now, and whether a stop string was met. After that nothing more comes."""
        if self.met is not None:
            return "", True
        self._held += text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            _, at, self.met = min(found)
            return self._release(at), True
        return self._release(len(self._held) - self._unsure()), False

    def flush(self) -> str:
        """The text has ended: what was held back, which is nothing after a stop."""
        return "" if self.met is not None else self._release(len(self._held))

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _unsure(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = max(map(len, self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
