"""Weights that are damaged are refused with file and bytes named, and never with anything but our errors."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny as maker
from hypothesis import given
from hypothesis import strategies as st
from mangling import JSON, MANY, inspected

from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.inspect import inspect_folder
from lodger.errors import DamagedWeights, FolderWithoutWeights

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return maker.write_fake_folder(tmp_path / "my-model", "qwen3")


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_header(path: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_a_folder_without_weights_says_what_is_there(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(FolderWithoutWeights, match="my-model has no weights"):
        inspect_folder(folder)
    (folder / "model.gguf").write_bytes(b"x")
    os.close(os.open(os.fsencode(folder) + b"/\xff.onnx", os.O_CREAT))  # no text, so it cannot be named
    with pytest.raises(FolderWithoutWeights, match=r"has no model.safetensors, only model.gguf\.") as caught:
        inspect_folder(folder)
    assert "pytorch_model.bin" in str(caught.value.hint)


def test_a_link_to_weights_that_are_gone(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(folder / "blobs" / "gone")
    with pytest.raises(DamagedWeights, match="model.safetensors cannot be read: it is a link to no file"):
        inspect_folder(folder)


def test_truncated_weights_are_named_with_their_bytes(folder: Path) -> None:
    expected = (folder / WEIGHTS).stat().st_size
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(expected - 1000)
    with pytest.raises(DamagedWeights) as caught:
        inspect_folder(folder)
    assert f"{WEIGHTS} is cut short: {expected - 1000:,} bytes of {expected:,}" in caught.value.message


def test_weights_with_more_bytes_than_described(folder: Path) -> None:
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"more")
    with pytest.raises(DamagedWeights, match="its header describes"):
        inspect_folder(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes long"),
        (b"\x10\0\0", "3 bytes long"),
        (b"\x10\0\0\0\0\0\0\0{}", "cut short: 10 bytes of at least 24"),
        ((16 * 2**20 + 1).to_bytes(8, "little") + b"{}", "header would have 16,777,217 bytes"),
        (b"\xff" * 8, "header would have"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\x02\0\0\0\0\0\0\0no", "header that is not JSON"),
        (b"\x02\0\0\0\0\0\0\0[]", "no JSON object"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "header that is not JSON"),
    ],
)
def test_files_that_are_no_safetensors(folder: Path, content: bytes, said: str) -> None:
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(DamagedWeights, match=said):
        inspect_folder(folder)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "begins at byte"),  # a hole
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}, "gives the tensor 'b' 8 bytes, not 16"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "gives the tensor"),
        ({"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}, "wrongly"),
        ({"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}, "wrongly"),
        ({"dtype": "F32", "shape": [2**60], "data_offsets": [0, 8]}, "wrongly"),
        ({"dtype": "Q9", "shape": [2], "data_offsets": [0, 8]}, "wrongly"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 16]}, "wrongly"),
        ({"dtype": "F32", "shape": [2]}, "wrongly"),
        (7, "wrongly"),
    ],
)
def test_tensors_that_make_no_sense(folder: Path, entry: Any, said: str) -> None:
    write_header(folder / WEIGHTS, {"b": entry}, b"\0" * 12)
    with pytest.raises(DamagedWeights, match=said):
        inspect_folder(folder)


def test_tensors_that_overlap(folder: Path) -> None:
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    write_header(folder / WEIGHTS, {"a": one, "b": {**one, "data_offsets": [4, 12]}}, b"\0" * 12)
    with pytest.raises(DamagedWeights, match="'b' begins at byte"):
        inspect_folder(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": ["a"]}])
def test_an_index_that_maps_nothing(tmp_path: Path, index: Any) -> None:
    folder = maker.write_fake_folder(tmp_path / "m", "qwen3", shards=2)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedWeights, match="no weight_map"):
        inspect_folder(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = maker.write_fake_folder(tmp_path / "m", "qwen3", shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DamagedWeights, match="model-00002-of-00002.safetensors is missing"):
        inspect_folder(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/hosts", "..", "a/b.safetensors", "a\0b"])
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, name: str) -> None:
    folder = maker.write_fake_folder(tmp_path / "m", "qwen3", shards=2)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(DamagedWeights, match="outside of the folder"):
        inspect_folder(folder)


def test_a_tensor_that_its_shard_does_not_hold(tmp_path: Path) -> None:
    folder = maker.write_fake_folder(tmp_path / "m", "qwen3", shards=2)
    index = json.loads((folder / f"{WEIGHTS}.index.json").read_text())
    index["weight_map"]["model.ghost"] = "model-00001-of-00002.safetensors"
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedWeights, match=r"lacks the tensor 'model\.ghost'"):
        inspect_folder(folder)


@MANY
@given(data=st.data())
def test_mangled_headers_never_raise_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    path, pristine = tmp_path / "m" / WEIGHTS, tmp_path / "pristine"
    if not pristine.exists():
        maker.write_fake_folder(path.parent, "qwen3", num_hidden_layers=1, vocab_size=16, hidden_size=16)
        shutil.copy(path, pristine)
    shutil.copy(pristine, path)
    header, tail = header_of(path)
    how = data.draw(st.sampled_from(["bytes", "entry", "field", "tail"]))
    name = data.draw(st.sampled_from(sorted(header)))
    if how == "bytes":
        raw = bytearray(path.read_bytes())
        raw[data.draw(st.integers(0, len(json.dumps(header)) + 8))] = data.draw(st.integers(0, 255))
        path.write_bytes(raw)
    elif how == "tail":
        write_header(path, header, tail[: data.draw(st.integers(0, len(tail)))])
    else:
        entry = data.draw(JSON)
        if how == "field":
            entry = {**header[name], data.draw(st.sampled_from(["dtype", "shape", "data_offsets"])): entry}
        write_header(path, {**header, name: entry}, tail)
    told = inspected(path.parent)
    assert msgspec.json.encode(told)
    if isinstance(told, ModelFacts):
        assert sum(told.stored_bytes.values()) <= path.stat().st_size
