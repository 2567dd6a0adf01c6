"""A made-up server, and the real command line against it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scripted_http import Scripted, scripted

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as made:
        yield made


@pytest.fixture
def lodger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`lodger("plan", "--json")`: the installed command with a home and a working directory of its own."""
    monkeypatch.setenv("LODGER_HOME", str(tmp_path / "home"))
    for name in ("LODGER_ENDPOINT", "LODGER_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("lodger")), *args]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)

    return run
