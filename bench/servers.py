"""How each server is started for a comparison: its command, its environment, and when its three models answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from bench import footprint, peer_xinference

READY_SECONDS = 600
STOP_SECONDS = 60


@dataclass(frozen=True)
class Server:
    """A server that a comparison starts itself."""

    command: list[str]
    environment: dict[str, str]
    python: str  # the interpreter of its environment, asked for versions
    port: int
    prepare: Callable[[str], None] = field(default=lambda url: None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def lodger(models: Path, home: Path, port: int, dtype: str | None = None) -> Server:
    """Lodger of this environment, with a lodger.yaml that names the three folders."""
    lines = ["models:"]
    for uid in ("chat", "emb", "rerank"):
        lines += [f"  {uid}:", f"    path: {models / uid}", *([f"    dtype: {dtype}"] if dtype else [])]
    wanted = home / "lodger.yaml"
    wanted.write_text("\n".join(lines) + "\n")
    program = str(Path(sys.executable).parent / "lodger")
    command = [program, "up", "--file", str(wanted), "--home", str(home), "--port", str(port)]
    return Server(command, dict(os.environ), sys.executable, port)


def xinference(venv: Path, models: Path, home: Path, port: int) -> Server:
    return Server(
        peer_xinference.command(venv, port),
        peer_xinference.environment(home),
        str(venv / "bin" / "python"),
        port,
        lambda url: peer_xinference.prepare(url, models),
    )


_QUESTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/embeddings", {"model": "emb", "input": "hello"}),
    ("/v1/rerank", {"model": "rerank", "query": "hello", "documents": ["one", "two"]}),
    ("/v1/chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}),
)


def wait_answering(url: str, alive: Callable[[], bool]) -> None:
    """Until a real request to each of the three models has been answered.

    Raises:
        RuntimeError: the server ended, or it took longer than READY_SECONDS.
    """
    deadline = time.monotonic() + READY_SECONDS
    for path, body in _QUESTIONS:
        while not _answers(url + path, body):
            if not alive() or time.monotonic() > deadline:
                raise RuntimeError(f"{url}{path} never answered; see the server's log")
            time.sleep(0.05)


def _answers(address: str, body: dict[str, Any]) -> bool:
    try:
        return httpx.post(address, json=body, timeout=READY_SECONDS).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def running(server: Server, log: Path) -> Iterator[dict[str, Any]]:
    """Start it, time it until three models answer, and stop all of it in the end. Yields what was measured."""
    with log.open("wb") as output:
        started = time.monotonic()
        process = subprocess.Popen(
            server.command, env=server.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            server.prepare(server.url)
            wait_answering(server.url, lambda: process.poll() is None)
            seconds = time.monotonic() - started
            yield {"start_s": round(seconds, 2), "pid": process.pid, "loaded": footprint.memory(process.pid)}
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the group that we started; what is left of it after a minute is killed."""
    for how, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, STOP_SECONDS)):
        try:
            os.killpg(process.pid, how)
            process.wait(patience)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
