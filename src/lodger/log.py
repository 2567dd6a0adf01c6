"""Log lines, the same in every process: ``2026-01-31 12:00:00,123 INFO [request id] lodger.worker: message``.

The gateway writes to stderr and to its file; a worker writes to stderr, which is its file.
"""

from __future__ import annotations

import logging
import os
import sys
from contextvars import ContextVar
from pathlib import Path

_FORMAT = "%(asctime)s %(levelname)s [%(request_id)s] %(name)s: %(message)s"
_ROTATE_AT = 16 * 2**20
_CHUNK = 64 * 1024
_TIME = len("2026-01-31 12:00:00,123")

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""What the current task works for: an HTTP request's id in the gateway, model and request number in a worker."""


def setup(file: Path | None = None) -> None:
    """Send the log to stderr, and to `file` too unless stderr is that file already (as in ``lodger up -d``)."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None and not _is_stderr(file):
        rotate(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
        handler.addFilter(_add_request_id)
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)


def rotate(file: Path) -> None:
    """Move a log that has grown past 16 MiB aside, to ``NAME.1``. Call it only while nobody writes to it."""
    if file.exists() and file.stat().st_size > _ROTATE_AT:
        file.replace(file.with_name(file.name + ".1"))


def size(file: Path) -> int:
    """Bytes in the log now, to read later only what comes after (`tail`'s `since`)."""
    return file.stat().st_size if file.exists() else 0


def tail(file: Path, lines: int, *, since: int = 0) -> list[str]:
    """The last `lines` lines of a log, none from before byte `since`; an absent file has none."""
    if lines <= 0 or not file.exists():
        return []
    with open(file, "rb") as stream:
        start = stream.seek(0, os.SEEK_END)
        data = b""
        while start > since and data.count(b"\n") <= lines:
            step = min(_CHUNK, start - since)
            start = stream.seek(start - step)
            data = stream.read(step) + data
    return data.decode("utf-8", errors="replace").splitlines()[-lines:]


def concerning(subject: str, lines: list[str]) -> list[str]:
    """Those of `lines` that are about `subject` (a model's uid) or about nothing in particular."""
    kept, keep = [], True
    for line in lines:
        tag = _tag(line)
        if tag is not None:  # a line without a tag goes on with the one before it, as a trace does
            keep = tag in ("-", subject)
        if keep:
            kept.append(line)
    return kept


def without_info(lines: list[str]) -> list[str]:
    """What tells of trouble: warnings, errors, and what is no line of ours."""
    return [line for line in lines if _tag(line) is None or line.split(" ", 3)[2] != "INFO"]


def in_order(logs: list[list[str]]) -> list[str]:
    """Several logs as one, by time; a line that is not one of ours stays with the one before it."""
    timed: list[tuple[str, str]] = []
    for lines in logs:
        time = ""
        for line in lines:
            if _tag(line) is not None:
                time = line[:_TIME]
            timed.append((time, line))
    return [line for _, line in sorted(timed, key=lambda pair: pair[0])]


def _tag(line: str) -> str | None:
    """What a worker's log line is about: "bge-m3" of ``[bge-m3/12]``; None for a line that is not one of ours."""
    parts = line.split(" ", 4)
    if len(parts) < 5 or not parts[3].startswith("["):
        return None
    return parts[3].strip("[]").partition("/")[0]


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


def _is_stderr(file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(sys.stderr.fileno()), file.stat())
    except (OSError, ValueError):
        return False
