"""A name in any spelling, a hub's id or a pasted address says where a model is; anything else says what is near."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lodger.catalogue.builtin import Entry, builtin
from lodger.catalogue.names import find, hub_id, repository
from lodger.catalogue.repository import Repository
from lodger.errors import UnknownName


@pytest.mark.parametrize(
    "name", ["bge-m3", "BGE-M3", " bge-m3 ", "bge_m3", "BAAI/bge-m3", "baai/bge-m3", "https://hf.co/BAAI/bge-m3"]
)
def test_a_model_of_the_catalogue_in_any_spelling(name: str) -> None:
    assert repository(name) == Repository(folder="bge-m3", modelscope="BAAI/bge-m3", huggingface="BAAI/bge-m3")


def test_ids_may_differ_between_hubs_and_each_leads_to_the_model() -> None:
    both = Repository(
        folder="Llama-3.2-1B-Instruct",
        modelscope="LLM-Research/Llama-3.2-1B-Instruct",
        huggingface="meta-llama/Llama-3.2-1B-Instruct",
    )
    for name in (both.folder, both.modelscope, both.huggingface):
        assert repository(name or "") == both
    assert (both.on("modelscope"), both.on("huggingface")) == (both.modelscope, both.huggingface)


@pytest.mark.parametrize(
    ("name", "size", "folder"),
    [
        ("Qwen3-Instruct", "4", "Qwen3-4B-Instruct-2507"),
        ("Qwen3-Thinking", "4", "Qwen3-4B-Thinking-2507"),
        ("Qwen3-4B", None, "Qwen3-4B"),
        ("Qwen3-4B-Instruct", None, "Qwen3-4B-Instruct-2507"),
        ("qwen3", "0_6", "Qwen3-0.6B"),
        ("qwen3", "32", "Qwen3-32B"),
        ("qwen2.5-instruct", "0_5", "Qwen2.5-0.5B-Instruct"),
        ("qwen2.5-instruct", "72", "Qwen2.5-72B-Instruct"),
        ("bge-m3", "0.6", "bge-m3"),
        ("bge-reranker-v2-m3", None, "bge-reranker-v2-m3"),
        ("bge-reranker-base", None, "bge-reranker-base"),
        ("bge-large-zh-v1.5", None, "bge-large-zh-v1.5"),
        ("Qwen3-Embedding-0.6B", None, "Qwen3-Embedding-0.6B"),
        ("Qwen3-Reranker-4B", None, "Qwen3-Reranker-4B"),
        ("multilingual-e5-large", None, "multilingual-e5-large"),
        ("gte-base", None, "gte-base"),
        ("bce-reranker-base_v1", None, "bce-reranker-base_v1"),
    ],
)
def test_xinferences_names_and_the_guides(name: str, size: str | None, folder: str) -> None:
    assert repository(name, size).folder == folder


def test_any_id_of_a_hub_works_on_both() -> None:
    ours = Repository(
        folder="tiny-chat_v1.0", modelscope="some-one/tiny-chat_v1.0", huggingface="some-one/tiny-chat_v1.0"
    )
    assert repository("some-one/tiny-chat_v1.0") == repository("some-one/tiny-chat_v1___0") == ours


@pytest.mark.parametrize(
    "address",
    [
        "https://modelscope.cn/models/team/model",
        "https://www.modelscope.cn/models/team/model/summary",
        "https://www.modelscope.ai/models/team/model/files?tab=1#top",
        "modelscope.cn/models/team/model",
        "http://huggingface.co/team/model/",
        "https://huggingface.co/team/model/tree/main",
        "https://hf-mirror.com/team/model?library=transformers",
        "  https://HF.co/team/model\n",
    ],
)
def test_the_address_of_a_models_page_is_understood(address: str) -> None:
    assert hub_id(address) == "team/model"


@pytest.mark.parametrize(
    "text",
    [
        "team", "team/", "/model", "team/model/file", "team//model", "../model", "team/..", "team/a..b", "~/model",
        ".hidden/model", "team/.hidden", "team/-rf", "team/mo del", "team/mo\0del", "team\\model", "téam/model",
        "team/model\n/x", "team/" + "x" * 97, "datasets/team", "file:///etc/passwd", "https://huggingface.co/team",
        "https://huggingface.co/datasets/team/x", "https://huggingface.co/spaces/team/x",
        "https://example.com/team/model", "https://huggingface.co.evil.com/team/model",
    ],
)  # fmt: skip
def test_what_is_no_id_is_not_taken_for_one(text: str) -> None:
    assert hub_id(text) is None
    with pytest.raises(UnknownName):
        repository(text)


@pytest.mark.parametrize(
    ("name", "near", "line"),
    [
        ("Qwen3-4B-Instrct", "Qwen3-4B-Instruct-2507", "`lodger pull Qwen/Qwen3-4B-Instruct-2507`"),
        ("bge-rerank", "bge-reranker-base", "`lodger pull BAAI/bge-reranker-base`"),
        ("bgem3", "bge-m3", "`lodger pull BAAI/bge-m3`"),
        ("e5", "multilingual-e5-small", "`lodger pull AI-ModelScope/multilingual-e5-small`"),
        ("Qwen3-Reranker", "Qwen3-Reranker-0.6B", "`lodger pull Qwen/Qwen3-Reranker-0.6B`"),
        ("qwen3-embeding", "Qwen3-Embedding-0.6B", "`lodger pull Qwen/Qwen3-Embedding-0.6B`"),
        ("qwen3-embeding-8b", "Qwen3-Embedding-8B", "`lodger pull Qwen/Qwen3-Embedding-8B`"),
        ("qwen2.5-instuct", "Qwen2.5-0.5B-Instruct", "`lodger pull Qwen/Qwen2.5-0.5B-Instruct`"),
        ("smollm2-instruct-x", "SmolLM2-135M-Instruct", "`lodger pull HuggingFaceTB/SmolLM2-135M-Instruct`"),
    ],
)
def test_an_unknown_name_names_the_near_ones_and_the_line_to_use(name: str, near: str, line: str) -> None:
    with pytest.raises(UnknownName, match="No model is known as") as caught:
        repository(name)
    assert near in caught.value.text
    assert line in caught.value.text
    assert caught.value.param == "model_name"


@pytest.mark.parametrize("name", ["gpt-4", "", "x", "…"])
def test_a_name_without_neighbours_says_what_works(name: str) -> None:
    with pytest.raises(UnknownName) as caught:
        repository(name)
    assert "Did you mean" not in caught.value.text
    assert "org/name" in caught.value.text
    assert "any folder by its path" in caught.value.text


def test_an_error_does_not_repeat_a_whole_book() -> None:
    for name, size in (("long " * 1000, None), ("qwen3", "4" * 5000)):
        with pytest.raises(UnknownName) as caught:
            repository(name, size)
        assert len(caught.value.text) < 500


def test_an_ambiguous_name_lists_the_sizes_and_a_line_for_each() -> None:
    with pytest.raises(UnknownName, match="is needed for qwen2.5-instruct") as caught:
        repository("qwen2.5-instruct")
    for size in ("0.5", "1.5", "3", "7", "14", "32", "72"):
        assert f"`lodger pull Qwen/Qwen2.5-{size}B-Instruct`" in caught.value.text


@pytest.mark.parametrize("entry", builtin().models, ids=lambda entry: entry.name)
def test_every_name_of_a_row_leads_back_to_it(entry: Entry) -> None:
    assert all(find(name) is entry for name in entry.names)
    if entry.xinference:
        assert find(entry.xinference, f"{entry.size:g}") is entry


@given(name=st.text(st.characters()), size=st.none() | st.text(max_size=8))
def test_whatever_is_typed_is_one_plain_folder_name_or_our_error(name: str, size: str | None) -> None:
    try:
        folder = repository(name, size).folder
    except UnknownName as error:
        told = error.text
    else:
        told = folder
        assert folder
        assert not folder.startswith((".", "-"))
        assert "/" not in folder
        assert ".." not in folder
    assert msgspec.json.encode(told)
    assert len(told) < 1000


@given(org=st.text("ab1._-/", max_size=6), model=st.text("ab1._-/", max_size=6))
def test_an_id_is_never_a_path_trick(org: str, model: str) -> None:
    repo = hub_id(f"{org}/{model}")
    if repo is not None:
        parts = repo.split("/")
        assert len(parts) == 2
        assert all(part and not part.startswith((".", "-")) and ".." not in part for part in parts)
