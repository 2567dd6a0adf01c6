"""What is known of a model is read from its folder, and completed by what only the catalogue says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from lodger.catalogue.builtin import builtin
from lodger.catalogue.facts import ModelFacts, RerankTemplate
from lodger.catalogue.identify import OFFICIAL_TEMPLATE, complete, identify
from lodger.catalogue.inspect import inspect_folder
from lodger.catalogue.names import find
from lodger.errors import LodgerError, NotDownloaded, WrongKind
from lodger.spec import ModelSpec

Tiny = Callable[..., Path]
OFFICIAL = builtin().rerank_templates[OFFICIAL_TEMPLATE]


@pytest.fixture
def put(tiny: Tiny, tmp_path: Path) -> Callable[[str, str], Path]:
    """`put("qwen3", "Qwen/Qwen3-0___6B")`: a model of that format under that name; it returns the folder."""

    def copy(family: str, name: str) -> Path:
        return Path(shutil.copytree(tiny(family), tmp_path / "models" / name))

    return copy


Put = Callable[[str, str], Path]


def of_path(folder: Path, **more: str) -> ModelFacts:
    return identify(ModelSpec(uid="x", path=str(folder), **more), Path("/nowhere"))[1]  # type: ignore[arg-type]


def test_a_name_becomes_a_folder_with_its_facts(put: Put, tmp_path: Path) -> None:
    folder = put("bge-m3", "bge-m3")
    spec, facts = identify(ModelSpec(uid="x", name="BAAI/bge-m3"), tmp_path / "models")
    assert (spec.uid, spec.path, spec.kind) == ("x", str(folder), "embedding")
    assert facts == inspect_folder(folder)


def test_what_resolve_and_inspection_refuse_is_refused(put: Put, tmp_path: Path) -> None:
    with pytest.raises(NotDownloaded):
        identify(ModelSpec(uid="bge-m3"), tmp_path)
    put("bge-m3", "bge-m3")
    with pytest.raises(WrongKind):
        identify(ModelSpec(uid="bge-m3", kind="chat"), tmp_path / "models")


@pytest.mark.parametrize("name", ["Qwen3-Reranker-0.6B", "qwen3-reranker-0.6b", "Qwen3-Reranker-0___6B"])
def test_a_folder_is_what_its_name_says_though_its_config_says_chat(put: Put, name: str) -> None:
    facts = of_path(put("qwen3", name))
    assert (facts.kind, facts.rerank_method, facts.rerank_template) == ("rerank", "yes-no", OFFICIAL)


def test_the_name_given_beside_a_path_counts_as_the_folders(put: Put) -> None:
    facts = of_path(put("qwen3", "somewhere"), name="Qwen3-Reranker-0.6B")
    assert (facts.kind, facts.rerank_template) == ("rerank", OFFICIAL)


def test_a_name_beside_a_path_is_never_needed(put: Put) -> None:
    folder = put("qwen3", "somewhere")
    for name in ("unheard of", "qwen3", "Qwen3-Instruct"):
        assert of_path(folder, name=name).kind == "chat"


def test_an_explicit_kind_wins_over_the_folders_name(put: Put) -> None:
    assert of_path(put("qwen3", "Qwen3-Reranker-0.6B"), kind="chat").kind == "chat"
    assert of_path(put("qwen3", "Qwen3-4B"), kind="rerank").rerank_method == "yes-no"


@pytest.mark.parametrize(
    ("family", "name", "kind"),
    [
        ("bge-m3", "bge-reranker-v2-m3", "embedding"),
        ("bge-reranker", "bge-m3", "rerank"),
        ("llama", "Qwen3-Reranker-0.6B", "chat"),
        ("qwen3", "bge-large-zh-v1.5", "chat"),
    ],
)
def test_a_name_that_the_folder_contradicts_says_nothing(put: Put, family: str, name: str, kind: str) -> None:
    facts = of_path(put(family, name))
    assert facts.kind == kind
    assert facts.prompts == inspect_folder(facts.path).prompts


def test_any_yes_no_reranker_gets_the_official_template_but_keeps_its_own(put: Put) -> None:
    facts = of_path(put("qwen3", "my-tuned-reranker"), kind="rerank")
    assert facts.rerank_template == OFFICIAL
    own = RerankTemplate(prefix="", body="{instruction}{query}{document}", suffix="", instruction="i", yes="y", no="n")
    assert complete(replace(facts, rerank_template=own), None).rerank_template == own


def test_the_default_prompt_of_a_yes_no_reranker_is_its_instruction(put: Put) -> None:
    folder = put("qwen3", "my-tuned-reranker")
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps({"prompts": {"query": "Is it funny?", "web": "Is it true?"}}))
    assert of_path(folder, kind="rerank").rerank_template == OFFICIAL  # none of them is the default
    config.write_text(json.dumps({"prompts": {"query": "Is it funny?"}, "default_prompt_name": "query"}))
    assert of_path(folder, kind="rerank").rerank_template == replace(OFFICIAL, instruction="Is it funny?")


def test_other_models_get_no_template(put: Put) -> None:
    assert of_path(put("bge-reranker", "bge-reranker-v2-m3")).rerank_template is None
    assert of_path(put("minilm", "all-MiniLM-L6-v2"), kind="rerank").rerank_template is None


@pytest.mark.parametrize(
    ("family", "name", "prompts"),
    [
        ("minilm", "bge-large-zh-v1.5", {"query": "为这个句子生成表示以用于检索相关文章："}),
        ("minilm", "bge-small-en-v1.5", {"query": "Represent this sentence for searching relevant passages: "}),
        ("minilm", "multilingual-e5-small", {"query": "query: ", "document": "passage: "}),
        ("bge-m3", "multilingual-e5-large", {"query": "query: ", "document": "passage: "}),
        ("minilm", "gte-base", {}),
    ],
)
def test_prompts_come_from_the_catalogue_where_the_folder_has_none(
    put: Put, family: str, name: str, prompts: dict[str, str]
) -> None:
    folder = put(family, name)
    assert of_path(folder).prompts == prompts
    assert of_path(folder, kind="rerank").prompts == prompts  # a query and documents are compared by their vectors
    assert of_path(folder).default_prompt is None  # nothing stands before a text unless the request asks for it


@pytest.mark.parametrize(
    ("family", "name", "written", "cut"),
    [
        ("qwen3-embedding", "Qwen3-Embedding-0.6B", {}, True),
        ("bge-m3", "bge-m3", {}, False),
        ("minilm", "my-own", {}, False),
        ("minilm", "my-own", {"is_matryoshka": True}, True),
        ("minilm", "my-own", {"matryoshka_dimensions": [32, 64]}, True),
        ("minilm", "my-own", {"is_matryoshka": "yes", "matryoshka_dimensions": []}, False),
    ],
)
def test_vectors_may_be_cut_where_the_catalogue_or_the_folder_says_so(
    put: Put, family: str, name: str, written: dict[str, Any], cut: bool
) -> None:
    config = put(family, name) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | written))
    assert of_path(config.parent, kind="embedding").matryoshka == cut


def test_the_folders_own_prompts_win(put: Put) -> None:
    folder = put("minilm", "bge-large-zh-v1.5")
    config = folder / "config_sentence_transformers.json"
    config.write_text(json.dumps({"prompts": {"query": "frage: "}}))
    assert of_path(folder).prompts == {"query": "frage: "}
    config.write_text(json.dumps({"prompts": {"query": "", "document": ""}}))  # as sentence-transformers writes none
    assert of_path(folder).prompts == {"query": "为这个句子生成表示以用于检索相关文章："}


def test_a_cross_encoder_takes_no_prompts(put: Put) -> None:
    facts = inspect_folder(put("bge-reranker", "x"))
    assert complete(facts, find("bge-large-zh-v1.5")).prompts == {}


@pytest.mark.parametrize("config", ["", "[]", "{", '{"architectures": 1}', '{"architectures": [null, {}]}'])
def test_a_damaged_config_is_a_named_error(put: Put, config: str) -> None:
    folder = put("qwen3", "Qwen3-Reranker-0.6B")
    (folder / "config.json").write_text(config)
    with pytest.raises(LodgerError, match=r"config\.json"):
        of_path(folder)
