"""`lodger pull` with the hubs' real SDKs against local servers: whatever goes wrong, the folder ends up right, and what
had come is not fetched again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_faults import Cut, Fault, Slow, Stall, Status, WrongBytes, WrongSize, random_cuts
from hub_servers import HubServer
from pull_world import FILES, HUBS, UNWANTED, WEIGHTS, World, assembly, make_world, part_size, wait_until

from lodger.errors import DamagedDownload
from lodger.hub.base import Work
from lodger.hub.manifest import read_manifest


@pytest.fixture(params=HUBS)
def world(request: pytest.FixtureRequest, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(hub, request.param, tmp_path / "home", monkeypatch)


def test_every_fault_at_once_and_the_folder_is_right(world: World) -> None:
    faults: dict[str, list[Fault]] = {
        "model.safetensors": [Cut(cut.after) for cut in random_cuts(7, len(WEIGHTS) // 3, 2)],
        "tokenizer.json": [Status(429, retry_after=1), Slow(step=15_000)],
        "config.json": [Status(500), Cut(100, reset=True)],
        "tokenizer_config.json": [WrongBytes()],
        "special_tokens_map.json": [WrongSize(9)],
        "README.md": [Status(200, b"<html>Please log in</html>")],
        "1_Pooling/config.json": [Cut(0, reset=True)],
    }
    world.server.fail_listing(Status(503))
    for path, planned in faults.items():
        world.server.fail(path, *planned)
    pulled = world.pull()
    assert (pulled.fetched_files, pulled.hub) == (len(FILES), world.hub)
    assert {path: world.sent(path) for path in UNWANTED} == dict.fromkeys(UNWANTED, 0)
    assert world.sent("model.safetensors") == len(WEIGHTS)  # each byte once, over three connections
    assert len(world.server.served("model.safetensors")) == 3
    titles = {work.title for work in world.works}
    assert titles == {"bge", *(f"bge/{path}" for path in FILES)}
    assert world.works[-1] == Work("bge", pulled.bytes, pulled.bytes)
    world.check()


def test_bytes_that_stay_wrong_are_never_taken(world: World) -> None:
    world.server.fail("config.json", WrongBytes(), always=True)
    with pytest.raises(DamagedDownload, match=r"wrong config\.json.* [0-9a-f]{16}.* [0-9a-f]{16}"):
        world.pull()
    assert 2 <= len(world.server.served("config.json")) <= 5
    assert not world.folder.exists()
    world.server.heal()
    world.pull()
    world.check()


def test_a_killed_pull_goes_on_where_it_was(world: World) -> None:
    stall = Stall(1_200_000)
    world.server.fail("model.safetensors", stall)
    with world.command() as process:
        assert stall.reached.wait(30)
        wait_until(lambda: len(getattr(read_manifest(assembly(world)), "files", ())) == len(FILES) - 1)
        wait_until(lambda: part_size(world) > 0)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
    had = part_size(world)
    stall.resume.set()
    assert not world.folder.exists()
    asked = len(world.server.served("model.safetensors"))
    pulled = world.pull()
    assert (pulled.files, pulled.fetched_files) == (len(FILES), 1)
    assert [seen.range for seen in world.server.served("model.safetensors")[asked:]] == [f"bytes={had}-"]
    assert all(world.sent(path) == len(data) for path, data in FILES.items() if path != "model.safetensors")
    world.check()


@pytest.mark.parametrize("world", ["huggingface"], indirect=True)
def test_ctrl_c_ends_at_once_and_loses_nothing(world: World) -> None:
    stall = Stall(1_200_000)
    world.server.fail("model.safetensors", stall)
    with world.command() as process:
        assert stall.reached.wait(30)
        wait_until(lambda: part_size(world) > 0)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=10)
        assert time.monotonic() - began < 3
    assert process.returncode == 130
    assert "Traceback" not in said
    stall.resume.set()
    asked = len(world.server.served("model.safetensors"))
    world.pull()
    assert (world.server.served("model.safetensors")[asked].range or "").startswith("bytes=")
    world.check()


@pytest.mark.parametrize("world", ["modelscope"], indirect=True)
def test_a_second_process_waits_and_then_finds_it_done(world: World) -> None:
    stall = Stall(1000)
    world.server.fail("model.safetensors", stall)
    with world.command("--json") as first:
        assert stall.reached.wait(30)
        with world.command("--json") as second:
            assert second.stderr is not None
            assert second.stderr.readline() == "Another pull of bge is running; waiting for its end.\n"
            stall.resume.set()
            results = [process.communicate(timeout=30)[0] for process in (first, second)]
    assert [json.loads(result)[0]["fetched_files"] for result in results] == [len(FILES), 0]
    assert {path: world.sent(path) for path in FILES} == {path: len(data) for path, data in FILES.items()}
    world.check()


@pytest.mark.parametrize("world", ["modelscope"], indirect=True)
def test_a_folder_of_modelscopes_own_tool_is_adopted(world: World) -> None:
    script = "import sys; from modelscope_hub.compat.snapshot_download import snapshot_download as get\n"
    script += "get('ms/guide', local_dir=sys.argv[1], cache_dir=sys.argv[2])"
    world.server.add("ms/guide", FILES)
    command = [sys.executable, "-c", script, str(world.folder), str(world.home / "modelscope_cache")]
    subprocess.run(command, check=True, capture_output=True)
    (world.folder / "tokenizer.json").write_bytes(b"cut short")
    (world.folder / "mine.txt").write_bytes(b"mine")
    world.server.requests.clear()
    pulled = world.pull(verify=True)
    assert (pulled.fetched_files, pulled.replaced) == (1, ("tokenizer.json",))
    assert [world.sent(path) for path in FILES] == [len(FILES[path]) * (path == "tokenizer.json") for path in FILES]
    assert (world.folder / "mine.txt").read_bytes() == b"mine"
    assert {path: (world.folder / path).read_bytes() for path in FILES} == FILES
    world.server.requests.clear()
    assert world.pull(verify=True).fetched_files == 0
    assert world.server.requests == []
