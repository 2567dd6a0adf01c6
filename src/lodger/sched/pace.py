"""`Pace`: how much other work may run between two tokens of the chats, by the time that it takes.

Bound: let a lane's speed not fall below the one it was last measured at (twice, where that was by more than half), and
a chat's token take no longer than measured. Then micro-steps of `budget` tokens take at most `pause_ms`, unless a lane
cannot cut its work so small.
"""

from __future__ import annotations

from lodger.sched.arbiter import SMALLEST_STEP, micro_step_tokens

INTERVAL_MS = 6.8  # wanted between two tokens of a chat while other work runs
LEAST_SHARE = 0.5  # of the time that decoding takes: other work gets so much even where no interval is left for it
_ODD = 2  # times slower than known, and not believed at once
_MEMORY = 0.75  # of what was known in what is known after one more measurement


def pause_ms(decode_ms: float) -> float:
    """Time for other work between two decode steps that take `decode_ms` each."""
    return max(INTERVAL_MS - decode_ms, LEAST_SHARE * decode_ms)


class Pace:
    """What was measured on one device, in milliseconds and tokens of whole forwards."""

    def __init__(self) -> None:
        self._decode_ms: float | None = None
        self._rates: dict[str, float] = {}  # lane -> tokens per millisecond
        self._odd: set[str] = set()  # lanes whose last measurement was not believed

    def decoded(self, ms: float) -> None:
        """One decode step of every running chat took `ms`."""
        self._decode_ms = _after(self._decode_ms, ms)

    def ran(self, lane: str, tokens: float, ms: float) -> None:
        """A micro-step of so many tokens took `ms`. A slower lane is believed at once, a faster one by and by; one that
        is much slower only if it is so twice in a row: once, it was the host that was held up."""
        if tokens <= 0 or ms <= 0:
            return
        rate, known = tokens / ms, self._rates.get(lane)
        odd = known is not None and rate < known / _ODD and lane not in self._odd
        (self._odd.add if odd else self._odd.discard)(lane)
        if not odd:
            self._rates[lane] = min(rate, _after(known, rate))

    def budget(self, lane: str, step_tokens: int) -> int:
        """Tokens of a micro-step beside chats; a share of a full step where nothing has been measured yet."""
        if self._decode_ms is None or lane not in self._rates:
            return micro_step_tokens(True, step_tokens)
        wanted = int(self._rates[lane] * pause_ms(self._decode_ms))
        return min(max(wanted, SMALLEST_STEP), step_tokens)


def _after(before: float | None, measured: float) -> float:
    return measured if before is None else _MEMORY * before + (1 - _MEMORY) * measured
