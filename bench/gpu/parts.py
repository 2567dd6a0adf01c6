"""The parts of `python -m bench.gpu`: one row each, one process each with a time limit of its own.

A part is a module that `python -m MODULE --out FILE` runs (see `part.py`). It prints as it goes and writes FILE, best
after every case, so that a part that fails or runs out of time leaves what it had measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parent.parent.parent
_CHILD = (sys.executable, "-m", "lodger.process")  # which dies with its parent
SHARED = "LODGER_BENCH_FOLDERS"  # in the environment of a whole run's parts: where they have their models' folders
STOPPED = 143  # what a shell calls the end by SIGTERM
IMPORTED = ("transformers", "triton", "lodger.engines.native")  # by every part, before it may begin: for 10 s
TAIL = 12  # lines kept of what a failed part said


@dataclass(frozen=True)
class Part:
    module: str
    limit_s: int
    about: str
    arguments: tuple[str, ...] = ()
    reads_text: bool = False  # and so takes --tokenizer FILE


STREAMS = ("1", "8", "32", "128", "256")

# In the order of a whole run, which ends after 8 minutes: what is cheap and what most depends on first. A part has a
# fifth more time than it took on an H100 with 16 cores, imports not counted.
PARTS: dict[str, Part] = {
    "limits": Part("bench.gpu.limits", 10, "the card's own limits: copies and matrix products"),
    "encode": Part("bench.gpu.encode", 32, "2,048 texts and pairs through XLM-RoBERTa large's shape"),
    "lanes": Part("bench.gpu.lanes", 50, "chats, a book and reranks on one card, in one process and in three"),
    "memory": Part("bench.gpu.memory", 64, "planned and measured bytes of three models in five budgets"),
    "budget": Part("bench.gpu.budget", 34, "128 chats while three models share 11.2 GiB"),
    "decode": Part("bench.gpu.decode", 90, "chats of Qwen3-4B's shape, 1 to 256 at once", ("--streams", *STREAMS)),
    "decode-int8": Part(
        "bench.gpu.decode", 60, "the same with weights of one byte", ("--int8", "--streams", "1", "32", "128", "256")
    ),
    "sleep": Part("bench.gpu.sleep", 36, "a model that sleeps and wakes"),
    "start": Part("bench.gpu.start", 80, "from `lodger up` to three models that have answered"),
    "soak": Part("bench.gpu.soak", 90, "20,000 mixed requests, and what the card holds before and after"),
    "http": Part(
        "bench.gpu.http", 70, "chats through HTTP beside the engine alone", ("--streams", "8", "128", "--texts"), True
    ),
    "w8a16": Part("bench.gpu.w8a16", 20, "products with weights of one byte"),
    "attention": Part("bench.gpu.attention", 20, "attention of one layer"),
    "checks": Part("bench.gpu.checks", 75, "every kernel against float32: the tests that need a GPU"),
}


class Child:
    """A part in a process of its own, which imports what it will need, and waits for `run`."""

    def __init__(self, part: Part) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._out = Path(self._folder.name) / "raw.json"
        command = [*_CHILD, str(os.getpid()), "bench.gpu.ahead", ",".join(IMPORTED), part.module]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._process: subprocess.Popen[str] = subprocess.Popen(
            [*command, "--out", str(self._out), *part.arguments],
            cwd=ROOT, env=_environment(), start_new_session=True, text=True, **pipes,
        )  # fmt: skip

    def run(self, limit_s: float) -> dict[str, Any]:
        """Let it go, and end it with all its children after `limit_s`.

        Returns: state ("ok", "failed", "out of time", or "stopped" by a signal to us), seconds, result (its raw
        numbers; None if it wrote none), and where it is not ok the last lines that it said.
        """
        started = time.monotonic()
        try:
            code, said = self._watch(limit_s)
        except SystemExit:
            code, said = STOPPED, ["a signal ended the run"]
        seconds = time.monotonic() - started
        state = {0: "ok", STOPPED: "stopped"}.get(code, "out of time" if seconds >= limit_s else "failed")
        report = {"state": state, "seconds": round(seconds, 1), "limit_s": limit_s, "result": _raw(self._out)}
        self.close()
        return report if state == "ok" else report | {"said": said}

    def close(self) -> None:
        """End it, wherever it is."""
        if self._process.poll() is None:
            _end(self._process.pid)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()
        self._folder.cleanup()

    def _watch(self, limit_s: float) -> tuple[int, list[str]]:
        """Exit code and last lines of it, which are heard while it runs."""
        said: deque[str] = deque(maxlen=TAIL)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        end = threading.Timer(limit_s, _end, (self._process.pid,))
        end.start()
        try:
            with suppress(BrokenPipeError):  # it has failed already, and said why
                self._process.stdin.write("go\n")
                self._process.stdin.flush()
            for line in self._process.stdout:
                print(line, end="", flush=True)
                said.append(line.rstrip())
            return self._process.wait(), list(said)
        finally:
            end.cancel()


def _end(pid: int) -> None:
    """This child and all of its own, also those in sessions of their own: a server that nobody stops holds the card."""
    with suppress(psutil.NoSuchProcess):
        child = psutil.Process(pid)
        family = [child, *child.children(recursive=True)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family[1:], timeout=10)


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
