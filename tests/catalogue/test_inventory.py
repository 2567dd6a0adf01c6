"""What is known and what is here, side by side; a folder that cannot be served says why."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodger.catalogue.builtin import builtin
from lodger.catalogue.folders import model_folders, modelscope_origin
from lodger.catalogue.inventory import KnownModel, inventory

Tiny = Callable[..., Path]


def by_name(models: Path) -> dict[str, KnownModel]:
    return {model.name: model for model in inventory(models)}


def test_without_a_folder_for_models_the_catalogue_is_known(tmp_path: Path) -> None:
    known = inventory(tmp_path / "nowhere")
    assert [model.name for model in known] == [entry.name for entry in builtin().models]
    assert {model.state for model in known} == {"absent"}
    chat = by_name(tmp_path)["Qwen3-4B-Instruct-2507"]
    assert (chat.kind, chat.xinference, chat.size_in_billions) == ("chat", "Qwen3-Instruct", 4)
    assert chat.modelscope == chat.huggingface == "Qwen/Qwen3-4B-Instruct-2507"


def test_what_is_here_comes_first_under_its_name_with_its_size(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny("bge-m3"), tmp_path / "bge-m3")
    shutil.copytree(tiny("qwen3"), tmp_path / "Qwen/Qwen3-0___6B")
    shutil.copytree(tiny("llama"), tmp_path / "mine")
    first = inventory(tmp_path)[:3]
    assert [(model.name, model.folder, model.kind, model.state) for model in first] == [
        ("Qwen3-0.6B", "Qwen/Qwen3-0___6B", "chat", "downloaded"),
        ("bge-m3", "bge-m3", "embedding", "downloaded"),
        ("mine", "mine", "chat", "downloaded"),
    ]
    files = [file for file in (tmp_path / "bge-m3").rglob("*") if file.is_file()]
    assert first[1].bytes_on_disk == sum(file.stat().st_size for file in files) > 0


def test_a_second_folder_of_one_model_is_listed_too(tiny: Tiny, tmp_path: Path) -> None:
    for name in ("bge-m3", "BAAI/bge-m3"):
        shutil.copytree(tiny("bge-m3"), tmp_path / name)
    here = [model for model in inventory(tmp_path) if model.folder]
    assert [(model.name, model.folder) for model in here] == [("bge-m3", "bge-m3"), ("BAAI/bge-m3", "BAAI/bge-m3")]


def test_what_cannot_be_served_says_why_and_what_to_do(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "bge-m3").mkdir()
    (tmp_path / "bge-m3" / "tokenizer.json").write_text("{}")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "config.json").write_text('{"architectures": ["GPT2"], "model_type": "gpt2"}')
    shutil.copytree(tiny("bge-reranker"), tmp_path / "bge-reranker-base")
    with (tmp_path / "bge-reranker-base" / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    shutil.copytree(tiny("llama"), tmp_path / "Qwen3-Embedding-0.6B")
    known = by_name(tmp_path)
    said = {
        "bge-m3": "only partly on this machine",
        "strange": "gpt2",
        "bge-reranker-base": "cut short",
        "Qwen3-Embedding-0.6B": "LlamaForCausalLM",
    }
    for name, words in said.items():
        model = known[name]
        assert model.state == "problem"
        assert model.error is not None
        assert words in model.error.message
    assert known["bge-m3"].error is not None
    assert known["bge-m3"].error.hint == "Run: lodger pull --verify bge-m3"


def test_a_search_looks_at_every_name(tmp_path: Path) -> None:
    words = by_name(tmp_path)["Llama-3.2-1B-Instruct"].words
    assert all(word in words for word in ("llama-3.2-1b-instruct", "meta-llama/", "llm-research/"))
    assert "qwen3-instruct" in by_name(tmp_path)["Qwen3-4B-Instruct-2507"].words


def test_folders_that_tools_keep_for_themselves_are_no_models(tmp_path: Path) -> None:
    for name in (".cache", "._____temp/BAAI", "Qwen/.lock", "Qwen/real", "half/1_Pooling"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "Qwen" / ".DS_Store").write_bytes(b"")
    (tmp_path / "half" / "model.safetensors").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / b"\xff".decode(errors="surrogateescape")).mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "half")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert [(folder.name, folder.whole) for folder in model_folders(tmp_path)] == [
        ("Qwen/real", False),
        ("half", False),
        ("linked", False),
    ]


class Harmful:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("a pickle was run",))


def test_what_modelscopes_tool_noted_is_read_without_running_its_pickle(tmp_path: Path) -> None:
    note = tmp_path / ".mdl"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        note.write_bytes(pickle.dumps({"id": "BAAI/bge-m3"}, protocol))
        assert modelscope_origin(tmp_path) == "BAAI/bge-m3"
    for value in ({"id": "unknown"}, {"id": Harmful()}, Harmful(), ["id", "a/b", "c"], {}, b"id"):
        note.write_bytes(pickle.dumps(value))
        assert modelscope_origin(tmp_path) is None
    note.unlink()
    assert modelscope_origin(tmp_path) is None


@given(data=st.binary(max_size=64))
def test_any_bytes_in_its_place_are_a_note_or_none(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / ".mdl").write_bytes(pickle.dumps({"id": "a/b"}, 4)[: len(data)] + data)
    assert "/" in (modelscope_origin(folder) or "/")
