"""How far a set of files is: told once at its end, however often somebody says that it is there."""

from __future__ import annotations

import pytest

from lodger.hub import bars
from lodger.hub.bars import Bar
from lodger.hub.base import Work


def test_the_end_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "INTERVAL", 0.0)
    told: list[Work] = []
    whole = Bar("model", 10, told.append)
    part = whole.part("weights", 10)
    part.advance(4)
    part.advance(6)
    part.move_to(10)
    whole.advance(0)
    assert told.count(Work("model", 10, 10)) == told.count(Work("model/weights", 10, 10)) == 1
    assert Work("model", 0, 10) in told
