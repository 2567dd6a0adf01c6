"""What a fetch makes of a folder: against a hub in this process, so that every turn of events can be arranged."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fake_hub import FakeHub

from lodger.catalogue.repository import HubName, Repository
from lodger.errors import DamagedDownload, HubRefused, HubUnreachable, NotEnoughDisk, SetupProblem
from lodger.hub import bars, download, staging
from lodger.hub.fetch import fetch
from lodger.hub.job import Job, Moved, Pulled, Said, Told
from lodger.hub.manifest import folder_is_here, read_manifest
from lodger.units import GIB

WEIGHTS = os.urandom(300_000)
FILES = {
    "README.md": b"# read me",
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}" * 999,
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
    "model.safetensors": WEIGHTS,
    "onnx/model.onnx": b"of no use",
}
CHOSEN = {path: data for path, data in FILES.items() if not path.startswith("onnx")}
BGE = Repository(folder="bge", modelscope="BAAI/bge", huggingface="BAAI/bge-hf")


@dataclass
class World:
    """A models folder, two hubs, and all that was told."""

    models: Path
    modelscope: FakeHub = field(default_factory=lambda: FakeHub("modelscope", FILES))
    huggingface: FakeHub = field(default_factory=lambda: FakeHub("huggingface", FILES))
    told: list[Told] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return self.models / "bge"

    def fetch(self, repository: Repository = BGE, tell: Callable[[Told], None] | None = None, **more: object) -> Pulled:
        job = Job(repository=repository, models_dir=str(self.models), **more)  # type: ignore[arg-type]
        return fetch(job, tell or self.told.append, self.open)

    def open(self, name: HubName) -> FakeHub:
        return self.modelscope if name == "modelscope" else self.huggingface

    def said(self) -> list[str]:
        return [one.text for one in self.told if isinstance(one, Said)]

    def forget(self) -> None:
        for hub in (self.modelscope, self.huggingface):
            hub.listings.clear()
            hub.downloads.clear()
        self.told.clear()

    def guides(self, files: dict[str, bytes]) -> None:
        """A folder as another tool leaves it."""
        for path, data in files.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / path).write_bytes(data)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "models")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lodger.json"
    }


def hidden(models: Path) -> list[str]:
    return sorted(path.name for path in models.iterdir() if path.name.endswith(".partial"))


def test_a_new_model_is_whole_and_nothing_is_left_beside_it(world: World) -> None:
    pulled = world.fetch()
    assert contents(world.folder) == CHOSEN
    assert hidden(world.models) == []
    size = sum(map(len, CHOSEN.values()))
    assert (pulled.hub, pulled.repo, pulled.revision) == ("modelscope", "BAAI/bge", "r1")
    assert (pulled.files, pulled.fetched_files, pulled.bytes, pulled.fetched_bytes) == (5, 5, size, size)
    assert pulled.replaced == ()
    assert folder_is_here(world.folder, BGE) is not None


def test_the_second_time_nobody_is_asked(world: World) -> None:
    world.fetch()
    world.forget()
    pulled = world.fetch()
    assert (pulled.files, pulled.fetched_files) == (5, 0)
    assert world.modelscope.listings == []


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
    flip, cut = (lambda data, path: data[:-1] + b"\0"), (lambda data, path: data[:-1])
    world.modelscope.sends = {path: [flip, cut]}
    world.fetch()
    assert world.modelscope.downloads.count(path) == 3
    assert contents(world.folder) == CHOSEN


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


def test_a_folder_from_elsewhere_is_adopted(world: World) -> None:
    mine = {"notes.txt": b"mine", "._____temp/x": b"left over", "onnx/model.onnx": b"another", ".msc": b"", ".mv": b""}
    world.guides({**CHOSEN, **mine, "config.json": b"{}", "tokenizer.json": b"[]" * 999})
    (world.folder / "1_Pooling" / "config.json").unlink()
    pulled = world.fetch()
    assert sorted(world.modelscope.downloads) == ["1_Pooling/config.json", "config.json", "tokenizer.json"]
    assert pulled.replaced == ("config.json", "tokenizer.json")
    assert contents(world.folder) == CHOSEN | mine
    world.forget()
    world.fetch()
    assert world.modelscope.listings == []


def test_a_linked_folder_is_adopted_where_it_is(world: World, tmp_path: Path) -> None:
    world.guides({path: data for path, data in CHOSEN.items() if path != "model.safetensors"})
    (tmp_path / "elsewhere").mkdir()
    world.folder.rename(tmp_path / "elsewhere" / "x")
    world.folder.symlink_to(tmp_path / "elsewhere" / "x")
    pulled = world.fetch()
    assert pulled.folder == str(world.folder)
    assert world.folder.is_symlink()
    assert contents(tmp_path / "elsewhere" / "x") == CHOSEN


def test_verify_looks_at_every_byte_without_asking_anyone(world: World) -> None:
    world.fetch()
    world.forget()
    assert world.fetch(verify=True).fetched_files == 0
    assert world.modelscope.listings == []
    checked = [one.work for one in world.told if isinstance(one, Moved)]
    assert {work.title for work in checked} == {"Checking bge"}
    assert checked[-1].done == checked[-1].total == sum(map(len, CHOSEN.values()))


def damage(path: Path) -> None:
    """Another byte, at the same size and time."""
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_verify_finds_one_wrong_byte_and_fetches_that_file_alone(world: World) -> None:
    world.fetch()
    world.modelscope.revision = "r2"
    damage(world.folder / "model.safetensors")
    world.forget()
    assert world.fetch().fetched_files == 0  # an untouched file is not read
    pulled = world.fetch(verify=True)
    assert world.modelscope.listings == [("BAAI/bge", "r1")]  # the revision that is here
    assert world.modelscope.downloads == ["model.safetensors"]
    assert world.said() == ["Missing or not as it came: model.safetensors."]
    assert pulled.replaced == ("model.safetensors",)
    assert contents(world.folder) == CHOSEN


def test_verify_of_a_half_adopted_folder_trusts_nothing(world: World) -> None:
    world.guides(CHOSEN)
    (world.folder / "config.json").unlink()
    world.modelscope.sends = {"config.json": [lambda data, path: b"wrong"] * 3}
    with pytest.raises(DamagedDownload):
        world.fetch()
    damage(world.folder / "model.safetensors")
    world.forget()
    world.fetch(verify=True)
    assert sorted(world.modelscope.downloads) == ["config.json", "model.safetensors"]
    assert contents(world.folder) == CHOSEN


def test_a_copied_folder_is_hashed_once(world: World) -> None:
    world.fetch()
    for path in CHOSEN:
        os.utime(world.folder / path, ns=(5, 5))
    world.forget()
    assert folder_is_here(world.folder, BGE) is None
    world.fetch()
    assert world.modelscope.listings == []
    assert folder_is_here(world.folder, BGE) is not None


def test_a_missing_file_alone_comes_again(world: World) -> None:
    world.fetch()
    (world.folder / "tokenizer.json").unlink()
    world.forget()
    world.fetch()
    assert world.modelscope.downloads == ["tokenizer.json"]


def test_another_revision_fetches_what_differs(world: World) -> None:
    world.fetch()
    world.modelscope.files = {**FILES, "config.json": b'{"new": 1}'}
    world.modelscope.revision = "r2"
    world.forget()
    assert world.fetch(revision="r1").fetched_files == 0
    assert world.modelscope.listings == []
    pulled = world.fetch(revision="main")
    assert world.modelscope.listings == [("BAAI/bge", "main")]
    assert (pulled.revision, world.modelscope.downloads) == ("r2", ["config.json"])


def test_a_folder_of_another_model_is_left_alone(world: World) -> None:
    world.fetch()
    with pytest.raises(SetupProblem, match="holds another model: BAAI/bge, not other/bge") as caught:
        world.fetch(Repository(folder="bge", modelscope="other/bge"))
    assert caught.value.hint == "Move that folder away, or give another --home."
    assert contents(world.folder) == CHOSEN


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
    assert caught.value.message.startswith(f"bge needs {2**60 / GIB:.2f} GiB more on the disk of {world.models}, and ")
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


def test_parts_of_another_revision_are_not_continued(world: World) -> None:
    def break_off(data: bytes, path: Path) -> bytes:
        path.write_bytes(data[:1000])
        raise DamagedDownload("enough")

    world.modelscope.sends = {"model.safetensors": [break_off]}
    with pytest.raises(DamagedDownload):
        world.fetch()
    parts = list((world.models / ".bge.partial" / "modelscope").iterdir())
    assert [part.joinpath("arriving").stat().st_size for part in parts if part.joinpath("arriving").exists()] == [1000]
    seen: list[bool] = []
    world.modelscope.files = {**FILES, "model.safetensors": b"other weights"}
    world.modelscope.sends = {"model.safetensors": [lambda data, path: (seen.append(path.exists()), data)[1]]}
    world.fetch()
    assert seen == [False]
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


def test_a_damaged_manifest_is_as_good_as_none(world: World) -> None:
    world.fetch()
    (world.folder / ".lodger.json").write_text('{"hub": 7')
    world.forget()
    assert world.fetch().fetched_files == 0
    assert len(world.modelscope.listings) == 1
    manifest = read_manifest(world.folder)
    assert manifest is not None
    assert manifest.complete
