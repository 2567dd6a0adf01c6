"""Pickles become safetensors: every tensor as torch loads it, once, and again when something has changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tiny_pytorch
import torch
from safetensors.torch import load_file, save_file
from tiny_pytorch import State

from lodger.catalogue.safetensors_header import read_header
from lodger.errors import DamagedWeights
from lodger.hub.base import Work
from lodger.hub.conversion import RECORD, pending
from lodger.hub.convert import convert

PICKLE, RESULT = "pytorch_model.bin", "model.safetensors"
SHARED = torch.arange(12, dtype=torch.float32)
STATES: dict[str, State] = {
    "float32": {"a": torch.randn(7, 3), "b.weight": torch.randn(2, 2, 2)},
    "float16": {"a": torch.randn(7, 3).half()},
    "bfloat16": {"a": torch.randn(7, 3).bfloat16(), "b": torch.randn(5).bfloat16()},
    "mixed": {
        "bytes": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(1).half(),
        "flags": torch.tensor([True, False]),
        "ids": torch.arange(4)[None],
        "double": torch.randn(2).double(),
    },
    "not finite": {"a": torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])},
    "tied": {"table": SHARED.view(3, 4), "again": SHARED.view(3, 4), "part": SHARED[3:7], "overlapping": SHARED[5:9]},
    "not contiguous": {"turned": SHARED.view(3, 4).t(), "steps": SHARED[::3], "repeated": SHARED[:1].expand(5)},
    "odd shapes": {"number": torch.tensor(3.5), "empty": torch.empty(0, 4), "chinese 名": torch.ones(1, 1, 1)},
    "parameters": {
        "a": torch.nn.Parameter(torch.randn(3)),
        "b": torch.nn.Parameter(torch.ones(1), requires_grad=False),
    },
}


def quiet(work: Work) -> None:
    pass


def make(folder: Path) -> State:
    """Convert, and what model.safetensors then holds."""
    convert(folder, folder, quiet)
    loaded: State = load_file(folder / RESULT)
    return loaded


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(bits(found[name]), bits(tensor)), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_every_tensor_is_as_torch_loads_it(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / PICKLE)
    before = (tmp_path / PICKLE).read_bytes()
    assert_same(make(tmp_path), torch.load(tmp_path / PICKLE, weights_only=True))
    assert (tmp_path / PICKLE).read_bytes() == before
    assert names(tmp_path) == {PICKLE, RESULT, RECORD}


def test_tensors_begin_where_their_numbers_may(tmp_path: Path) -> None:
    torch.save(STATES["mixed"], tmp_path / PICKLE)
    make(tmp_path)
    for tensor in read_header(tmp_path / RESULT):
        assert tensor.offset % (tensor.size // tensor.elements) == 0


@pytest.mark.filterwarnings("ignore:.*non-zipfile.*")
def test_the_format_of_before_torch_1_6(tmp_path: Path) -> None:
    torch.save(STATES["tied"], tmp_path / PICKLE, _use_new_zipfile_serialization=False)
    assert_same(make(tmp_path), STATES["tied"])


def test_a_file_saved_without_check_sums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATES["float32"], tmp_path / PICKLE)
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(make(tmp_path), STATES["float32"])


@pytest.mark.parametrize("indexed", [True, False], ids=["with its index", "without"])
def test_shards_become_one_file(tmp_path: Path, indexed: bool) -> None:
    state = tiny_pytorch.as_pytorch(tiny.make_bge_m3(tmp_path), shards=3)
    if not indexed:
        (tmp_path / "pytorch_model.bin.index.json").unlink()
    assert_same(make(tmp_path), state)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    tiny_pytorch.as_pytorch(tiny.make_bge_m3(tmp_path), shards=3)
    (tmp_path / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(DamagedWeights, match="pytorch_model-00002-of-00003.bin is missing"):
        make(tmp_path)


def test_a_folder_as_bge_m3_is_published(tmp_path: Path) -> None:
    folder = tiny_pytorch.make_bge_m3(tmp_path / "bge-m3")
    there = names(folder)
    assert_same(make(folder), load_file(tiny.make_bge_m3(tmp_path / "twin") / RESULT))
    for name, head in tiny_pytorch.heads(64).items():
        assert_same(load_file(folder / f"{name}.safetensors"), head)
    assert names(folder) - there == {RESULT, RECORD, "sparse_linear.safetensors", "colbert_linear.safetensors"}


def test_published_safetensors_are_left_alone_and_their_heads_converted(tmp_path: Path) -> None:
    folder = tiny_pytorch.make_bge_m3(tmp_path)
    published = {"a": torch.ones(1)}
    save_file(published, folder / RESULT)
    assert_same(make(folder), published)
    assert (folder / "sparse_linear.safetensors").exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Converted already."""
    torch.save(STATES["float32"], tmp_path / PICKLE)
    make(tmp_path)
    assert pending(tmp_path, tmp_path) == []
    return tmp_path


def inode(folder: Path) -> int:
    return (folder / RESULT).stat().st_ino


def test_a_second_time_there_is_nothing_to_do(folder: Path) -> None:
    before = inode(folder)
    make(folder)
    assert inode(folder) == before


def test_a_changed_source_is_converted_again(folder: Path) -> None:
    changed = {name: tensor + 1 for name, tensor in STATES["float32"].items()}
    size = (folder / PICKLE).stat().st_size
    torch.save(changed, folder / PICKLE)
    assert (folder / PICKLE).stat().st_size == size
    assert pending(folder, folder)
    assert_same(make(folder), changed)
    assert pending(folder, folder) == []


def test_a_copied_folder_is_looked_at_once_and_not_made_again(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = tmp_path_factory.mktemp("copy") / "model"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)  # with new times
    assert pending(copy, copy)
    before = inode(copy)
    assert_same(make(copy), STATES["float32"])
    assert inode(copy) == before
    assert pending(copy, copy) == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("harm", [flip, cut, Path.unlink])
def test_a_damaged_result_is_made_again(folder: Path, harm: Callable[[Path], None]) -> None:
    harm(folder / RESULT)
    assert pending(folder, folder)
    assert_same(make(folder), STATES["float32"])


def test_somebody_elses_file_in_its_place_stays(folder: Path) -> None:
    save_file({"mine": torch.ones(3)}, folder / RESULT)
    torch.save(STATES["float16"], folder / PICKLE)
    assert pending(folder, folder) == []
    assert make(folder).keys() == {"mine"}


def test_the_sources_may_be_deleted(tmp_path: Path) -> None:
    state = tiny_pytorch.as_pytorch(tiny.make_bge_m3(tmp_path), shards=2)
    make(tmp_path)
    for file in tmp_path.glob("*.bin"):
        file.unlink()
    assert pending(tmp_path, tmp_path) == []
    assert_same(make(tmp_path), state)


def test_a_record_that_cannot_be_read_costs_nothing(folder: Path) -> None:
    (folder / RECORD).write_text("{")
    assert pending(folder, folder) == []
    assert_same(make(folder), STATES["float32"])


def test_it_tells_how_far_it_is(tmp_path: Path) -> None:
    folder = tiny_pytorch.make_bge_m3(tmp_path / "bge-m3")
    told: list[Work] = []
    convert(folder, folder, told.append)
    assert {work.title for work in told} == {"Converting bge-m3"}
    assert [work.done for work in told] == sorted(work.done for work in told)
    assert told[-1].done == told[-1].total > 400_000
