"""`lodger pull` as it is typed: names in, a line for each model out, and what went wrong in one line with a hint."""

from __future__ import annotations

import json
import os
import pickle
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hub_faults import Slow, Status
from hub_servers import HubServer
from pull_world import FILES, WEIGHTS

Run = Callable[..., "subprocess.CompletedProcess[str]"]
SIZE = sum(map(len, FILES.values()))


@pytest.fixture
def lodger(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name, value in hub.environment(tmp_path / "sdk").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LODGER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TERM", "xterm")

    def run(*args: str, **more: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lodger", "pull", *args]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
        return subprocess.run(command, text=True, cwd=tmp_path, timeout=60, check=False, **pipes)  # type: ignore[call-overload]

    return run


def test_a_name_of_the_catalogue_and_an_id(lodger: Run, hub: HubServer, tmp_path: Path) -> None:
    hub.add("BAAI/bge-m3", FILES)
    hub.add("someone/their-model", FILES)
    done = lodger("bge-m3", "someone/their-model")
    assert done.returncode == 0, done.stderr
    models = tmp_path / "home" / "models"
    assert done.stdout.splitlines() == [
        f"{models}/bge-m3  2 MiB  7 files (2 MiB) came from ModelScope",
        f"{models}/their-model  2 MiB  7 files (2 MiB) came from ModelScope",
    ]
    assert re.fullmatch(r"bge-m3: 2 MiB in \d+ s\ntheir-model: 2 MiB in \d+ s\n", done.stderr)

    asked = len(hub.requests)
    again = lodger("BGE-M3", "--json")
    assert json.loads(again.stdout) == [
        {"folder": f"{models}/bge-m3", "hub": "modelscope", "repo": "BAAI/bge-m3", "revision": "master",
         "files": 7, "bytes": SIZE, "fetched_files": 0, "fetched_bytes": 0, "replaced": []},
    ]  # fmt: skip
    assert again.stderr == ""
    (models / "bge-m3" / "config.json").write_text("{}")
    mended = lodger("bge-m3")
    assert mended.stdout == (
        f"{models}/bge-m3  2 MiB  1 file (522 B) came from ModelScope, replacing what was not the hub's: config.json\n"
    )
    assert len(hub.served("model.safetensors")) == 2
    assert len(hub.requests) > asked
    checked = lodger("bge-m3", "--verify")
    assert checked.stdout == f"{models}/bge-m3  2 MiB  here already, every byte as it should be\n"


def test_the_models_that_lodger_yaml_names(
    lodger: Run, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LODGER_HOME")
    hub.add("BAAI/bge-m3", FILES)
    (tmp_path / "lodger.yaml").write_text(
        "home: there\nmodels:\n  bge-m3:\n  again: {name: BAAI/bge-m3}\n  local: ./folder\n"
    )
    done = lodger()
    assert done.returncode == 0, done.stderr
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == [str(tmp_path / "there/models/bge-m3")]

    (tmp_path / "lodger.yaml").write_text("models:\n  local: ./folder\n")
    nothing = lodger()
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert nothing.stderr == (
        "Error: Every model of lodger.yaml is a folder.\nhint: Name what to fetch: lodger pull bge-m3\n"
    )


def test_a_model_that_is_here_by_another_name_is_not_fetched_twice(lodger: Run, hub: HubServer, tmp_path: Path) -> None:
    """ModelScope's own cache writes a dot as three lines, in a folder for the organisation."""
    hub.add("Qwen/Qwen3-0.6B", FILES)
    folder = tmp_path / "home/models/Qwen/Qwen3-0___6B"
    write(folder, FILES)
    for name in ("Qwen3-0.6B", "Qwen/Qwen3-0.6B", str(folder), "./home/models/Qwen/Qwen3-0___6B"):
        done = lodger(name)
        assert done.stdout == f"{folder}  2 MiB  here already\n", done.stderr
    assert [seen for seen in hub.requests if seen.stage == "bytes"] == []


def test_a_path_is_mended_where_it_is(lodger: Run, hub: HubServer, tmp_path: Path) -> None:
    hub.add("BAAI/bge-m3", FILES)
    folder = tmp_path / "data" / "bge-m3"
    write(folder, {**FILES, "config.json": b"cut"})
    done = lodger(str(folder), "--verify")
    assert done.stdout.startswith(f"{folder}  2 MiB  1 file (522 B) came from ModelScope"), done.stderr
    assert (folder / "config.json").read_bytes() == FILES["config.json"]
    assert not (tmp_path / "home" / "models").exists()


def test_a_folder_of_any_name_is_what_modelscopes_own_tool_noted(lodger: Run, hub: HubServer, tmp_path: Path) -> None:
    hub.add("BAAI/bge-m3", FILES)
    folder = tmp_path / "my-model"
    write(folder, FILES)
    done = lodger("./my-model")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f"Error: Nothing tells which model the folder '{folder}' is."
    write(folder, {".mdl": pickle.dumps({"id": "BAAI/bge-m3"})})
    assert lodger("./my-model").stdout == f"{folder}  2 MiB  here already\n"


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def test_every_name_is_known_before_the_first_is_fetched(lodger: Run, hub: HubServer) -> None:
    hub.add("BAAI/bge-m3", FILES)
    done = lodger("bge-m3", "bge-m4")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: No model is known as 'bge-m4'.\nhint: Did you mean bge-m3")
    assert hub.requests == []


def test_the_second_hub_is_said_in_one_line(lodger: Run, hub: HubServer) -> None:
    hub.add("HuggingFaceTB/SmolLM2-135M-Instruct", FILES)
    hub.fail_listing(Status(404))  # on ModelScope
    done = lodger("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("came from Hugging Face\n")
    first = done.stderr.splitlines()[0]
    assert first.startswith(f"ModelScope at {hub.url} has no HuggingFaceTB/SmolLM2-135M-Instruct")
    assert first.endswith(" Trying Hugging Face.")


def test_an_error_is_a_line_and_a_hint(lodger: Run, hub: HubServer) -> None:
    hub.add("someone/gguf", {"README.md": b"", "config.json": b"{}", "model-Q8_0.gguf": b"GGUF"})
    done = lodger("someone/gguf", "--hub", "huggingface")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "Error: someone/gguf has no safetensors and no pytorch_model.bin, only model-Q8_0.gguf.",
        "hint: Name the repository with the original weights.",
    ]
    assert lodger("bge-m3", "--hub", "github").returncode == 2


def test_a_terminal_shows_the_set_and_the_files_under_way(
    lodger: Run, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    hub.add("someone/model", FILES)
    hub.fail("model.safetensors", Slow(len(WEIGHTS) // 60))
    text = on_terminal(lambda terminal: lodger("someone/model", stderr=terminal))
    assert re.search(r"model .*2 MiB of 2 MiB", text)
    assert re.search(r"  model\.safetensors .* of 2 MiB  .*/s", text)
    assert on_terminal(lambda terminal: lodger("someone/model", stderr=terminal)) == ""


def on_terminal(run: Callable[[int], subprocess.CompletedProcess[str]]) -> str:
    """What a terminal was sent, without its control sequences."""
    leader, follower = pty.openpty()
    try:
        assert run(follower).returncode == 0
        os.close(follower)
        shown = b""
        while part := read(leader):
            shown += part
    finally:
        os.close(leader)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def read(handle: int) -> bytes:
    try:
        return os.read(handle, 65536)
    except OSError:  # its other end is closed
        return b""
