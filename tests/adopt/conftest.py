from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def lodger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`lodger("ragflow", "check")`: the installed command with a home and a working directory of its own."""
    monkeypatch.setenv("LODGER_HOME", str(tmp_path / "home"))
    for name in ("LODGER_ENDPOINT", "LODGER_API_KEY", "RAGFLOW_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*args: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("lodger")), *args]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False, input=given
        )

    return run
