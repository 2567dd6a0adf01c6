"""A disk that is too small is said before the first byte; one that fills up on the way costs nothing that had come."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_faults import Stall
from hub_servers import HubServer
from pull_world import BGE, FILES, HUBS, SHA256, WEIGHTS, World, assembly, make_world

from lodger.errors import NotEnoughDisk
from lodger.hub import staging
from lodger.hub.base import Listing, RemoteFile
from lodger.hub.manifest import read_manifest
from lodger.units import gib


@pytest.fixture(params=HUBS)
def world(request: pytest.FixtureRequest, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(hub, request.param, tmp_path / "home", monkeypatch)


class SmallDisk:
    """A tmpfs in a mount namespace of its own, without root. `inside` goes before a command that shall see it."""

    def __init__(self, at: Path) -> None:
        at.mkdir()
        self.at = at
        # It goes when its last process does: `cat`, whose end is ours.
        script = 'mount -t tmpfs -o size=16k none "$0" && echo ready && exec cat'
        self.holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script, str(at)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.holder.stdout is not None
        self.there = self.holder.stdout.readline() == "ready\n"
        self.inside = ("nsenter", "-t", str(self.holder.pid), "-U", "-m", "--preserve-credentials", "--")

    def run(self, script: str) -> str:
        command = [*self.inside, "sh", "-c", script, str(self.at)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def resize(self, size: int) -> None:
        self.run(f'mount -o remount,size={size} "$0"')

    def fill(self) -> None:
        self.run('! cat /dev/zero > "$0/somebody elses" 2> /dev/null')

    def free(self) -> None:
        self.run('rm "$0/somebody elses"')


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    disk = SmallDisk(tmp_path / "home")
    with disk.holder:
        if not disk.there:
            pytest.skip("this kernel gives no namespaces; test_a_write_that_finds_the_disk_full has the same fault")
        yield disk


@pytest.mark.parametrize("world", ["modelscope"], indirect=True)
def test_a_disk_too_small_and_one_that_fills_up(small_disk: SmallDisk, world: World) -> None:
    needed = sum(map(len, FILES.values())) + staging.MARGIN
    small_disk.resize(staging.MARGIN)
    with world.command(before=small_disk.inside) as process:
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"Error: bge needs {gib(needed)} on the disk of {world.models}, and 64 MiB are free there." in said
    assert sum(map(world.sent, FILES)) == 0

    small_disk.resize(needed + staging.MARGIN)
    stall = Stall(1_200_000)
    world.server.fail("model.safetensors", stall)
    with world.command(before=small_disk.inside) as process:
        assert stall.reached.wait(30)
        small_disk.fill()
        stall.resume.set()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"Error: The disk of {world.models} is full: 0 B are free there for bge." in said
    assert "Traceback" not in said

    small_disk.free()
    with world.command(before=small_disk.inside) as process:
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert (world.server.served("model.safetensors")[-1].range or "").startswith("bytes=")
    assert small_disk.run('cat "$0/models/bge/model.safetensors" | sha256sum') == f"{SHA256}  -\n"


def test_a_write_that_finds_the_disk_full(world: World) -> None:
    listing = Listing(world.hub, BGE.on(world.hub) or "", "", ())
    part = staging.Staging(world.folder).part(listing, RemoteFile("model.safetensors", len(WEIGHTS), SHA256))
    part.mkdir(parents=True)
    (part / "model.safetensors.incomplete").symlink_to("/dev/full")  # what the SDKs write to, before the file is whole
    with pytest.raises(NotEnoughDisk, match=r"The disk of .*models is full: .* are free there for bge\."):
        world.pull()
    (part / "model.safetensors.incomplete").unlink()
    placed = read_manifest(assembly(world))
    assert placed is not None
    world.pull()
    assert {path: world.sent(path) for path in placed.files} == {path: len(FILES[path]) for path in placed.files}
    world.check()
