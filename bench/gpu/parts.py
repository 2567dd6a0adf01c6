"""The parts of `python -m bench.gpu`: one row each, one process each with a time limit of its own.

A part is a module that `python -m MODULE --out FILE` runs (see `part.py`). It prints as it goes and writes FILE, best
after every case, so that a part that fails or runs out of time leaves what it had measured.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
_CHILD = (sys.executable, "-m", "lodger.process")  # which dies with its parent
TAIL = 12  # lines kept of what a failed part said


@dataclass(frozen=True)
class Part:
    module: str
    limit_s: int
    about: str
    arguments: tuple[str, ...] = ()


# In the order of a whole run; all limits together are within 8 minutes.
PARTS: dict[str, Part] = {
    "limits": Part("bench.gpu.limits", 30, "the card's own limits: copies and matrix products"),
    "decode": Part("bench.gpu.decode", 90, "chats of Qwen3-4B's shape, 1 to 256 at once"),
    "attention": Part("bench.gpu.attention", 45, "attention of one layer"),
    "w8a16": Part("bench.gpu.w8a16", 45, "products with weights of one byte"),
    "sleep": Part("bench.gpu.sleep", 60, "a model that sleeps and wakes"),
}


def run(part: Part, limit_s: float) -> dict[str, Any]:
    """One part in a process of its own, ended with all its children after `limit_s`.

    Returns: state ("ok", "failed" or "out of time"), seconds, result (its raw numbers; None if it wrote none), and
    where it is not ok the last lines that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "raw.json"
        started = time.monotonic()
        code, said = _watch([*_CHILD, str(os.getpid()), part.module, "--out", str(out), *part.arguments], limit_s)
        seconds = time.monotonic() - started
        state = "ok" if code == 0 else "out of time" if seconds >= limit_s else "failed"
        report = {"state": state, "seconds": round(seconds, 1), "limit_s": limit_s, "result": _raw(out)}
        return report if state == "ok" else report | {"said": said}


def _watch(command: list[str], limit_s: float) -> tuple[int, list[str]]:
    """Exit code and last lines of a command, which is heard while it runs."""
    said: deque[str] = deque(maxlen=TAIL)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=_environment(), start_new_session=True, **pipes) as child:
        assert child.stdout is not None
        end = threading.Timer(limit_s, os.killpg, (child.pid, signal.SIGKILL))
        end.start()
        try:
            for line in child.stdout:
                print(line, end="", flush=True)
                said.append(line.rstrip())
        finally:
            end.cancel()
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
        return child.wait(), list(said)


def _environment() -> dict[str, str]:
    """This one's, with our folders importable: a part may start servers from this checkout."""
    paths = [str(ROOT / "src"), str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _raw(out: Path) -> Any:
    """What the part wrote; None if that is nothing whole."""
    try:
        return json.loads(out.read_text())
    except (OSError, ValueError):
        return None
