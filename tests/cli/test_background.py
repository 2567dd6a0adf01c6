"""A server in the background that does not come up."""

from __future__ import annotations

from pathlib import Path

import pytest

from lodger.cli.background import start_server
from lodger.errors import SetupProblem
from lodger.paths import Home


def test_a_server_that_ends_at_once_says_how_and_why(tmp_path: Path) -> None:
    home = Home(tmp_path).make()
    home.server_log.write_text("Error: an earlier one\n")
    with pytest.raises(SetupProblem) as caught:
        start_server(home, ["--home", str(tmp_path), "--host", "0.0.0.0"], api_key=None)
    assert caught.value.message.startswith("The server exited with code 1 at once: Error: Listening on 0.0.0.0")
    assert str(home.server_log) in (caught.value.hint or "")


def test_log_lines_that_tell_no_cause_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "2026-01-31 12:00:00,123 INFO [-] lodger.server: started the worker of cpu"
    (tmp_path / "lodger.py").write_text(f"import os; print({code!r}, flush=True); os.kill(os.getpid(), 11)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SetupProblem) as caught:
        start_server(Home(tmp_path / "home"), [], api_key=None)
    assert caught.value.message == "The server was ended by SIGSEGV at once."
