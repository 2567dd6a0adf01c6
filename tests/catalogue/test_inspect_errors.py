"""A folder that cannot be served is refused by name of the file at fault, and never with anything but our errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
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
from lodger.errors import (
    FolderMissing,
    ModelProblem,
    UnknownArchitecture,
    WrongKind,
)

Tiny = Callable[..., Path]
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return maker.write_fake_folder(tmp_path / "my-model", "qwen3")


def set_config(folder: Path, name: str = "config.json", **changes: Any) -> None:
    (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **changes}))


@pytest.mark.parametrize("path", ["/nowhere/at-all", "a\0b", "x" * 5000, "/etc/hostname"])
def test_a_missing_folder(path: str) -> None:
    with pytest.raises(FolderMissing, match="There is no folder"):
        inspect_folder(path)


def test_a_folder_whose_name_is_no_text(folder: Path) -> None:
    strange = folder.rename(folder.parent / "m\udcff")
    with pytest.raises(ModelProblem, match="not UTF-8"):
        inspect_folder(strange)


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(ModelProblem, match="has no config.json"):
        inspect_folder(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["MambaForCausalLM"], "model_type": "mamba"},
        {"architectures": [{}], "model_type": {}},
        {"architectures": ["Qwen3ForCausalLM"], "model_type": None},
    ],
)
def test_an_unknown_type_names_the_served_ones(folder: Path, changes: dict[str, Any]) -> None:
    set_config(folder, **changes)
    with pytest.raises(UnknownArchitecture) as caught:
        inspect_folder(folder)
    assert "bert, gte, llama, new, qwen2, qwen3, roberta, xlm-roberta" in caught.value.text


@pytest.mark.parametrize(
    "architectures", [["LlamaForCausalLM"], ["Qwen3ForSequenceClassification"], [], None, "Qwen3ForCausalLM"]
)
def test_another_head_names_those_of_its_type(folder: Path, architectures: Any) -> None:
    set_config(folder, architectures=architectures)
    with pytest.raises(UnknownArchitecture) as caught:
        inspect_folder(folder)
    assert "Served of this type: Qwen3ForCausalLM, Qwen3Model." in caught.value.text


@pytest.mark.parametrize(
    ("family", "kind", "said"),
    [
        ("qwen3", "embedding", "serves chat or rerank, not embedding"),
        ("llama", "rerank", "serves chat, not rerank"),
        ("minilm", "chat", "serves embedding or rerank, not chat"),
        ("bge-reranker", "embedding", "serves rerank, not embedding"),
    ],
)
def test_a_kind_that_the_folder_is_not(tiny: Tiny, family: str, kind: Any, said: str) -> None:
    with pytest.raises(WrongKind, match=said):
        inspect_folder(tiny(family), kind=kind)


def test_an_embedder_that_lost_its_files_is_told_which(tiny: Tiny) -> None:
    with pytest.raises(WrongKind) as caught:
        inspect_folder(tiny("qwen3"), kind="embedding")
    assert "has a modules.json: fetch it" in str(caught.value.hint)


def test_quantised_encoders_are_refused(tmp_path: Path) -> None:
    folder = maker.write_fake_folder(tmp_path / "my-model", "bge-reranker")
    set_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelProblem, match="my-model holds quantised weights"):
        inspect_folder(folder)


def test_relative_positions_are_refused(tmp_path: Path) -> None:
    folder = maker.write_fake_folder(tmp_path / "m", "minilm", position_embedding_type="relative_key")
    with pytest.raises(ModelProblem, match="has 'relative_key' positions"):
        inspect_folder(folder)


def test_classifiers_are_no_rerankers(tmp_path: Path) -> None:
    folder = maker.write_fake_folder(tmp_path / "m", "bge-reranker", id2label={"0": "no", "1": "yes"})
    with pytest.raises(ModelProblem, match="into 2 classes"):
        inspect_folder(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "my-model has no tokenizer.json"),
        (b"version https://git-lfs", "Git LFS pointer"),
        (b"\x80", "is not JSON"),
    ],
)
def test_a_tokenizer_that_cannot_be_read(folder: Path, content: bytes | None, said: str) -> None:
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(ModelProblem, match=said):
        inspect_folder(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "config.json is not JSON"),
        (b"[1]", "config.json holds no JSON object"),
        (b"\xff\xfe", "config.json is not UTF-8"),
        (b'{"a":' * 100_000, "config.json is nested too deeply"),
        (b" " * (32 * 2**20 + 1), "config.json is larger than"),
    ],
    ids=["cut", "list", "bytes", "deep", "large"],
)
def test_hostile_configs(folder: Path, content: bytes, said: str) -> None:
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ModelProblem, match=said):
        inspect_folder(folder)


def test_a_file_that_is_a_folder(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").mkdir()
    with pytest.raises(ModelProblem, match="generation_config.json cannot be read"):
        inspect_folder(folder)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                                 "intermediate_size", "max_position_embeddings"])  # fmt: skip
@pytest.mark.parametrize("value", [None, 0, -1, "64", 6.4, True, 10**30])
def test_a_size_that_is_none_names_its_field(folder: Path, key: str, value: Any) -> None:
    set_config(folder, **{key: value})
    with pytest.raises(ModelProblem, match=f"config.json: {key} "):
        inspect_folder(folder)


def test_heads_that_do_not_divide(folder: Path) -> None:
    set_config(folder, num_key_value_heads=3)
    with pytest.raises(ModelProblem, match="4 heads and 3 KV heads"):
        inspect_folder(folder)


def test_an_encoder_without_positions_left(tmp_path: Path) -> None:
    folder = maker.write_fake_folder(tmp_path / "m", "bge-reranker", max_position_embeddings=2)
    with pytest.raises(ModelProblem, match="leaves 0 positions"):
        inspect_folder(folder)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("modules.json", {}, "no list of modules"),
        ("modules.json", [{"type": "x"}], "no list of modules"),
        ("modules.json", [{"type": "a.Pooling", "path": "../elsewhere"}], "no list of modules"),
        ("modules.json", [{"type": "a.Pooling", "path": "a\0b"}], "no list of modules"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}], "module 'Dense'"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling 'max_tokens'"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "'cls_token', 'mean_tokens'",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "pooling 'weightedmean'"),
        ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length is '-1'"),
        ("sentence_bert_config.json", {"do_lower_case": "yes"}, "do_lower_case is 'yes', expected true or false"),
    ],
)
def test_sentence_transformers_files_that_cannot_be_followed(tmp_path: Path, name: str, value: Any, said: str) -> None:
    folder = maker.write_fake_folder(tmp_path / "m", "minilm")
    (folder / name).write_text(json.dumps(value))
    with pytest.raises(ModelProblem, match=said):
        inspect_folder(folder)


def test_messages_never_hold_a_path(folder: Path) -> None:
    breakers: list[Callable[[], Any]] = [
        lambda: (folder / "tokenizer.json").unlink(),
        lambda: (folder / WEIGHTS).unlink(),
        lambda: (folder / "config.json").write_text("{"),
        lambda: (folder / "config.json").unlink(),
        lambda: shutil.rmtree(folder),
    ]
    for damage in breakers:
        damage()
        with pytest.raises(ModelProblem) as caught:
            inspect_folder(folder)
        assert str(folder.parent) not in caught.value.text


MORE_KEYS = ["rope_parameters", "rope_type", "type", "factor", "dtype", "is_causal", "auto_map", "pooling_mode",
             "include_prompt", "default_prompt_name", "prompts", "head_dim", "id2label"]  # fmt: skip
FILES = {
    "qwen3": ["config.json", "generation_config.json", "tokenizer_config.json"],
    "minilm": ["config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json",
               "config_sentence_transformers.json", "tokenizer_config.json"],
}  # fmt: skip


@pytest.mark.parametrize("family", list(FILES))
@MANY
@given(data=st.data())
def test_mangled_configs_never_raise_anything_else(
    tiny: Tiny, tmp_path: Path, family: str, data: st.DataObject
) -> None:
    folder = tmp_path / family
    if not folder.exists():
        shutil.copytree(tiny(family), folder)
    name = data.draw(st.sampled_from(FILES[family]))
    original = (folder / name).read_text()
    value = json.loads(original)
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)) | st.sampled_from(MORE_KEYS))
        value = {**value, key: data.draw(JSON | st.dictionaries(st.sampled_from(MORE_KEYS), JSON))}
    else:
        value = data.draw(JSON)
    served = data.draw(st.sampled_from([None, "chat", "embedding", "rerank"]))
    (folder / name).write_text(json.dumps(value))
    told = inspected(folder, served)
    (folder / name).write_text(original)
    assert msgspec.json.encode(told)  # it goes to other processes and to clients
    if isinstance(told, ModelFacts):
        assert told.context_length >= 1
        assert told.kind in ("chat", "embedding", "rerank")
