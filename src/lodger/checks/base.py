"""`Check`: one fact about this machine, beside what it should be."""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["ok", "warn", "fail"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `lodger doctor`. `warn`: works, but not as one would like; `fail`: cannot work."""

    name: str
    state: State
    measured: str
    expected: str = ""
    hint: str | None = None  # what to do; only where the state is not ok
