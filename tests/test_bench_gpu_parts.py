"""Parts of a run on a GPU fail alone, end in time, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu import __main__ as whole
from bench.gpu import document, folders, parts
from bench.gpu.parts import PARTS, Child, Part


def test_a_whole_run_ends_after_eight_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    begun: list[Part] = []

    class Slow:
        def __init__(self, part: Part) -> None:
            begun.append(part)

        def run(self, limit_s: float) -> dict[str, Any]:
            given.append(limit_s)
            clock[0] += limit_s
            return {"state": "out of time", "seconds": limit_s, "result": None, "said": []}

        def close(self) -> None:
            """Nobody waits for it."""

    clock = [1000.0]
    monkeypatch.setattr(whole, "Child", Slow)
    monkeypatch.setenv(parts.SHARED, "set by the run")
    monkeypatch.setattr(whole.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--commit", "given", "--out", str(tmp_path / "run.json")])
    out = whole.measure(whole.options())
    assert sum(given) <= 480
    assert len(begun) == len(PARTS), "each begins while the one before it runs"
    found = document.read(out)
    assert found
    assert found["commit"] == "given"
    assert 0 < len(found["parts"]) == len(given) < len(PARTS), "parts that found no time are not in it"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a part out of a body of code, which has `out`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(parts, "IMPORTED", ())

    def make(body: str) -> Part:
        head = "import json, subprocess, sys, time\nfrom pathlib import Path\nout = Path(sys.argv[2])\n"
        (tmp_path / "a_part.py").write_text(head + body)
        return Part("a_part", 60, "made here")

    return make


def run(part: Part, limit_s: float) -> dict[str, Any]:
    return Child(part).run(limit_s)


def test_a_part_that_ends_well(module: Any, capfd: pytest.CaptureFixture[str]) -> None:
    report = run(module("print('measuring'); out.write_text('{\"a\": 1}')"), 60)
    assert (report["state"], report["result"]) == ("ok", {"a": 1})
    assert "said" not in report
    assert capfd.readouterr().out == "measuring\n"


def test_a_part_that_fails_leaves_what_it_measured_and_what_it_said(module: Any) -> None:
    report = run(module("out.write_text('{\"a\": 1}'); raise ValueError('in the middle')"), 60)
    assert (report["state"], report["result"]) == ("failed", {"a": 1})
    assert report["said"][-1] == "ValueError: in the middle"


@pytest.mark.parametrize("apart", [False, True], ids=["", "in a session of their own"])
def test_a_part_that_hangs_is_ended_with_its_children(apart: bool, module: Any) -> None:
    body = f"child = subprocess.Popen(['sleep', '600'], start_new_session={apart}); "
    started = time.monotonic()
    report = run(module(body + "out.write_text(json.dumps(child.pid)); time.sleep(600)"), 2)
    assert time.monotonic() - started < 30
    assert report["state"] == "out of time"
    status = Path(f"/proc/{report['result']}/stat")
    assert not status.exists() or ") Z " in status.read_text()


def test_a_part_waits_for_its_turn_and_may_be_left_out(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it imports is not in the time that it takes."""
    part = module("out.write_text(json.dumps('late' in sys.modules))")
    folder = Path(os.environ["PYTHONPATH"])
    (folder / "late.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.done').touch()\n")
    monkeypatch.setattr(parts, "IMPORTED", ("late",))
    wanted, unwanted = Child(part), Child(part)
    while not (folder / "late.done").exists():
        time.sleep(0.01)
    report = wanted.run(60)
    assert (report["state"], report["result"]) == ("ok", True)
    unwanted.close()
    assert unwanted._process.returncode is not None
    assert not unwanted._out.exists()


def test_a_signal_ends_the_part_and_keeps_what_it_measured(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "out.write_text('[1]'); print('written'); time.sleep(600)"
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(parts.STOPPED))
    monkeypatch.setattr(parts, "print", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM), raising=False)
    try:
        report = run(module(body), 60)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (report["state"], report["result"]) == ("stopped", [1])
    assert report["seconds"] < 30


def test_the_folders_of_a_whole_run_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def write(place: Path) -> dict[str, Path]:
        assert not any((place / name).exists() for name in folders.NAMES)
        for name in folders.NAMES:
            (place / name).mkdir()
        written.append(place)
        return {name: place / name for name in folders.NAMES}

    monkeypatch.setattr(folders, "write_folders", write)
    monkeypatch.setenv(parts.SHARED, str(tmp_path))
    (tmp_path / "chat").mkdir()  # by a part that was ended
    for _ in range(2):
        with folders.full_size() as found:
            assert found["emb"] == tmp_path / "emb"
    assert written == [tmp_path]
    monkeypatch.delenv(parts.SHARED)
    with folders.full_size() as found:
        assert found["emb"].parent != tmp_path
    assert not found["emb"].exists(), "its own are gone with it"
