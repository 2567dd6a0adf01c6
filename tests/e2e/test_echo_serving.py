"""Servers in the foreground: signals, keys, and what is left when one is killed. Each test has a server of its own."""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from installed import Installed, installed, left

from lodger.client import Client
from lodger.errors import KeyRequired, LodgerError
from lodger.process import Identity, alive

Tiny = Callable[..., Path]
PATIENCE = 120.0  # seconds


@pytest.fixture
def lodger(tmp_path: Path, tiny: Tiny) -> Iterator[Installed]:
    with installed(tmp_path) as command:
        command.write_config({"chat": tiny("qwen3", max_position_embeddings=32_768)})
        yield command


@contextmanager
def running(lodger: Installed, *args: str) -> Iterator[subprocess.Popen[str]]:
    """`lodger ARGS` until the block ends, its stdout and stderr as one stream."""
    command = [lodger.script, *args, "--port", "0", "--engine", "echo"]
    with subprocess.Popen(
        command, env=lodger.env, cwd=lodger.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        watchdog = threading.Timer(PATIENCE, process.kill)  # who waits for a line in vain is told, and does not hang
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def until(process: subprocess.Popen[str], *words: str) -> str:
    """What it prints up to the line by which all of `words` have been said, in any order."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if all(word in said for word in words):
            return said
    raise AssertionError(f"it ended without saying {words!r}:\n{said}")


def long_answer(lodger: Installed, tokens: int) -> Iterator[dict[str, Any]]:
    """A streamed reply of so many tokens, 2 ms each, whose first words are there already."""
    body = {"model": "chat", "prompt": "word", "max_tokens": tokens, "ignore_eos": True, "stream": True}
    events = lodger.client.stream("/v1/completions", body)
    next(events)
    return events


def test_up_in_the_foreground_checks_and_serves_until_ctrl_c(lodger: Installed) -> None:
    with running(lodger, "up") as process:
        said = until(process, "Serving until Ctrl-C")
        assert "ok     chat (chat)" in said
        processes = lodger.processes()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in said + rest
    assert left(processes) == []


def test_serve_starts_the_files_models_and_ends_cleanly_on_sigterm(lodger: Installed) -> None:
    with running(lodger, "serve", "-f", "lodger.yaml") as process:
        until(process, "serves at", "chat on cpu: loading -> ready")
        processes = lodger.processes()
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in rest
    assert left(processes) == []
    assert not (lodger.home / "run" / "server.json").exists()


def test_a_second_signal_does_not_wait_for_running_answers(lodger: Installed) -> None:
    with running(lodger, "serve", "-f", "lodger.yaml") as process:
        until(process, "serves at", "chat on cpu: loading -> ready")
        events = long_answer(lodger, 30_000)  # a minute
        process.send_signal(signal.SIGTERM)
        until(process, "Stopping: running requests may finish")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=15)
    assert process.returncode == 0
    with pytest.raises(LodgerError):
        list(events)


def test_a_draining_server_says_so_to_new_requests(lodger: Installed) -> None:
    with running(lodger, "serve", "-f", "lodger.yaml") as process:
        until(process, "serves at", "chat on cpu: loading -> ready")
        client = lodger.client
        events = long_answer(lodger, 2_000)
        process.send_signal(signal.SIGTERM)
        until(process, "Stopping: running requests may finish")
        with pytest.raises(LodgerError, match="stopping"):
            client.post("/v1/completions", {"model": "chat", "prompt": "x"})
        assert len(list(events)) > 1000  # what runs is finished
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_killed_server_takes_its_worker_along_and_the_next_one_starts(lodger: Installed) -> None:
    with running(lodger, "serve", "-f", "lodger.yaml") as process:
        until(process, "serves at", "chat on cpu: loading -> ready")
        processes = lodger.processes()
        process.kill()
        process.wait()
        wait_gone(processes)
    assert "No server runs" in lodger("list").stderr
    lodger.ok("up", "-d", "--engine", "echo", "--port", "0")


def test_a_key_is_asked_of_others_and_seen_by_none(lodger: Installed) -> None:
    lodger.ok("up", "-d", "--engine", "echo", "--port", "0", "--host", "0.0.0.0", "--api-key", "s3cret")
    record = lodger.home / "run" / "server.json"
    assert stat.S_IMODE(record.stat().st_mode) == 0o600
    address = lodger.address  # the owner of the home need not say the key again
    with pytest.raises(KeyRequired):
        Client(address).models()
    assert Client(address, api_key="s3cret").models()
    other = lodger("list", "-e", address)
    assert other.returncode == 1
    assert "--api-key" in other.stderr
    for who in lodger.processes():
        assert b"s3cret" not in Path(f"/proc/{who.pid}/cmdline").read_bytes()
    assert "s3cret" not in lodger.ok("logs", "-n", "1000").stdout


def wait_gone(processes: list[Identity]) -> None:
    for who in processes:
        if alive(who):
            with os.fdopen(os.pidfd_open(who.pid)) as handle:
                assert select.select([handle], [], [], 10)[0], f"{who.pid} lives on"
