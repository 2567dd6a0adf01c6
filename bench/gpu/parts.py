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
STOPPED = 143  # what a shell calls the end by SIGTERM
TAIL = 12  # lines kept of what a failed part said


@dataclass(frozen=True)
class Part:
    module: str
    limit_s: int
    about: str
    arguments: tuple[str, ...] = ()
    reads_text: bool = False  # and so takes --tokenizer FILE


STREAMS = ("1", "8", "32", "128", "256")

# In the order of a whole run, which ends after 8 minutes even where each part uses its limit up.
PARTS: dict[str, Part] = {
    "limits": Part("bench.gpu.limits", 30, "the card's own limits: copies and matrix products"),
    "decode": Part("bench.gpu.decode", 120, "chats of Qwen3-4B's shape, 1 to 256 at once", ("--streams", *STREAMS)),
    "encode": Part("bench.gpu.encode", 50, "2,048 texts and pairs through XLM-RoBERTa large's shape"),
    "lanes": Part("bench.gpu.lanes", 50, "chats, a book and reranks on one card, in one process and in three"),
    "budget": Part("bench.gpu.budget", 45, "128 chats while three models share 11.2 GiB"),
    "decode-int8": Part(
        "bench.gpu.decode", 100, "the same with weights of one byte", ("--int8", "--streams", "1", "32", "128", "256")
    ),
    "http": Part(
        "bench.gpu.http", 70, "chats through HTTP beside the engine alone", ("--streams", "8", "128", "--texts"), True
    ),
    "memory": Part("bench.gpu.memory", 80, "planned and measured bytes of three models in five budgets"),
    "start": Part("bench.gpu.start", 60, "from `lodger up` to three models that have answered"),
    "sleep": Part("bench.gpu.sleep", 40, "a model that sleeps and wakes"),
    "soak": Part("bench.gpu.soak", 80, "20,000 mixed requests, and what the card holds before and after"),
    "w8a16": Part("bench.gpu.w8a16", 30, "products with weights of one byte"),
    "attention": Part("bench.gpu.attention", 30, "attention of one layer"),
    "checks": Part("bench.gpu.checks", 120, "every kernel against float32: the tests that need a GPU"),
}


def run(part: Part, limit_s: float) -> dict[str, Any]:
    """One part in a process of its own, ended with all its children after `limit_s`.

    Returns: state ("ok", "failed", "out of time", or "stopped" by a signal to us), seconds, result (its raw numbers;
    None if it wrote none), and where it is not ok the last lines that it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "raw.json"
        started = time.monotonic()
        try:
            code, said = _watch([*_CHILD, str(os.getpid()), part.module, "--out", str(out), *part.arguments], limit_s)
        except SystemExit:
            code, said = STOPPED, ["a signal ended the run"]
        seconds = time.monotonic() - started
        state = {0: "ok", STOPPED: "stopped"}.get(code, "out of time" if seconds >= limit_s else "failed")
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
