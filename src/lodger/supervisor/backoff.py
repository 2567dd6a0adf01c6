"""How long to wait before a worker that died is started again. Pure."""

from __future__ import annotations

from typing import NamedTuple

FIRST, LONGEST = 0.5, 30.0  # seconds
HEALTHY = 60.0  # seconds after which an earlier death no longer counts


class Backoff(NamedTuple):
    """Deaths in a row without a healthy minute between them."""

    deaths: int = 0

    def after(self, uptime: float) -> Backoff:
        """One more death, after `uptime` seconds of taking requests."""
        return Backoff(1 if uptime >= HEALTHY else self.deaths + 1)

    @property
    def seconds(self) -> float:
        return min(LONGEST, FIRST * 2 ** min(self.deaths - 1, 10)) if self.deaths else 0.0
