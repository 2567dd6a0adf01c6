"""Which home a command means: all commands in one folder mean the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lodger.cli.options import connect, home_of
from lodger.cli.wanted import Flags, wanted
from lodger.errors import NotRunning


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one, with a lodger.yaml that names a home."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for name in ("LODGER_HOME", "LODGER_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lodger.yaml").write_text("home: ./state\nmodels:\n  bge-m3:\n")
    return tmp_path


def meant_by_up(home: str | None) -> Path:
    return wanted(Flags(home=home)).home.root


def meant_by_serve(home: str | None) -> Path:
    return wanted(Flags(home=home), needs_models=False).home.root


def meant_by_down(home: str | None) -> Path:
    return home_of(home).root


@pytest.mark.parametrize("meant", [meant_by_up, meant_by_serve, meant_by_down])
def test_option_then_environment_then_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, meant: Callable[[str | None], Path]
) -> None:
    assert meant(None) == folder / "state"
    monkeypatch.setenv("LODGER_HOME", "/of/the/environment")
    assert meant(None) == Path("/of/the/environment")
    assert meant("~/told") == folder / "me" / "told"


def test_without_a_home_in_the_file_it_is_the_users(folder: Path) -> None:
    (folder / "lodger.yaml").write_text("models:\n  bge-m3:\n")
    assert meant_by_up(None) == meant_by_down(None) == folder / "me" / ".lodger"


def test_the_server_of_the_files_home_is_the_one_that_is_asked(folder: Path) -> None:
    with pytest.raises(NotRunning, match=str(folder / "state")):
        connect(None, None)


def test_another_file_has_another_home(folder: Path) -> None:
    (folder / "other.yaml").write_text("models:\n  bge-m3:\n")
    assert wanted(Flags(file=Path("other.yaml"))).home.root == folder / "me" / ".lodger"


def test_a_broken_file_keeps_nobody_from_stopping_a_server(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "lodger.yaml").write_text("home: state\nmodels: [unknown, but no reason to look elsewhere]\n")
    assert meant_by_down(None) == folder / "state"
    (folder / "lodger.yaml").write_text("home: state\n  models: no YAML\n")
    assert meant_by_down(None) == folder / "me" / ".lodger"
    said = capsys.readouterr().err
    assert said.startswith("lodger.yaml:2: ")
    assert "default home" in said


def test_a_home_is_shown_as_a_person_would_write_it(folder: Path) -> None:
    (folder / "place").mkdir()
    (folder / "link").symlink_to(folder / "place")
    assert meant_by_down("./link/../link/x") == folder / "link" / "x"
    (folder / "lodger.yaml").write_text("home: place/../state\n")
    assert meant_by_down(None) == folder / "state"
