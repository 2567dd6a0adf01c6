"""What `Hub.download` promises, kept by every hub of the table: the real SDKs against a local server."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from acme_model import FILES, REPO, SIZE, WEIGHTS
from hub_faults import (
    Cut,
    Drop,
    Fault,
    Hang,
    Redirect,
    Slow,
    Stall,
    Status,
    Unannounced,
    WrongLength,
    WrongSize,
    random_cuts,
)
from hub_protocols import SIGNATURE
from hub_servers import HubServer
from sdk_child import SdkChild

from lodger.catalogue.repository import HubName
from lodger.errors import DamagedDownload, HubUnreachable
from lodger.hub import TABLE

MOST_ATTEMPTS = 7  # at one file that never comes
every_hub = pytest.mark.parametrize("name", TABLE)


@pytest.fixture
def hub(acme_hub: HubServer) -> HubServer:
    return acme_hub


@every_hub
def test_a_hub_that_asks_to_wait_is_waited_for(name: HubName, hub: HubServer, child: SdkChild, tmp_path: Path) -> None:
    listing = child.list_files(name, REPO)
    hub.fail("model.safetensors", Status(429, retry_after=7))
    result = child.download(listing, "model.safetensors", tmp_path)
    assert result.slept == [7]


@every_hub
@pytest.mark.parametrize("path", FILES)
def test_a_file_comes_whole_and_is_counted(name: HubName, path: str, child: SdkChild, tmp_path: Path) -> None:
    result = child.download(child.list_files(name, REPO), path, tmp_path)
    got = Path(result.paths[0])
    assert got.read_bytes() == FILES[path]
    assert got.is_relative_to(tmp_path)
    assert sum(result.advanced) == len(FILES[path])


@every_hub
def test_several_files_come_at_once(name: HubName, child: SdkChild, tmp_path: Path) -> None:
    listing = child.list_files(name, REPO)
    result = child.call(child.wanted(listing, *FILES, folder=tmp_path))
    assert {Path(path).read_bytes() for path in result.paths} == set(FILES.values())
    assert sum(result.advanced) == sum(map(len, FILES.values()))


@every_hub
def test_a_cut_file_goes_on_where_it_was(name: HubName, hub: HubServer, child: SdkChild, tmp_path: Path) -> None:
    hub.fail("model.safetensors", Cut(1000), Status(502), Cut(20_000))
    result = child.download(child.list_files(name, REPO), "model.safetensors", tmp_path)
    assert Path(result.paths[0]).read_bytes() == WEIGHTS
    assert [seen.range for seen in hub.served("model.safetensors")] == [
        None,
        "bytes=1000-",
        "bytes=1000-",
        "bytes=21000-",
    ]
    assert sum(seen.sent for seen in hub.served("model.safetensors") if seen.status < 300) == SIZE
    assert sum(result.advanced) == SIZE


@every_hub
@pytest.mark.parametrize("seed", range(4))
def test_cuts_anywhere_do_no_harm(name: HubName, seed: int, hub: HubServer, child: SdkChild, tmp_path: Path) -> None:
    hub.fail("model.safetensors", *random_cuts(seed, SIZE, 4))
    result = child.download(child.list_files(name, REPO), "model.safetensors", tmp_path)
    assert Path(result.paths[0]).read_bytes() == WEIGHTS
    assert sum(result.advanced) == SIZE


@every_hub
def test_a_later_process_goes_on_where_a_killed_one_was(
    name: HubName, hub: HubServer, child: SdkChild, tmp_path: Path
) -> None:
    listing = child.list_files(name, REPO)
    stall = Stall(30_000)
    hub.fail("model.safetensors", stall)
    with SdkChild(hub.environment(tmp_path / "home")) as killed:
        killed.send(killed.wanted(listing, "model.safetensors", folder=tmp_path / "part"))
        assert stall.reached.wait(30)
        _wait_for(tmp_path / "part", 20_000)
        killed.end(kill=True)
    stall.resume.set()
    (kept,) = [path.stat().st_size for path in (tmp_path / "part").rglob("model.safetensors*")]
    result = child.download(listing, "model.safetensors", tmp_path / "part")
    assert Path(result.paths[0]).read_bytes() == WEIGHTS
    assert [seen.range for seen in hub.served("model.safetensors")] == [None, f"bytes={kept}-"]
    assert hub.served("model.safetensors")[1].sent == SIZE - kept
    assert sum(result.advanced) == SIZE - kept


@every_hub
def test_a_hub_that_cannot_send_parts_begins_again(
    name: HubName, hub: HubServer, child: SdkChild, tmp_path: Path
) -> None:
    hub.repos[REPO].ranges = False
    hub.fail("model.safetensors", Cut(1000))
    result = child.download(child.list_files(name, REPO), "model.safetensors", tmp_path)
    assert Path(result.paths[0]).read_bytes() == WEIGHTS
    assert sum(result.advanced) == SIZE
    assert -1000 in result.advanced
    assert len(hub.served("model.safetensors")) == 2


@every_hub
def test_a_part_that_is_too_long_for_the_hub_is_thrown_away(
    name: HubName, hub: HubServer, child: SdkChild, tmp_path: Path
) -> None:
    hub.fail("model.safetensors", Cut(1000), Status(416))
    result = child.download(child.list_files(name, REPO), "model.safetensors", tmp_path)
    assert Path(result.paths[0]).read_bytes() == WEIGHTS
    assert [seen.range for seen in hub.served("model.safetensors")] == [None, "bytes=1000-", None]
    assert sum(result.advanced) == SIZE


@every_hub
@pytest.mark.parametrize("by", [-1, 1, -SIZE + 1000])
def test_a_file_of_another_size_is_damaged(
    name: HubName, by: int, hub: HubServer, child: SdkChild, tmp_path: Path
) -> None:
    listing = child.list_files(name, REPO)
    hub.fail("model.safetensors", WrongSize(by), always=True)
    with pytest.raises(DamagedDownload) as caught:
        child.download(listing, "model.safetensors", tmp_path)
    assert f"model.safetensors of {REPO}" in caught.value.message
    assert len(hub.served("model.safetensors")) <= 3
    assert not (tmp_path / "model.safetensors").exists()
    hub.heal()
    result = child.download(listing, "model.safetensors", tmp_path)
    assert Path(result.paths[0]).read_bytes() == WEIGHTS


@every_hub
@pytest.mark.parametrize(
    "fault",
    [
        WrongLength(5000),
        Unannounced(5000),
        Unannounced(SIZE + 4, junk=b"junk"),
        Status(206, WEIGHTS[5000:], headers={"Content-Range": f"bytes 5000-{SIZE - 1}/{SIZE}"}),
        Redirect(),
        Drop(),
        Status(500),
        Cut(0, reset=True),
    ],
)
def test_other_trouble_with_a_file_passes(
    name: HubName, fault: Fault, hub: HubServer, child: SdkChild, tmp_path: Path
) -> None:
    hub.fail("model.safetensors", fault)
    result = child.download(child.list_files(name, REPO), "model.safetensors", tmp_path)
    assert Path(result.paths[0]).read_bytes() == WEIGHTS


@every_hub
@pytest.mark.parametrize("fault", [Status(503), Status(403), Drop(), Redirect()])
def test_trouble_that_does_not_pass_is_told_without_secrets(
    name: HubName, fault: Fault, hub: HubServer, child: SdkChild, tmp_path: Path
) -> None:
    listing = child.list_files(name, REPO)
    hub.fail("model.safetensors", fault, always=True)
    with pytest.raises(HubUnreachable) as caught:
        child.download(listing, "model.safetensors", tmp_path)
    assert hub.url in caught.value.text
    assert SIGNATURE not in caught.value.text
    assert "\n" not in caught.value.text
    attempts = [seen for seen in hub.requests if seen.stage == "resolve"]
    assert 1 <= len(attempts) <= MOST_ATTEMPTS


@every_hub
def test_storage_that_is_not_there_is_named(name: HubName, hub: HubServer, child: SdkChild, tmp_path: Path) -> None:
    listing = child.list_files(name, REPO)
    gone = {"Location": f"http://127.0.0.2:1/file?{SIGNATURE}"}
    hub.fail_resolve("model.safetensors", Status(302, headers=gone), always=True)
    with pytest.raises(HubUnreachable, match="from http://127.0.0.2:1, .*: Connection refused") as caught:
        child.download(listing, "model.safetensors", tmp_path)
    assert SIGNATURE not in caught.value.text


@every_hub
def test_a_full_disk_is_not_the_hubs_fault(name: HubName, hub: HubServer, child: SdkChild, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.incomplete").symlink_to("/dev/full")  # where both keep a part
    listing = child.list_files(name, REPO)
    with pytest.raises(OSError, match="child") as caught:
        child.download(listing, "model.safetensors", tmp_path)
    assert caught.value.errno == errno.ENOSPC


@every_hub
def test_a_limit_of_the_disk_is_not_the_hubs_fault_either(name: HubName, hub: HubServer, tmp_path: Path) -> None:
    with SdkChild(hub.environment(tmp_path / "home")) as child:
        listing = child.list_files(name, REPO)
        child.limit_files(50_000)
        with pytest.raises(OSError, match="child") as caught:
            child.download(listing, "model.safetensors", tmp_path / "part")
    assert caught.value.errno == errno.EFBIG


@pytest.fixture
def hasty(hub: HubServer, tmp_path: Path) -> Iterator[SdkChild]:
    """One that waits a second for bytes, by the SDKs' own variables."""
    second = {"HF_HUB_DOWNLOAD_TIMEOUT": "1", "MODELSCOPE_DOWNLOAD_TIMEOUT": "1"}
    with SdkChild({**hub.environment(tmp_path / "home"), **second}) as child:
        yield child


@every_hub
def test_a_server_that_hangs_is_left(name: HubName, hub: HubServer, hasty: SdkChild, tmp_path: Path) -> None:
    hub.fail("model.safetensors", Hang(), Stall(1000))
    result = hasty.download(hasty.list_files(name, REPO), "model.safetensors", tmp_path)
    assert Path(result.paths[0]).read_bytes() == WEIGHTS
    assert [seen.range for seen in hub.served("model.safetensors")] == [None, None, "bytes=1000-"]


@every_hub
def test_a_slow_server_is_not_left(name: HubName, hub: HubServer, child: SdkChild, tmp_path: Path) -> None:
    slow = Slow(1024)
    hub.fail("model.safetensors", slow)
    child.send(child.wanted(child.list_files(name, REPO), "model.safetensors", folder=tmp_path))
    assert slow.reached.wait(30)
    _wait_for(tmp_path, 8192)  # what comes is written as it comes
    slow.resume.set()
    assert Path(child.receive().paths[0]).read_bytes() == WEIGHTS
    assert len(hub.served("model.safetensors")) == 1


def _wait_for(folder: Path, size: int) -> None:
    """Until some file there has `size` bytes; a disk has no event to wait for."""
    deadline = time.monotonic() + 30
    while not any(path.stat().st_size >= size for path in folder.rglob("*") if path.is_file()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
