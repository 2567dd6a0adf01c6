"""What a fetch makes of a folder: against a hub in this process, so that every turn of events can be arranged."""

from __future__ import annotations

import errno
import fcntl
import threading
from pathlib import Path

import pytest
from fake_hub import BGE, CHOSEN, COMMIT, FILES, World, contents, hidden

from lodger.catalogue.repository import Repository
from lodger.errors import DamagedDownload, HubRefused, HubUnreachable, NotEnoughDisk, SetupProblem
from lodger.hub import bars, download, staging
from lodger.hub.job import Moved, Pulled, Said, Told
from lodger.hub.manifest import folder_is_here
from lodger.units import GIB


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "models")


def test_a_new_model_is_whole_and_nothing_is_left_beside_it(world: World) -> None:
    pulled = world.fetch()
    assert contents(world.folder) == CHOSEN
    assert hidden(world.models) == []
    size = sum(map(len, CHOSEN.values()))
    assert (pulled.hub, pulled.repo, pulled.revision) == ("modelscope", "BAAI/bge", COMMIT)
    assert (pulled.files, pulled.fetched_files, pulled.bytes, pulled.fetched_bytes) == (5, 5, size, size)
    assert pulled.replaced == ()
    assert folder_is_here(world.folder, BGE) is not None


def test_a_new_model_appears_at_once(world: World) -> None:
    def look(data: bytes, path: Path) -> bytes:
        assert not world.folder.exists()
        return data

    world.modelscope.sends = {path: [look] for path in CHOSEN}
    world.fetch()
    assert contents(world.folder) == CHOSEN


def test_an_error_leaves_what_has_come_for_the_next_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "AT_ONCE", 1)

    def broken(data: bytes, path: Path) -> bytes:
        raise HubUnreachable("the line is cut")

    world.modelscope.sends = {"config.json": [broken]}
    with pytest.raises(HubUnreachable):
        world.fetch(hub="modelscope")
    assert not world.folder.exists()
    assert world.modelscope.downloads == [
        "model.safetensors", "tokenizer.json", "1_Pooling/config.json", "config.json"
    ]  # fmt: skip
    world.forget()
    world.fetch(hub="modelscope")
    assert world.modelscope.downloads == ["config.json", "README.md"]
    assert contents(world.folder) == CHOSEN


@pytest.mark.parametrize("path", ["README.md", "model.safetensors"], ids=["git's sha1", "sha256"])
def test_wrong_bytes_are_thrown_away_and_fetched_again(world: World, path: str) -> None:
    left: list[Path] = []

    def flip(data: bytes, path: Path) -> bytes:
        left.extend(path.parent.iterdir())
        return data[:-1] + bytes([data[-1] ^ 1])

    def cut(data: bytes, path: Path) -> bytes:
        return flip(data, path)[:-1]

    world.modelscope.sends = {path: [flip, cut, flip]}
    with pytest.raises(DamagedDownload):
        world.fetch()
    assert left == []  # nothing of it is gone on with
    world.modelscope.sends = {path: [flip, cut]}
    world.forget()
    world.fetch()
    assert world.modelscope.downloads.count(path) == 3
    assert contents(world.folder) == CHOSEN


def test_nothing_is_kept_of_what_the_sdk_found_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "AT_ONCE", 1)

    def wrong(data: bytes, path: Path) -> bytes:
        path.write_bytes(data[:1000])
        raise DamagedDownload("wrong size")

    world.modelscope.sends = {"model.safetensors": [wrong]}
    with pytest.raises(DamagedDownload, match="^wrong size$"):
        world.fetch()
    assert list((world.models / ".bge.partial" / "modelscope").iterdir()) == []


def test_bytes_that_stay_wrong_are_an_error_with_both_hashes(world: World) -> None:
    world.modelscope.sends = {"config.json": [lambda data, path: data.upper()] * 9}
    with pytest.raises(DamagedDownload) as caught:
        world.fetch()
    assert world.modelscope.downloads.count("config.json") == 3
    sha256 = [record for record in world.modelscope.list_files("", None).files if record.path == "config.json"][
        0
    ].sha256
    assert caught.value.message.startswith("ModelScope sent a wrong config.json of BAAI/bge 3 times: sha256 ")
    assert caught.value.message.endswith(f" instead of {sha256}.")
    assert not world.folder.exists()


def test_a_wrong_size_is_an_error_with_both_sizes(world: World) -> None:
    world.modelscope.sends = {"README.md": [lambda data, path: data * 200] * 3}
    with pytest.raises(DamagedDownload, match=r"README\.md of BAAI/bge 3 times: 1,800 bytes instead of 9\."):
        world.fetch()


@pytest.mark.parametrize("problem", [HubUnreachable("No answer from x."), HubRefused("x has no BAAI/bge.")])
def test_the_second_hub_is_asked_when_the_first_has_nothing(world: World, problem: SetupProblem) -> None:
    world.modelscope.down = problem
    pulled = world.fetch()
    assert (pulled.hub, pulled.repo) == ("huggingface", "BAAI/bge-hf")
    assert world.said() == [f"{problem.message} Trying Hugging Face."]
    assert contents(world.folder) == CHOSEN


def test_the_second_hub_goes_on_where_the_first_went_away(world: World) -> None:
    def gone(data: bytes, path: Path) -> bytes:
        raise HubUnreachable("No answer from x.")

    world.modelscope.sends = {path: [gone] for path in CHOSEN if path != "model.safetensors"}
    pulled = world.fetch()
    assert pulled.hub == "huggingface"
    assert contents(world.folder) == CHOSEN
    assert len(world.huggingface.downloads) <= len(CHOSEN)


def test_when_no_hub_has_it_every_reason_is_told(world: World) -> None:
    world.modelscope.down = HubUnreachable("No answer from m.", hint="Look at the network.")
    world.huggingface.down = HubRefused("h has no such model.", hint="Look at the name.")
    with pytest.raises(HubRefused) as caught:
        world.fetch()
    assert caught.value.message == "No answer from m. h has no such model."
    assert caught.value.hint == "Look at the network."


def test_a_named_hub_is_the_only_one(world: World) -> None:
    world.modelscope.down = HubUnreachable("No answer from m.")
    with pytest.raises(HubUnreachable, match=r"^No answer from m\.$"):
        world.fetch(hub="modelscope")
    assert world.huggingface.listings == []
    world.fetch(hub="huggingface")
    assert world.huggingface.listings == [("BAAI/bge-hf", None)]


def test_a_hub_that_is_not_known_to_have_it(world: World) -> None:
    with pytest.raises(HubRefused, match="bge is not known to be on Hugging Face") as caught:
        world.fetch(Repository(folder="bge", modelscope="BAAI/bge"), hub="huggingface")
    assert caught.value.hint == "Try --hub modelscope or the id that it has there."


def test_a_file_in_the_place_of_the_folder(world: World) -> None:
    world.models.mkdir()
    world.folder.write_bytes(b"")
    with pytest.raises(SetupProblem, match="is a file"):
        world.fetch()
    assert world.modelscope.listings == []


def test_too_little_disk_is_said_before_the_first_byte(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "MARGIN", 2**60)
    with pytest.raises(NotEnoughDisk) as caught:
        world.fetch()
    free = staging.gib(staging.shutil.disk_usage(world.models).free)
    assert caught.value.message.startswith(f"bge needs {2**60 / GIB:.2f} GiB on the disk of {world.models}, and ")
    assert caught.value.message.endswith(f"{free[-3:]} are free there.")
    assert world.modelscope.downloads == []


def test_what_has_come_already_needs_no_more_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = staging.shutil.disk_usage(world.models.parent)
    world.fetch()
    (world.folder / "config.json").unlink()
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage._replace(free=staging.MARGIN + 22))
    world.fetch()
    (world.folder / "config.json").unlink()
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage._replace(free=staging.MARGIN + 21))
    with pytest.raises(NotEnoughDisk):
        world.fetch()


def test_a_part_that_has_come_counts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "AT_ONCE", 1)
    needed = sum(map(len, CHOSEN.values())) + staging.MARGIN

    def some(data: bytes, path: Path) -> bytes:
        path.write_bytes(data[:200_000])
        raise HubRefused("enough")

    world.modelscope.sends = {"model.safetensors": [some]}
    with pytest.raises(HubRefused):
        world.fetch(hub="modelscope")
    usage = staging.shutil.disk_usage(world.models)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage._replace(free=needed - 200_001))
    with pytest.raises(NotEnoughDisk):
        world.fetch()
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage._replace(free=needed - 200_000))
    world.fetch()


def test_a_disk_that_fills_up_on_the_way(world: World) -> None:
    def full(data: bytes, path: Path) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    world.modelscope.sends = {"model.safetensors": [full]}
    with pytest.raises(NotEnoughDisk, match=r"The disk of .* is full: .* are free there for bge\."):
        world.fetch()
    assert contents(world.fetch() and world.folder) == CHOSEN


def test_a_folder_that_cannot_be_written_says_so(world: World) -> None:
    world.models.parent.joinpath("models").write_text("a file")
    with pytest.raises(SetupProblem, match=r"bge cannot be put into .*models: "):
        world.fetch()


def test_two_at_once_wait_for_each_other(world: World) -> None:
    started, go_on, waits = threading.Event(), threading.Event(), threading.Event()

    def slow(data: bytes, path: Path) -> bytes:
        started.set()
        assert go_on.wait(10)
        return data

    world.modelscope.sends = {"model.safetensors": [slow]}
    results: list[Pulled] = []
    first = threading.Thread(target=lambda: results.append(world.fetch()))
    first.start()
    assert started.wait(10)
    said: list[Told] = []

    def tell(told: Told) -> None:
        said.append(told)
        waits.set()

    second = threading.Thread(target=lambda: results.append(world.fetch(tell=tell)))
    second.start()
    assert waits.wait(10)
    go_on.set()
    first.join(10)
    second.join(10)
    assert said == [Said("Another pull of bge is running; waiting for its end.")]
    assert sorted(pulled.fetched_files for pulled in results) == [0, 5]
    assert sorted(world.modelscope.downloads) == sorted(CHOSEN)


def test_the_lock_is_free_after_an_error(world: World) -> None:
    world.modelscope.down = world.huggingface.down = HubUnreachable("No answer.")
    with pytest.raises(HubUnreachable):
        world.fetch()
    with open(world.models / ".bge.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_parts_of_another_revision_are_not_continued(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "AT_ONCE", 1)

    def break_off(data: bytes, path: Path) -> bytes:
        path.write_bytes(data[:1000])
        raise HubRefused("enough")

    world.modelscope.sends = {"model.safetensors": [break_off]}
    with pytest.raises(HubRefused):
        world.fetch(hub="modelscope")
    parts = list((world.models / ".bge.partial" / "modelscope").iterdir())
    assert [path.stat().st_size for part in parts for path in part.iterdir()] == [1000]
    seen: list[Path] = []

    def look(data: bytes, path: Path) -> bytes:
        seen.extend(one for one in (path, *parts) if one.exists())  # nor do they take room
        return data

    world.modelscope.files = {**FILES, "model.safetensors": b"other weights"}
    world.modelscope.sends = {"model.safetensors": [look]}
    world.fetch()
    assert seen == []
    assert (world.folder / "model.safetensors").read_bytes() == b"other weights"


def test_a_line_that_breaks_is_used_while_it_brings_something(world: World) -> None:
    def some(data: bytes, path: Path) -> bytes:
        path.write_bytes(data[: (path.stat().st_size if path.exists() else 0) + 50_000])
        raise HubUnreachable("cut")

    def nothing(data: bytes, path: Path) -> bytes:
        raise HubUnreachable("cut for good")

    world.modelscope.sends = {"model.safetensors": [some, some, some]}
    world.fetch(hub="modelscope")
    assert world.modelscope.downloads.count("model.safetensors") == 4
    (world.folder / "model.safetensors").unlink()
    world.modelscope.sends = {"model.safetensors": [some, nothing, nothing]}
    with pytest.raises(HubUnreachable, match="cut for good"):
        world.fetch(hub="modelscope")


def test_new_files_can_be_read_by_others(world: World) -> None:
    def private(data: bytes, path: Path) -> bytes:
        path.touch(0o600)
        return data

    world.modelscope.sends = {path: [private] for path in CHOSEN}
    world.fetch()
    (world.models / "normal").touch()
    normal = (world.models / "normal").stat().st_mode
    assert {(world.folder / path).stat().st_mode for path in CHOSEN} == {normal}


def test_progress_of_the_set_and_of_each_file(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "INTERVAL", 0)
    world.guides({"tokenizer.json": CHOSEN["tokenizer.json"]})
    world.fetch()
    works = [one.work for one in world.told if isinstance(one, Moved)]
    titles = {"Checking bge", "bge", *(f"bge/{path}" for path in CHOSEN if path != "tokenizer.json")}
    assert {work.title for work in works} == titles
    whole = [work for work in works if work.title == "bge"]
    assert whole[0].done == len(CHOSEN["tokenizer.json"])
    assert {work.total for work in whole} == {sum(map(len, CHOSEN.values()))}
    assert whole[-1].done == whole[-1].total
    assert len([work for work in works if work.title == "bge/model.safetensors"]) >= 2
