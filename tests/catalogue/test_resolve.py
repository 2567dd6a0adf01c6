"""A model is found by path or by any name that people, hubs and Xinference give it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lodger.catalogue.resolve import resolve
from lodger.errors import FolderMissing, LodgerError, NotDownloaded, UnknownName
from lodger.spec import ModelSpec


def put(models: Path, *names: str) -> Path:
    """Model folders under `models`, empty but for what makes them one."""
    for name in names:
        (models / name).mkdir(parents=True)
        (models / name / "config.json").write_text("{}")
    return models


@pytest.fixture
def models(tmp_path: Path) -> Path:
    put(tmp_path, "secret")
    return put(tmp_path / "models", "bge-m3", "Qwen/Qwen3-4B-Instruct-2507", "Qwen3-1.7B", "mine", "team/theirs")


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
        ("https://www.modelscope.cn/models/Qwen/Qwen3-4B-Instruct-2507/files", None),
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


@pytest.mark.parametrize("name", ["bge-m3", "BAAI/bge-m3", "BGE-M3", "bge_m3"])
def test_a_size_that_picks_nothing_is_ignored_as_in_the_guide(models: Path, name: str) -> None:
    assert found(models, name, "0.6") == "bge-m3"


@pytest.mark.parametrize(
    "folder", ["Qwen3-0.6B", "Qwen3-0___6B", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0___6B", "qwen/qwen3-0.6b", "qwen3-0.6b"]
)
@pytest.mark.parametrize("name", ["Qwen3-0.6B", "qwen3-0.6b", "Qwen/Qwen3-0.6B", "Qwen3-0___6B"])
def test_a_folder_may_be_spelt_as_any_tool_spells_it(tmp_path: Path, folder: str, name: str) -> None:
    assert found(put(tmp_path, folder), name) == folder
    assert found(tmp_path, "qwen3", "0.6") == folder


def test_of_several_folders_our_own_name_wins(tmp_path: Path) -> None:
    put(tmp_path, "Qwen/Qwen3-0___6B", "qwen3-0.6b")
    assert found(tmp_path, "Qwen/Qwen3-0.6B") == "qwen3-0.6b"
    put(tmp_path, "QWEN3-0.6B", "Qwen3-0.6B")
    assert found(tmp_path, "Qwen/Qwen3-0.6B") == "Qwen3-0.6B"


def test_a_model_of_another_organisation_is_another_model(tmp_path: Path) -> None:
    put(tmp_path, "somebody/bge-m3")
    with pytest.raises(NotDownloaded):
        found(tmp_path, "bge-m3")
    assert found(tmp_path, "somebody/bge-m3") == "somebody/bge-m3"


def test_the_catalogue_fills_the_kind_unless_it_was_said(models: Path) -> None:
    assert resolve(ModelSpec(uid="x", name="bge-m3"), models).kind == "embedding"
    assert resolve(ModelSpec(uid="x", name="bge-m3", kind="rerank"), models).kind == "rerank"
    assert resolve(ModelSpec(uid="x", name="mine"), models).kind is None


def test_a_uid_alone_is_a_name(models: Path) -> None:
    assert resolve(ModelSpec(uid="bge-m3"), models).path == str(models / "bge-m3")


def test_any_folder_under_models_is_a_name(models: Path) -> None:
    assert found(models, "mine") == "mine"
    assert found(models, "team/theirs") == "team/theirs"


def test_what_pull_fetched_by_a_hubs_id_is_found_by_that_id(models: Path) -> None:
    assert found(models, "someone/mine") == "mine"


def test_a_folder_that_was_fetched_by_another_id_is_not_taken_for_this_one(models: Path) -> None:
    (models / "bge-m3" / ".lodger.json").write_text('{"repo": "tuned/bge-m3"}')
    assert found(models, "Tuned/bge-m3") == found(models, "bge-m3") == "bge-m3"
    for asked in ("BAAI/bge-m3", "someone/bge-m3"):
        with pytest.raises(NotDownloaded):
            found(models, asked)
    for note in ('{"repo": "BAAI/bge-m3"}', "{", "[]", '{"repo": 1}'):
        (models / "bge-m3" / ".lodger.json").write_text(note)
        assert found(models, "BAAI/bge-m3") == "bge-m3"


def test_a_folder_with_the_name_of_a_whole_family_is_meant_itself(models: Path) -> None:
    put(models, "qwen3")
    assert found(models, "qwen3") == "qwen3"


def test_a_path_wins_over_a_name(models: Path) -> None:
    spec = resolve(ModelSpec(uid="x", name="Qwen3-Instruct", size_in_billions="4", path=str(models / "mine")), models)
    assert (spec.path, spec.kind) == (str(models / "mine"), None)


def test_paths_relative_and_from_home(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models)
    monkeypatch.setenv("HOME", str(models))
    for path in ("mine", "./mine", "~/mine", "team/../mine"):
        assert resolve(ModelSpec(uid="x", path=path), models).path == str(models / "mine")


@pytest.mark.parametrize("path", ["/nowhere", "~nobody-has-this-name/x", "a\0b", "~\0", "x" * 5000])
def test_a_path_that_is_not_there(models: Path, path: str) -> None:
    with pytest.raises(FolderMissing, match="There is no folder") as caught:
        resolve(ModelSpec(uid="x", path=path), models)
    assert caught.value.param == "model_path"


def test_a_path_to_a_file(models: Path) -> None:
    with pytest.raises(FolderMissing, match="is a file"):
        resolve(ModelSpec(uid="x", path=__file__), models)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("bge-reranker-v2-m3", "bge-reranker-v2-m3"),
        ("baai/BGE-reranker-v2-m3", "bge-reranker-v2-m3"),
        ("someone/something", "someone/something"),
        ("https://huggingface.co/someone/something", "someone/something"),
    ],
)
def test_a_model_that_is_not_on_the_machine_comes_with_the_line_that_gets_it(
    models: Path, asked: str, name: str
) -> None:
    with pytest.raises(NotDownloaded) as caught:
        resolve(ModelSpec(uid="x", name=asked), models)
    assert caught.value.message == f"{name} is not on this machine."
    assert caught.value.hint == f"Run: lodger pull {name}"


@pytest.mark.parametrize(
    ("folder", "asked", "name"),
    [
        ("bge-reranker-base", "bge-reranker-base", "bge-reranker-base"),
        ("BAAI/bge-reranker-base", "bge-reranker-base", "bge-reranker-base"),
        ("something", "someone/something", "someone/something"),
    ],
)
def test_half_a_download_is_not_taken_for_the_model(models: Path, folder: str, asked: str, name: str) -> None:
    (models / folder).mkdir(parents=True)
    (models / folder / "tokenizer.json").write_text("{}")
    with pytest.raises(NotDownloaded, match=r"only partly .* no config\.json") as caught:
        found(models, asked)
    assert caught.value.hint == f"Run: lodger pull --verify {name}"
    put(models, "whole/" + name.rpartition("/")[2])
    assert found(models, f"whole/{name.rpartition('/')[2]}")  # another, whole one is not hidden by it


def test_a_whole_folder_wins_over_half_of_the_canonical_one(tmp_path: Path) -> None:
    (tmp_path / "bge-m3").mkdir()
    put(tmp_path, "BAAI/bge-m3")
    assert found(tmp_path, "bge-m3") == "BAAI/bge-m3"


def test_a_folder_of_ones_own_without_a_model_says_what_is_missing(models: Path) -> None:
    (models / "draft").mkdir()
    with pytest.raises(FolderMissing, match=r"'draft' holds no model: it has no config\.json"):
        found(models, "draft")


def test_an_organisations_folder_is_no_model(models: Path) -> None:
    with pytest.raises(UnknownName):
        found(models, "team")


def test_sizes_are_named_when_one_is_needed_or_wrong(models: Path) -> None:
    with pytest.raises(UnknownName, match="is needed for qwen3") as caught:
        resolve(ModelSpec(uid="x", name="qwen3"), models)
    assert "0.6, 1.7, 4, 8" in caught.value.text
    assert "`lodger pull Qwen/Qwen3-4B`" in caught.value.text
    for size in ("70", "many"):
        with pytest.raises(UnknownName, match=f"'{size}' is not a known one"):
            resolve(ModelSpec(uid="x", name="qwen3", size_in_billions=size), models)


@pytest.mark.parametrize("name", ["../secret", "/etc", "..", ".", "~", "a/../../secret", "mine/../../secret", ""])
def test_a_name_never_leads_out_of_the_models_folder(models: Path, name: str) -> None:
    with pytest.raises(UnknownName):
        resolve(ModelSpec(uid="nobody", name=name), models) if name else resolve(ModelSpec(uid=".."), models)


def test_a_folder_for_models_that_is_not_there_or_no_folder_holds_none(tmp_path: Path) -> None:
    for models in (tmp_path / "nowhere", Path(__file__)):
        with pytest.raises(NotDownloaded):
            found(models, "bge-m3")


NAMES = st.one_of(
    st.text(st.characters()),
    st.text("./\\~-_ \0aBm3", max_size=12),
    st.lists(st.sampled_from(["bge-m3", "mine", "team", "..", "secret", "/", "BAAI", "___", "https://hf.co"])).map(
        "/".join
    ),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=NAMES, size=st.none() | st.text(st.characters(), max_size=5))
def test_whatever_is_typed_as_a_name_ends_under_the_models_folder_or_in_our_error(
    models: Path, name: str, size: str | None
) -> None:
    try:
        spec = resolve(ModelSpec(uid="x", name=name, size_in_billions=size), models)
        told = spec.path or ""
        assert Path(told).resolve().is_relative_to(models.resolve())
        assert Path(told) != models
    except (UnknownName, FolderMissing) as error:
        told = error.text
    assert msgspec.json.encode(told)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.text(st.characters()))
def test_whatever_is_typed_as_a_path_ends_in_a_folder_or_in_our_error(models: Path, path: str) -> None:
    try:
        told = resolve(ModelSpec(uid="x", path=path), models).path
    except LodgerError as error:
        told = error.text
    assert msgspec.json.encode(told)


def test_yaml_is_loaded_only_for_a_name() -> None:
    code = "import sys, lodger.catalogue.resolve; print('yaml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
