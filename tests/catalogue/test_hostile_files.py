"""No file of a model folder leads Lodger elsewhere, blocks it, or makes it read more than it has to."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
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
from lodger.errors import DamagedWeights, ModelProblem

Tiny = Callable[..., Path]
WEIGHTS = "model.safetensors"
READ = ["config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json",
        "config_sentence_transformers.json", "tokenizer_config.json", WEIGHTS]  # fmt: skip


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    return shutil.copytree(tiny("minilm"), tmp_path / "my-model")


def bytes_read() -> int:
    """By this process so far, whatever it called."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("name", READ)
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.move(folder / name, tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelProblem, match=f"{name} is a link that leads out of the model's folder") as caught:
        inspect_folder(folder)
    assert str(tmp_path) not in caught.value.text


def test_a_linked_subfolder_leads_out_as_well(folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "1_Pooling", tmp_path / "elsewhere")
    (folder / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelProblem, match=r"1_Pooling/config\.json is a link that leads out"):
        inspect_folder(folder)


def test_links_inside_the_folder_and_to_it_are_followed(folder: Path, tmp_path: Path) -> None:
    plain = inspect_folder(folder)
    (folder / "data").mkdir()
    for name in READ:
        kept = folder / "data" / name.replace("/", "-")
        shutil.move(folder / name, kept)
        (folder / name).symlink_to(kept)
    assert inspect_folder(folder) == plain
    (tmp_path / "link").symlink_to(folder)
    assert inspect_folder(tmp_path / "link") == msgspec.structs.replace(plain, path=str(tmp_path / "link"))


def to_cache(folder: Path, model: Path) -> Path:
    """`folder` as huggingface_hub keeps it: every file is a link to a blob of the model."""
    snapshot = model / "snapshots" / ("0" * 40)
    (model / "blobs").mkdir(parents=True)
    for number, file in enumerate(file for file in sorted(folder.rglob("*")) if file.is_file()):
        shutil.copy(file, model / "blobs" / str(number))
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(model / "blobs" / str(number), link.parent))
    return snapshot


def test_hugging_faces_cache_is_read_in_place(folder: Path, tmp_path: Path) -> None:
    snapshot = to_cache(folder, tmp_path / "hub" / "models--sentence-transformers--all-MiniLM-L6-v2")
    assert inspect_folder(snapshot) == msgspec.structs.replace(inspect_folder(folder), path=str(snapshot))


@pytest.mark.parametrize("target", ["hub/models--other--model/blobs/secret", "hub/secret", "hub/blobs/secret",
                                    "hub/models--a--b/refs/secret", "hub/models--a--b/blobs/x/secret"])  # fmt: skip
def test_only_the_models_own_blobs_are_read(folder: Path, tmp_path: Path, target: str) -> None:
    snapshot = to_cache(folder, tmp_path / "hub" / "models--a--b")
    (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / target).write_text("{}")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / target)
    with pytest.raises(ModelProblem, match=r"config\.json is a link that leads out"):
        inspect_folder(snapshot)


def test_a_folder_that_only_looks_like_the_cache(folder: Path, tmp_path: Path) -> None:
    snapshot = to_cache(folder, tmp_path / "hub" / "not-models--a--b")
    with pytest.raises(ModelProblem, match="leads out"):
        inspect_folder(snapshot)


def test_links_to_nothing_and_in_circles(folder: Path) -> None:
    for name in READ:
        kept = (folder / name).read_bytes()
        (folder / name).unlink()
        (folder / name).symlink_to("gone")
        with pytest.raises(ModelProblem, match=f"{name} cannot be read: it is a link to no file"):
            inspect_folder(folder)
        (folder / name).unlink()
        (folder / name).symlink_to(Path(name).name)
        with pytest.raises(ModelProblem, match=f"{name} (cannot be read|is a link)"):
            inspect_folder(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(kept)


@pytest.mark.parametrize("name", READ)
def test_pipes_folders_and_sockets_do_not_block(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ModelProblem, match=f"{name} cannot be read: it is a pipe or a device"):
        inspect_folder(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(ModelProblem, match=f"{name} cannot be read: it is a folder"):
        inspect_folder(folder)
    path.rmdir()
    monkeypatch.chdir(path.parent)  # the path of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)
        with pytest.raises(ModelProblem, match=f"{name} cannot be read"):
            inspect_folder(folder)


def test_pipes_where_a_chat_model_reads(tiny: Tiny, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("qwen3"), tmp_path / "m")
    (folder / "additional_chat_templates").mkdir()
    for name in ("generation_config.json", "special_tokens_map.json", "chat_template.jinja",
                 "additional_chat_templates/rag.jinja"):  # fmt: skip
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        with pytest.raises(ModelProblem, match=f"{name} cannot be read: it is a pipe"):
            inspect_folder(folder)
        (folder / name).unlink()
    assert inspect_folder(folder).chat_template


@pytest.mark.parametrize("name", READ)
def test_a_file_that_may_not_be_read(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, *args: Any) -> int:  # by hand, for root may read everything
        if str(path) == str(folder / name):
            raise PermissionError(13, "Permission denied")
        return real(path, *args)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ModelProblem, match=f"{name} cannot be read: Permission denied"):
        inspect_folder(folder)


@pytest.mark.parametrize("name", READ)
def test_git_lfs_pointers_are_named(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelProblem, match=f"{name} is .*Git LFS pointer"):
        inspect_folder(folder)


def test_of_equal_keys_in_a_config_the_last_counts_as_in_every_other_reader(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text('{"hidden_size": 7,' + text.lstrip()[1:])
    assert inspect_folder(folder).hidden_size == 64


def test_equal_names_of_tensors_are_refused(folder: Path) -> None:
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f'{{"a":{entry},"a":{entry}}}'.encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(DamagedWeights, match="names something twice"):
        inspect_folder(folder)


@pytest.mark.parametrize(
    "value", ["1" * 5000, "1" * 200_000, "-1e999", "1e999", "NaN", '"\\ud800"', "[" * 900 + "]" * 900]
)
@pytest.mark.parametrize("key", ["hidden_size", "pad_token_id", "tie_word_embeddings", "architectures", "id2label"])
def test_values_that_break_readers(folder: Path, key: str, value: str) -> None:
    text = (folder / "config.json").read_text().strip()
    (folder / "config.json").write_text(f'{text[:-1]}, "{key}": {value}}}')
    assert msgspec.json.encode(inspected(folder))


def test_a_model_of_any_size_costs_its_headers(tmp_path: Path) -> None:
    folder = maker.write_fake_folder(tmp_path / "q", "qwen3", "BF16", **maker.QWEN3_4B)
    small = sum(file.stat().st_size for file in folder.iterdir() if file.name not in (WEIGHTS, "tokenizer.json"))
    with (folder / WEIGHTS).open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    before = bytes_read()
    assert inspect_folder(folder).parameters > 4e9
    assert bytes_read() - before < 2 * small + header + 20_000  # a few are read twice; buffers round up


LIMIT = 1_000_000  # bytes; each of these folders has under 200 KB, and no file is read more than three times


@pytest.mark.parametrize("family", ["bge-m3", "bge-reranker", "qwen3"])
@MANY
@given(data=st.data())
def test_whatever_bytes_change_it_ends_in_facts_or_a_named_error(
    tiny: Tiny, tmp_path: Path, family: str, data: st.DataObject
) -> None:
    folder = tmp_path / family
    if not folder.exists():
        shutil.copytree(tiny(family), folder)
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    name = data.draw(st.sampled_from(files))
    original = (tiny(family) / name).read_bytes()
    (folder / name).write_bytes(mangle(original, data))
    before = bytes_read()
    told = inspected(folder, data.draw(st.sampled_from([None, "chat", "embedding", "rerank"])))
    read = bytes_read() - before
    (folder / name).write_bytes(original)
    assert msgspec.json.encode(told)
    assert isinstance(told, ModelFacts) or told.code in KNOWN
    assert read < LIMIT


KNOWN = {"model_problem", "damaged_weights", "folder_without_weights", "unknown_architecture", "wrong_kind"}


def mangle(original: bytes, data: st.DataObject) -> bytes:
    """Some bytes overwritten, removed or put in, mostly where headers are; or the end cut off."""
    raw = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, min(len(raw), 4096)) | st.integers(0, len(raw)))
        cut = data.draw(st.sampled_from([0, 1, 8, len(raw)]))
        raw[at : at + cut] = data.draw(
            st.binary(max_size=8) | st.sampled_from([b"[" * 5000, b"9" * 5000, b'"\\ud800"'])
        )
    return bytes(raw)


def json_of(value: Any) -> bytes:
    return json.dumps(value).encode()


@MANY
@given(
    sizes=st.lists(st.tuples(st.integers(-1, 40), st.integers(-1, 40)), max_size=4),
    dtype=st.sampled_from(["F32", "BF16", "I64", "F8_E4M3", "BOOL"]),
    tail=st.integers(0, 64),
    claimed=st.none() | st.integers(0, 2**64 - 1),
)
def test_generated_headers_pass_only_if_they_fill_their_file(
    tmp_path: Path, sizes: list[tuple[int, int]], dtype: str, tail: int, claimed: int | None
) -> None:
    folder = tmp_path / "m"
    if not folder.exists():
        maker.write_fake_folder(folder, "qwen3")
    item = {"F32": 4, "BF16": 2, "I64": 8, "F8_E4M3": 1, "BOOL": 1}[dtype]
    header = {str(n): {"dtype": dtype, "shape": [(end - start) // item], "data_offsets": [start, end]}
              for n, (start, end) in enumerate(sizes)}  # fmt: skip
    text = json_of(header)
    (folder / WEIGHTS).write_bytes((claimed or len(text)).to_bytes(8, "little") + text + b"\0" * tail)
    told = inspected(folder)
    spans = sorted(sizes)
    whole = [start for start, _ in spans] + [tail] == [0] + [end for _, end in spans]
    sane = all(0 <= start <= end and (end - start) % item == 0 for start, end in sizes)
    if claimed in (None, 0, len(text)):
        assert isinstance(told, ModelFacts) == (whole and sane)
    else:
        assert not isinstance(told, ModelFacts)
