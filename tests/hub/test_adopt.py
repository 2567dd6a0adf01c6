"""A folder that is here already, whoever made it: what is right in it stays, and is not looked at twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fake_hub import BGE, CHOSEN, COMMIT, FILES, World, contents

from lodger.catalogue.repository import Repository
from lodger.errors import DamagedDownload, ModelProblem, SetupProblem
from lodger.hub.job import Moved
from lodger.hub.manifest import folder_is_here, read_manifest


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "models")


def test_the_second_time_nobody_is_asked(world: World) -> None:
    world.fetch()
    world.forget()
    pulled = world.fetch()
    assert (pulled.files, pulled.fetched_files) == (5, 0)
    assert world.modelscope.listings == []


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
    assert (tmp_path / "elsewhere" / ".x.lock").exists()  # and parts come on the disk that the folder is on


def test_a_link_that_no_model_is_loaded_through_is_not_here_already(world: World, tmp_path: Path) -> None:
    world.fetch()
    (world.folder / "config.json").rename(tmp_path / "config.json")
    (world.folder / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(ModelProblem, match=r"config\.json is a link that leads out"):
        folder_is_here(world.folder, BGE)
    (world.folder / ".lodger.json").unlink()
    with pytest.raises(ModelProblem, match=r"config\.json is a link that leads out"):
        world.fetch()
    (tmp_path / "config.json").unlink()
    assert world.fetch().fetched_files == 1  # a link to nothing is a file that is missing
    assert contents(world.folder) == CHOSEN


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
    assert world.modelscope.listings == [("BAAI/bge", COMMIT)]  # the revision that is here
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
    assert world.fetch(revision=COMMIT).fetched_files == 0
    assert world.modelscope.listings == []
    pulled = world.fetch(revision="main")
    assert world.modelscope.listings == [("BAAI/bge", "main")]
    assert (pulled.revision, world.modelscope.downloads) == ("r2", ["config.json"])


def test_a_branch_may_have_moved_on(world: World) -> None:
    world.modelscope.revision = "master"  # ModelScope tells no commit
    world.fetch()
    world.modelscope.files = {**FILES, "config.json": b'{"new": 1}'}
    world.forget()
    assert world.fetch().fetched_files == 0
    assert world.modelscope.listings == []
    assert world.fetch(revision="master").fetched_files == 1


def test_a_folder_of_another_model_is_left_alone(world: World) -> None:
    world.fetch()
    with pytest.raises(SetupProblem, match="holds another model: BAAI/bge, not other/bge") as caught:
        world.fetch(Repository(folder="bge", modelscope="other/bge"))
    assert caught.value.hint == "Move that folder away, or give another --home."
    assert contents(world.folder) == CHOSEN


def test_a_damaged_manifest_is_as_good_as_none(world: World) -> None:
    world.fetch()
    (world.folder / ".lodger.json").write_text('{"hub": 7')
    world.forget()
    assert world.fetch().fetched_files == 0
    assert len(world.modelscope.listings) == 1
    manifest = read_manifest(world.folder)
    assert manifest is not None
    assert manifest.complete
