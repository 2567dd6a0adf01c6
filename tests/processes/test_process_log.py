"""What the log looks like and how its end is read."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lodger import log

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO \[(?P<id>[^\]]+)\] (?P<logger>[\w.]+): (?P<message>.*)")


def run_and_log(file: Path, stderr: Path) -> None:
    code = (
        "import logging, pathlib, sys; from lodger import log\n"
        "log.setup(pathlib.Path(sys.argv[1])); log.request_id.set('req-1'); logging.getLogger('lodger.x').info('hello')"
    )
    with open(stderr, "a") as output:
        subprocess.run([sys.executable, "-c", code, str(file)], stderr=output, check=True)


def test_a_line_has_time_level_request_logger_and_message(tmp_path: Path) -> None:
    file, stderr = tmp_path / "logs" / "server.log", tmp_path / "stderr"
    run_and_log(file, stderr)
    found = LINE.fullmatch(file.read_text().strip())
    assert found is not None
    assert found.groupdict() == {"id": "req-1", "logger": "lodger.x", "message": "hello"}
    assert stderr.read_text() == file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_stderr_already_gets_each_line_once(tmp_path: Path) -> None:
    file = tmp_path / "server.log"
    run_and_log(file, file)
    assert len(file.read_text().splitlines()) == 1


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"))),
       st.integers(0, 30))  # fmt: skip
def test_tail_gives_the_last_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[str], count: int) -> None:
    file = tmp_path_factory.mktemp("log") / "x.log"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert log.tail(file, count) == lines[len(lines) - min(count, len(lines)) :]


def test_tail_reads_over_its_chunks_and_not_before_its_start(tmp_path: Path) -> None:
    file = tmp_path / "x.log"
    assert log.tail(file, 5) == []
    assert log.size(file) == 0
    file.write_text("old\n" * 10)
    start = log.size(file)
    with open(file, "a") as more:
        more.write("".join(f"line {number} {'x' * 1000}\n" for number in range(500)))
    assert log.tail(file, 400)[0].startswith("line 100 ")
    assert len(log.tail(file, 10_000, since=start)) == 500
    assert len(log.tail(file, 10_000)) == 510


def test_lines_of_other_models_are_left_out_with_their_traces() -> None:
    lines = [
        "2026-01-31 12:00:00,123 INFO [-] lodger.worker: for all",
        "2026-01-31 12:00:00,123 INFO [a/1] lodger.worker: of a",
        "Traceback of a",
        "2026-01-31 12:00:00,123 INFO [b/2] lodger.worker: of b",
        "Traceback of b",
    ]
    assert log.concerning("a", lines) == lines[:3]
    assert log.concerning("b", lines) == [lines[0], *lines[3:]]


def test_a_log_that_has_grown_large_is_moved_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "_ROTATE_AT", 10)
    file = tmp_path / "x.log"
    log.rotate(file)
    file.write_text("short")
    log.rotate(file)
    assert file.exists()
    file.write_text("longer than that")
    log.rotate(file)
    assert not file.exists()
    assert (tmp_path / "x.log.1").read_text() == "longer than that"


def test_no_request_has_a_name() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "", None, None)
    assert log._add_request_id(record)
    assert record.request_id == "-"  # type: ignore[attr-defined]
