"""Names that users register, and the catalogue in the form of Xinference's registry."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lodger.catalogue.builtin import builtin
from lodger.catalogue.names import find
from lodger.catalogue.registered import Registered, parse
from lodger.catalogue.registrable import catalogue_registrations
from lodger.errors import FolderMissing, InvalidRequest, LodgerError, MalformedBody, UnknownName, Unsupported
from lodger.spec import ModelSpec, Registration

Tiny = Callable[..., Path]
CHAT = ModelSpec(uid="x", name="my-llm", kind="chat")


def chat(folder: object, **fields: Any) -> str:
    """As Xinference's pages write the JSON of a custom model."""
    specs = [{"model_format": "pytorch", "model_size_in_billions": 7, "quantization": "none", "model_id": "me/my-llm"}]
    specs[0]["model_uri"] = f"file://{folder}"
    return json.dumps({"version": 2, "context_length": 2048, "model_name": "my-llm", "model_specs": specs} | fields)


def test_a_registered_name_means_its_folder(tmp_path: Path) -> None:
    known = Registered(tmp_path / "none")
    known.add(parse("chat", chat(tmp_path)), persist=False)
    meant = known.launched(CHAT)
    assert (meant.path, meant.name, meant.kind, meant.notes) == (str(tmp_path), "my-llm", "chat", ())
    assert known.launched(ModelSpec(uid="x", name="my-llm")).kind == "chat"
    other = ModelSpec(uid="x", name="my-llm", kind="embedding")
    elsewhere = ModelSpec(uid="x", name="my-llm", path="/else")
    for spec in (other, elsewhere, ModelSpec(uid="x", name="nosuch"), ModelSpec(uid="my-llm", path="/a")):
        assert known.launched(spec) == spec


def test_a_size_picks_among_several(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    specs = [
        {"model_size_in_billions": "0_5", "model_uri": str(small)},
        {"model_size_in_billions": 7, "model_uri": f"file://{large}"},
    ]
    known = Registered(tmp_path)
    known.add(parse("chat", chat(tmp_path, model_specs=specs)), persist=False)
    sized = {size: ModelSpec(uid="x", name="my-llm", size_in_billions=size) for size in ("0.5", "7", "7.0", "8")}
    assert known.launched(sized["0.5"]).path == known.launched(CHAT).path == str(small)
    assert known.launched(sized["7"]).path == known.launched(sized["7.0"]).path == str(large)
    with pytest.raises(UnknownName, match="no size 8; it was registered with 0_5, 7"):
        known.launched(sized["8"])


def test_without_a_folder_the_hubs_id_is_looked_up(tmp_path: Path) -> None:
    known = Registered(tmp_path)
    known.add(parse("rerank", json.dumps({"model_name": "mine", "model_id": "BAAI/bge-reranker-base"})), persist=False)
    meant = known.launched(ModelSpec(uid="x", name="mine"))
    assert (meant.name, meant.path, meant.kind) == ("BAAI/bge-reranker-base", None, "rerank")


def test_what_a_registration_cannot_change_is_noted(tmp_path: Path) -> None:
    known = Registered(tmp_path)
    known.add(parse("chat", chat(tmp_path, chat_template="{{ x }}", stop=["a"], stop_token_ids=[])), persist=False)
    assert [note.split(" ")[0] for note in known.launched(CHAT).notes] == ["chat_template", "stop"]


def test_only_what_is_to_persist_outlives_the_server(tmp_path: Path) -> None:
    known = Registered(tmp_path / "registrations")
    known.add(parse("chat", chat(tmp_path)), persist=True)
    known.add(parse("embedding", chat(tmp_path, model_name="my-embedder", model_lang="我")), persist=True)
    known.add(parse("chat", chat(tmp_path, model_name="brief")), persist=False)
    again = Registered(tmp_path / "registrations")
    assert [one.name for one in again.of("chat")] == ["my-llm"]
    assert again.of("embedding") == known.of("embedding")
    again.remove("chat", "my-llm")
    with pytest.raises(InvalidRequest, match="my-llm not found"):
        again.remove("chat", "my-llm")
    assert Registered(tmp_path / "registrations").of("chat") == []
    again.add(parse("chat", chat(tmp_path)), persist=False)  # the name is free again


def test_a_damaged_file_is_named_in_the_log_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = Registered(tmp_path)
    known.add(parse("chat", chat(tmp_path)), persist=True)
    for name, content in (
        ("a", "{"),
        ("b", '{"kind": "image", "family": {}}'),
        ("c", '{"kind": "chat", "family": {}}'),
    ):
        (tmp_path / "chat" / f"{name}.json").write_text(content)
    with caplog.at_level(logging.ERROR):
        assert [one.name for one in Registered(tmp_path).of("chat")] == ["my-llm"]
    assert len(caplog.records) == 3


@pytest.mark.parametrize("name", ["my-llm", "bge-m3", "BAAI/bge-m3", "Qwen3-Instruct"])
def test_a_taken_name_is_refused(tmp_path: Path, name: str) -> None:
    known = Registered(tmp_path)
    known.add(parse("chat", chat(tmp_path)), persist=False)
    with pytest.raises(InvalidRequest, match="conflicts with existing model"):
        known.add(Registration(kind="chat", family={"model_name": name}), persist=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("{", MalformedBody, "not JSON"),
        ("[" * 5000, MalformedBody, "not JSON"),
        ("[]", MalformedBody, "no model_name"),
        (chat("/", model_name=5), MalformedBody, "no model_name"),
        (chat("/", model_name="../up"), MalformedBody, "no model_name"),
        (chat("/", model_name=".hidden"), MalformedBody, "no model_name"),
        (chat("/", model_name="a/b"), MalformedBody, "no model_name"),
        (chat("/", model_name="a" * 101), MalformedBody, "no model_name"),
        (chat("/", model_specs=[]), MalformedBody, "list of objects"),
        (chat("/", model_specs=["x"]), MalformedBody, "list of objects"),
        (chat("/", model_specs=[{}]), MalformedBody, "needs a model_uri"),
        (chat("/", model_specs=[{"model_uri": 5}]), MalformedBody, "needs a model_uri"),
        (chat("/no/such/folder"), FolderMissing, "no folder '/no/such/folder'"),
        (chat("relative"), FolderMissing, "no folder 'relative'"),
        (chat("/a\0b"), FolderMissing, "no folder"),
        (chat("/", model_specs=[{"model_uri": "oci://x/y"}]), Unsupported, "not of this machine"),
    ],
)
def test_what_is_no_registration_is_said(text: str, error: type[LodgerError], said: str) -> None:
    with pytest.raises(error, match=said):
        parse("chat", text)


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        ("chat", {"model_name", "model_lang", "model_ability"}),
        ("embedding", {"model_name", "language", "dimensions"}),
        ("rerank", {"model_name", "language"}),
    ],
)
def test_every_family_has_what_xinferences_command_line_reads(tmp_path: Path, kind: Any, read: set[str]) -> None:
    families = [one.family for one in catalogue_registrations(kind, tmp_path)]
    families.append(parse(kind, json.dumps({"model_name": "mine", "model_uri": str(tmp_path)})).family)
    assert len(families) > 5
    for family in families:
        assert read <= family.keys()
        for spec in family.get("model_specs", []):
            assert spec.keys() >= {"model_format", "quantization", "cache_status", "model_id", "model_hub"}
            assert isinstance(spec["model_id"], str)


def test_every_entry_of_the_catalogue_is_in_one_family(tmp_path: Path) -> None:
    known = [one for kind in ("chat", "embedding", "rerank") for one in catalogue_registrations(kind, tmp_path)]
    assert all(one.builtin for one in known)
    assert sum(len(one.family["model_specs"]) for one in known) == len(builtin().models)
    for one in known:
        for spec in one.family["model_specs"]:
            size = spec.get("model_size_in_billions")
            entry = find(one.name, None if size is None else str(size))
            assert entry is not None
            assert spec["model_id"] in entry.names


def test_sizes_and_formats_are_written_as_xinference_writes_them(tmp_path: Path) -> None:
    known = {one.name: one.family["model_specs"] for one in catalogue_registrations("chat", tmp_path)}
    assert [spec["model_size_in_billions"] for spec in known["qwen3"]] == ["0_6", "1_7", 4, 8, 14, 32]
    assert known["SmolLM2-135M-Instruct"][0]["model_size_in_billions"] == "0_135"
    assert (known["Qwen3-4B-AWQ"][0]["model_format"], known["Qwen3-4B-AWQ"][0]["quantization"]) == ("awq", "Int4")


def test_a_model_that_is_here_tells_what_only_its_folder_knows(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "bge-m3").symlink_to(tiny("bge-m3"))
    here = {one.name: one.family for one in catalogue_registrations("embedding", tmp_path)}
    assert (here["bge-m3"]["dimensions"], here["bge-m3"]["model_specs"][0]["cache_status"]) == (64, True)
    assert (here["gte-base"]["dimensions"], here["gte-base"]["model_specs"][0]["cache_status"]) == (None, False)
