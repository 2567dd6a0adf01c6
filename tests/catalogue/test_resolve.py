"""A model is found by path or by any name that people, hubs and Xinference give it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lodger.catalogue.resolve import Entry, catalogue, resolve
from lodger.errors import FolderMissing, LodgerError, UnknownName
from lodger.spec import ModelSpec


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("bge-m3", "Qwen/Qwen3-4B-Instruct-2507", "Qwen3-1.7B", "mine", "team/theirs"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    return tmp_path / "models"


def found(models: Path, name: str, size: str | None = None) -> str:
    """The folder found, relative to the models folder."""
    spec = resolve(ModelSpec(uid="x", name=name, size_in_billions=size), models)
    assert spec.path is not None
    return str(Path(spec.path).relative_to(models))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen3-4B-Instruct-2507", None),
        ("qwen3-4b-instruct-2507", None),
        ("Qwen/Qwen3-4B-Instruct-2507", None),
        ("Qwen3-Instruct", "4"),
        ("Qwen3-Instruct", "4B"),
        ("Qwen3-Instruct", None),
    ],
)
def test_the_guides_chat_model_by_all_its_names(models: Path, name: str, size: str | None) -> None:
    assert found(models, name, size) == "Qwen/Qwen3-4B-Instruct-2507"


@pytest.mark.parametrize("size", ["1_7", "1.7", " 1.7b"])
def test_xinferences_ways_to_write_a_size(models: Path, size: str) -> None:
    assert found(models, "qwen3", size) == "Qwen3-1.7B"


@pytest.mark.parametrize("name", ["bge-m3", "BAAI/bge-m3", "BGE-M3"])
def test_a_size_that_picks_nothing_is_ignored_as_in_the_guide(models: Path, name: str) -> None:
    assert found(models, name, "0.6") == "bge-m3"


def test_the_catalogue_fills_the_kind_unless_it_was_said(models: Path) -> None:
    assert resolve(ModelSpec(uid="x", name="bge-m3"), models).kind == "embedding"
    assert resolve(ModelSpec(uid="x", name="bge-m3", kind="rerank"), models).kind == "rerank"
    assert resolve(ModelSpec(uid="x", name="mine"), models).kind is None


def test_a_uid_alone_is_a_name(models: Path) -> None:
    assert resolve(ModelSpec(uid="bge-m3"), models).path == str(models / "bge-m3")


def test_any_folder_under_models_is_a_name(models: Path) -> None:
    assert found(models, "mine") == "mine"
    assert found(models, "team/theirs") == "team/theirs"


def test_a_path_wins_over_a_name(models: Path) -> None:
    spec = resolve(ModelSpec(uid="x", name="Qwen3-Instruct", size_in_billions="4", path=str(models / "mine")), models)
    assert (spec.path, spec.kind) == (str(models / "mine"), None)


def test_paths_relative_and_from_home(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    monkeypatch.setenv("HOME", str(models))
    for path in ("mine", "./mine", "~/mine", "team/../mine"):
        assert resolve(ModelSpec(uid="x", path=path), models).path == str(models / "mine")


@pytest.mark.parametrize("path", ["/nowhere", "~nobody-has-this-name/x", "a\0b", "x" * 5000])
def test_a_path_that_is_not_there(models: Path, path: str) -> None:
    with pytest.raises(FolderMissing, match="There is no folder") as caught:
        resolve(ModelSpec(uid="x", path=path), models)
    assert caught.value.param == "model_path"


def test_a_path_to_a_file(models: Path) -> None:
    with pytest.raises(FolderMissing, match="is a file"):
        resolve(ModelSpec(uid="x", path=__file__), models)


def test_a_known_model_that_is_not_on_the_machine(models: Path) -> None:
    with pytest.raises(FolderMissing) as caught:
        resolve(ModelSpec(uid="x", name="bge-reranker-v2-m3"), models)
    text = caught.value.text
    assert "no bge-reranker-v2-m3 and no BAAI/bge-reranker-v2-m3" in text
    assert "--model-path" in text
    assert str(models) not in text


@pytest.mark.parametrize(
    ("name", "near"),
    [("Qwen3-4B-Instruct", "Qwen3-4B-Instruct-2507"), ("bge_m3", "bge-m3"), ("bge-rerank", "bge-reranker-base")],
)
def test_an_unknown_name_names_the_near_ones(models: Path, name: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        resolve(ModelSpec(uid="x", name=name), models)
    assert near in caught.value.text


def test_a_name_without_neighbours_says_what_works(models: Path) -> None:
    with pytest.raises(UnknownName) as caught:
        resolve(ModelSpec(uid="x", name="gpt-4"), models)
    assert "Did you mean" not in caught.value.text
    assert "--model-path" in caught.value.text


def test_sizes_are_named_when_one_is_needed_or_wrong(models: Path) -> None:
    with pytest.raises(UnknownName, match="is needed for qwen3") as caught:
        resolve(ModelSpec(uid="x", name="qwen3"), models)
    assert "0.6, 1.7, 4, 8" in caught.value.text
    for size in ("70", "many"):
        with pytest.raises(UnknownName, match=f"'{size}' is not a known one"):
            resolve(ModelSpec(uid="x", name="qwen3", size_in_billions=size), models)


@pytest.mark.parametrize("name", ["../secret", "/etc", "..", ".", "~", "a/../../secret", "mine/../../secret", ""])
def test_a_name_never_leads_out_of_the_models_folder(models: Path, name: str) -> None:
    with pytest.raises(UnknownName):
        resolve(ModelSpec(uid="nobody", name=name), models)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(st.characters()), size=st.none() | st.text(st.characters(), max_size=5), by_path=st.booleans())
def test_whatever_is_typed_ends_in_a_folder_or_in_our_error(
    models: Path, name: str, size: str | None, by_path: bool
) -> None:
    asked = ModelSpec(uid="x", path=name) if by_path else ModelSpec(uid="x", name=name, size_in_billions=size)
    try:
        told = resolve(asked, models).path
    except LodgerError as error:
        told = error.text
    assert msgspec.json.encode(told)


def test_no_name_means_two_models() -> None:
    names = [name.casefold() for entry in catalogue() for name in entry.names]
    assert len(names) == len(set(names))
    sizes = [(entry.xinference, entry.size) for entry in catalogue() if entry.size is not None]
    assert len(sizes) == len(set(sizes))


def test_an_entry_with_a_misspelt_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="modelscop"):
        msgspec.convert({"name": "a", "kind": "chat", "modelscop": "b"}, Entry)


def test_yaml_is_loaded_only_for_a_name() -> None:
    code = "import sys, lodger.catalogue.resolve; print('yaml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
