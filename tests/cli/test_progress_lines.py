"""Where there is no terminal, long work says a line now and then, and no more than a log can bear."""

from __future__ import annotations

import pytest

from lodger.cli import progress
from lodger.cli.progress import reporting
from lodger.hub.base import Work
from lodger.units import GIB


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set in its first item."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_slow_download_is_told_by_twentieths(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with reporting() as report:
        for done in range(1001):
            clock[0] += 1.0
            report(Work("bge", done * GIB // 1000, GIB))
            report(Work("bge/model.safetensors", done * GIB // 1000, GIB))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "bge: 0% of 1.00 GiB, 1 MiB/s, 995 s left"  # soon, so that everyone sees it moves
    assert lines[1] == "bge: 6% of 1.00 GiB, 1 MiB/s, 944 s left"
    assert lines[-1] == "bge: 1.00 GiB in 1000 s"
    assert len(lines) <= 22


def test_a_fast_one_is_told_once(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with reporting() as report:
        for done in range(101):
            clock[0] += 0.01
            report(Work("Checking bge", done, 100))
    assert capsys.readouterr().err == "Checking bge: 100 B in 1 s\n"


def test_what_goes_on_from_an_earlier_time_counts_only_what_came_now(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with reporting() as report:
        report(Work("bge", GIB // 2, GIB))
        clock[0] += 10
        report(Work("bge", GIB // 2 + GIB // 4, GIB))
    assert capsys.readouterr().err == "bge: 75% of 1.00 GiB, 26 MiB/s, 10 s left\n"


def test_nothing_to_do_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    with reporting() as report:
        report(Work("bge", 7, 7))
    assert capsys.readouterr().err == ""
