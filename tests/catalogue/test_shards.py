"""Weights in several files: with an index, with a wrong one, and with none."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import tiny as maker
from hypothesis import given
from hypothesis import strategies as st
from mangling import MANY, inspected

from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.inspect import inspect_folder
from lodger.errors import DamagedWeights, ModelProblem

INDEX = "model.safetensors.index.json"


def shard(number: int, total: int = 3) -> str:
    return f"model-{number:05}-of-{total:05}.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return maker.write_fake_folder(tmp_path / "m", "qwen3", shards=3)


def change_index(folder: Path, **tensors: str | None) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= {name.replace("__", "."): file for name, file in tensors.items()}
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file}
    (folder / INDEX).write_text(json.dumps(index))


def test_shards_that_count_themselves_need_no_index(folder: Path) -> None:
    indexed = inspect_folder(folder)
    (folder / INDEX).unlink()
    assert inspect_folder(folder) == indexed


@pytest.mark.parametrize("lost", [1, 3])
def test_a_missing_shard_is_named_without_an_index(folder: Path, lost: int) -> None:
    (folder / INDEX).unlink()
    (folder / shard(lost)).unlink()
    with pytest.raises(DamagedWeights, match=f"{shard(lost)} is missing beside 2 of 3 files") as caught:
        inspect_folder(folder)
    assert "lodger pull --verify" in str(caught.value.hint)


def test_shards_of_two_models_are_not_mixed(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / shard(1)).rename(folder / shard(1, 4))
    with pytest.raises(DamagedWeights, match="belong to different models"):
        inspect_folder(folder)


def test_a_tensor_in_two_shards(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / shard(2)).write_bytes((folder / shard(1)).read_bytes())
    with pytest.raises(DamagedWeights, match=f"{shard(1)} and {shard(2)} both hold 'model"):
        inspect_folder(folder)


def test_an_index_that_lacks_what_its_shards_hold(folder: Path) -> None:
    change_index(folder, model__norm__weight=None)
    with pytest.raises(DamagedWeights, match=rf"{INDEX} does not name the tensor 'model.norm.weight' of") as caught:
        inspect_folder(folder)
    assert "lodger pull --verify" in str(caught.value.hint)


def test_an_index_that_points_to_the_wrong_shard(folder: Path) -> None:
    held = json.loads((folder / INDEX).read_text())["weight_map"]["model.norm.weight"]
    wrong = next(name for name in map(shard, (1, 2, 3)) if name != held)
    change_index(folder, model__norm__weight=wrong)
    with pytest.raises(DamagedWeights, match=f"{wrong} lacks the tensor 'model.norm.weight'"):
        inspect_folder(folder)


def test_an_index_that_is_no_json(folder: Path) -> None:
    (folder / INDEX).write_text("{")
    with pytest.raises(ModelProblem, match=f"{INDEX} is not JSON"):
        inspect_folder(folder)


def test_an_index_wins_over_the_count_in_the_names(folder: Path) -> None:
    for number in (1, 2, 3):
        (folder / shard(number)).rename(folder / shard(number, 9))
    (folder / INDEX).write_text((folder / INDEX).read_text().replace("-of-00003", "-of-00009"))
    assert inspect_folder(folder).parameters


@MANY
@given(data=st.data())
def test_mangled_indices_never_raise_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "m"
    if not folder.exists():
        maker.write_fake_folder(folder, "qwen3", shards=2, num_hidden_layers=1)
        (tmp_path / "pristine").write_bytes((folder / INDEX).read_bytes())
    raw = bytearray((tmp_path / "pristine").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=4))
    (folder / INDEX).write_bytes(raw)
    told = inspected(folder)
    assert msgspec.json.encode(told)
    assert isinstance(told, ModelFacts) or told.code in ("damaged_weights", "model_problem")
