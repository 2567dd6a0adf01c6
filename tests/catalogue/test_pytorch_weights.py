"""A folder with PyTorch's own weights is inspected by the directory of their zip file; nothing is unpickled."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny as maker
from hypothesis import given
from hypothesis import strategies as st
from mangling import MANY, inspected

from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.inspect import inspect_folder
from lodger.catalogue.pytorch_files import checkpoint_files
from lodger.errors import DamagedWeights, FolderWithoutWeights, ModelProblem

Tiny = Callable[..., Path]
BIN = "pytorch_model.bin"
PLAIN = ("archive/data.pkl", b"\x80\x02."), ("archive/data/0", b"\0" * 40), ("archive/version", b"3\n")


def write_zip(path: Path, entries: Iterable[tuple[str, bytes]] = PLAIN, compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)


def save_as_pytorch(folder: Path, name: str = BIN, **options: Any) -> None:
    """Put torch's file in the place of the safetensors one."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / name, **options)
    (folder / "model.safetensors").unlink()


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    copied = shutil.copytree(tiny("bge-m3"), tmp_path / "my-bge")
    (copied / "model.safetensors").unlink()
    return copied


def test_what_torch_saves_has_the_same_facts_as_the_safetensors(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bge-m3"), tmp_path / "bge-m3")
    before = inspect_folder(folder)
    save_as_pytorch(folder)
    after = inspect_folder(folder)
    assert (before.weights_format, after.weights_format) == ("safetensors", "pytorch")
    assert msgspec.structs.replace(after, weights_format="safetensors") == before


def test_bge_m3_with_its_heads_as_published(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bge-m3"), tmp_path / "bge-m3")
    whole = inspect_folder(folder).parameters
    save_as_pytorch(folder)
    write_zip(folder / "sparse_linear.pt")
    facts = inspect_folder(folder)
    assert (facts.parameters, facts.token_heads, facts.weights_format) == (whole + 10, ("sparse",), "pytorch")


def test_safetensors_win_where_both_are_there(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bge-m3"), tmp_path / "m")
    (folder / BIN).write_bytes(b"whatever")
    assert inspect_folder(folder) == msgspec.structs.replace(inspect_folder(tiny("bge-m3")), path=str(folder))


@pytest.mark.parametrize(
    ("config", "stored", "parameters"),
    [
        ({"torch_dtype": "float16"}, {"float16": 40}, 20),
        ({"torch_dtype": None, "dtype": "bfloat16"}, {"bfloat16": 40}, 20),
        ({"torch_dtype": "torch.float64"}, {"float64": 40}, 5),
        ({"torch_dtype": None}, {"float32": 40}, 10),
        ({"torch_dtype": "int8"}, {"float32": 40}, 10),
        ({"torch_dtype": ["float16"]}, {"float32": 40}, 10),
    ],
)
def test_the_dtype_is_what_config_json_says(
    folder: Path, config: dict[str, Any], stored: dict[str, int], parameters: int
) -> None:
    write_zip(folder / BIN)
    (folder / "config.json").write_text(json.dumps({**json.loads((folder / "config.json").read_text()), **config}))
    facts = inspect_folder(folder)
    assert (facts.stored_bytes, facts.parameters) == (stored, parameters)


@pytest.mark.parametrize("with_index", [True, False])
def test_shards_with_and_without_an_index(folder: Path, with_index: bool) -> None:
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for name in names:
        write_zip(folder / name)
    if with_index:
        (folder / f"{BIN}.index.json").write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    assert inspect_folder(folder).stored_bytes == {"float32": 80}
    assert [path.name for path in checkpoint_files(folder)] == names
    (folder / names[0]).unlink()
    with pytest.raises(DamagedWeights, match=f"{names[0]} is missing"):
        inspect_folder(folder)


def test_a_file_before_torch_1_6_says_so(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("bge-m3"), tmp_path / "m")
    save_as_pytorch(folder, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelProblem, match="bare pickle, as PyTorch wrote before version 1.6") as caught:
        inspect_folder(folder)
    assert "safetensors" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"\(0 bytes\) is no checkpoint"),
        (b"\x08\0\0\0\0\0\0\0{}", r"\(10 bytes\) is no checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer of 43 bytes"),
        (b"\x80\x04}.", "bare pickle"),
        (b"PK\x03\x04" + b"\0" * 100, "damaged or cut short"),
        (b"PK\x03\x04" + b"PK\x05\x06" + b"\xff" * 18, "damaged or cut short"),
    ],
)
def test_files_that_are_no_checkpoint(folder: Path, content: bytes, said: str) -> None:
    (folder / BIN).write_bytes(content)
    with pytest.raises(ModelProblem, match=said):
        inspect_folder(folder)


def test_zip_files_that_torch_would_not_write(folder: Path) -> None:
    cases: list[tuple[tuple[tuple[str, bytes], ...], int, str]] = [
        (PLAIN, zipfile.ZIP_DEFLATED, "compresses its entry"),
        (PLAIN[1:], zipfile.ZIP_STORED, "a zip file, but no checkpoint"),
        ((*PLAIN, ("other/data.pkl", b"")), zipfile.ZIP_STORED, "a zip file, but no checkpoint"),
        ((("word/document.xml", b"<a/>"),), zipfile.ZIP_STORED, "a zip file, but no checkpoint"),
    ]
    for entries, compression, said in cases:
        write_zip(folder / BIN, entries, compression)
        with pytest.raises(DamagedWeights, match=said):
            inspect_folder(folder)


def patch_directory(path: Path, name: bytes, at: int, value: bytes) -> None:
    """Overwrite bytes `at` of the directory entry of `name` (APPNOTE.TXT 4.3.12)."""
    data = bytearray(path.read_bytes())
    entry = data.rindex(name) - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"
    data[entry + at : entry + at + len(value)] = value
    path.write_bytes(data)


def test_absurd_sizes_and_overlaps(folder: Path) -> None:
    write_zip(folder / BIN)
    patch_directory(folder / BIN, b"archive/data/0", 20, (2**31).to_bytes(4, "little") * 2)
    with pytest.raises(DamagedWeights, match="begins inside of another"):
        inspect_folder(folder)
    write_zip(folder / BIN, reversed(PLAIN))
    patch_directory(folder / BIN, b"archive/data.pkl", 20, (2**31).to_bytes(4, "little") * 2)
    with pytest.raises(DamagedWeights, match=r"entries reach byte 2,147,4\d\d,\d\d\d, but \d+ are there"):
        inspect_folder(folder)
    write_zip(folder / BIN)
    patch_directory(folder / BIN, b"archive/version", 42, b"\0\0\0\0")
    with pytest.raises(DamagedWeights, match="begins inside of another"):
        inspect_folder(folder)


def test_an_entry_that_is_there_twice(folder: Path) -> None:
    write_zip(folder / BIN, (*PLAIN, ("archive/data/1", b"\0" * 40)))
    patch_directory(folder / BIN, b"archive/data/1", 46, b"archive/data/0")
    with pytest.raises(DamagedWeights, match="a zip file, but no checkpoint"):
        inspect_folder(folder)


def test_a_directory_of_gigabytes_is_not_read(folder: Path) -> None:
    write_zip(folder / BIN)
    end = (folder / BIN).read_bytes()[-22:]
    size = 2**31
    with (folder / BIN).open("r+b") as file:  # sparse: it takes no disk
        file.truncate(size)
        file.seek(size)
        file.write(end[:12] + (size - 100).to_bytes(4, "little") + (100).to_bytes(4, "little") + end[20:])
    with pytest.raises(DamagedWeights, match=f"its directory would have {size - 100:,} bytes"):
        inspect_folder(folder)


def test_other_formats_are_named(folder: Path) -> None:
    for name in ("model.onnx", "tf_model.h5"):
        (folder / name).write_bytes(b"x")
    with pytest.raises(FolderWithoutWeights, match=r"only model\.onnx, tf_model\.h5"):
        inspect_folder(folder)


@MANY
@given(data=st.data())
def test_mangled_checkpoints_never_raise_anything_else(tmp_path: Path, data: st.DataObject) -> None:
    folder, pristine = tmp_path / "m", tmp_path / "pristine"
    if not pristine.exists():
        maker.write_fake_folder(folder, "bge-m3")
        (folder / "model.safetensors").unlink()
        write_zip(pristine)
    raw = bytearray(pristine.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (folder / BIN).write_bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
    told = inspected(folder)
    assert msgspec.json.encode(told)
    if isinstance(told, ModelFacts):
        assert sum(told.stored_bytes.values()) <= len(raw)
