"""Rerank as Xinference's, Cohere's and RAGFlow's clients ask for it."""

from __future__ import annotations

import pytest
from api_server import Served

from lodger.api.dialects.rerank import ranked
from lodger.tasks import RerankResult, Usage

MODEL = "bge-reranker-v2-m3-local"
DOCUMENTS = ["上海是中国最大的城市", "中国的首都是北京", "banana"]
ASK = {"model": MODEL, "query": "中国的首都是哪里？", "documents": DOCUMENTS}


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_the_best_document_comes_first(served: Served, path: str) -> None:
    answer = served.ask("POST", path, ASK)
    assert answer.status == 200
    results = answer.json["results"]
    assert [result["index"] for result in results] == [1, 0, 2]
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert {result["document"] for result in results} == {None}
    assert answer.json["meta"]["tokens"]["input_tokens"] == answer.json["usage"]["total_tokens"] > 0


def test_xinference_clients_send_every_field_and_strings_for_booleans(served: Served) -> None:
    answer = served.ask(
        "POST",
        "/v1/rerank",
        {**ASK, "top_n": None, "max_chunks_per_doc": None, "return_documents": "true", "return_len": "true"}
        | {"kwargs": "{}", "truncation": True, "user": None, "priority": 0},
    )
    assert [result["document"] for result in answer.json["results"]][0] == {"text": DOCUMENTS[1]}


@pytest.mark.parametrize(("top_n", "count"), [(None, 3), (2, 2), (99, 3), (0, 0), (-1, 0)])
def test_top_n_is_clamped(served: Served, top_n: int | None, count: int) -> None:
    assert len(served.ask("POST", "/v1/rerank", {**ASK, "top_n": top_n}).json["results"]) == count


def test_documents_may_be_objects(served: Served) -> None:
    mixed = [{"text": "中国的首都是北京"}, "banana"]
    assert served.ask("POST", "/v1/rerank", {**ASK, "documents": mixed}).json["results"][0]["index"] == 0
    titled = [{"title": "no", "body": "x"}, {"title": "中国的首都是", "body": "北京"}]
    answer = served.ask("POST", "/v1/rerank", {**ASK, "documents": titled, "rank_fields": ["title", "body"]})
    assert answer.json["results"][0]["index"] == 1
    assert served.service.tasks[-1].documents[1] == "中国的首都是\n北京"


@pytest.mark.parametrize(
    "shape",
    [
        {"return_documents": True, "top_n": 3, "max_chunks_per_doc": 10, "model": MODEL},  # Cohere v1
        {"top_n": 3, "max_tokens_per_doc": 4096, "return_documents": "true"},  # Cohere v2, without its model
        {"documents": [{"text": text} for text in DOCUMENTS], "return_documents": True, "truncation": True},  # Jina
        {"query": {"text": ASK["query"]}, "documents": [{"text": text} for text in DOCUMENTS], "return_documents": 1},
        {"rank_fields": ["text"], "documents": [{"text": t, "id": 1} for t in DOCUMENTS], "return_documents": True},
    ],
)
def test_every_known_shape_gets_the_one_answer(served: Served, shape: dict[str, object]) -> None:
    body = {key: value for key, value in ASK.items() if key != "model"} | shape
    answer = served.ask("POST", "/v2/rerank", body).json
    assert answer["model"] == MODEL
    assert answer["results"][0] == {
        "index": 1,
        "relevance_score": pytest.approx(answer["results"][0]["relevance_score"]),
        "document": {"text": DOCUMENTS[1]},
    }
    assert {"id", "model", "object", "results", "meta", "usage"} == answer.keys()
    assert {"api_version", "billed_units", "tokens", "warnings"} == answer["meta"].keys()
    assert {"prompt_tokens", "total_tokens"} == answer["usage"].keys()


def test_no_documents_have_no_results(served: Served) -> None:
    answer = served.ask("POST", "/v1/rerank", {**ASK, "documents": []})
    assert (answer.status, answer.json["results"]) == (200, [])
    unknown = served.ask("POST", "/v1/rerank", {**ASK, "model": "nosuch", "documents": []})
    assert unknown.status == 404


@pytest.mark.parametrize("documents", ["one text", [1], [{"title": "no text"}], [None], {"a": "b"}, None])
def test_documents_that_are_no_texts_are_named(served: Served, documents: object) -> None:
    answer = served.ask("POST", "/v1/rerank", {**ASK, "documents": documents})
    assert answer.status == 400
    assert answer.json["error"]["param"] == "documents"
    assert "documents" in answer.json["detail"]


def test_saturated_scores_are_still_sorted_by_what_the_model_said() -> None:
    result = RerankResult(scores=(1.0, 1.0, 1.0), logits=(17.5, 19.0, 18.0), usage=Usage())
    assert [row["index"] for row in ranked(result, None, None)] == [1, 2, 0]


def test_equal_documents_keep_their_order() -> None:
    result = RerankResult(scores=(0.5, 0.9, 0.5), logits=(0.0, 2.0, 0.0), usage=Usage())
    assert [row["index"] for row in ranked(result, None, None)] == [1, 0, 2]


def test_over_long_documents_are_cut_and_counted(served: Served) -> None:
    answer = served.ask("POST", "/v1/rerank", {**ASK, "documents": ["word " * 9000, "b"]})
    assert (answer.status, answer.headers["x-lodger-truncated"]) == (200, "1")


@pytest.mark.parametrize(
    ("fields", "instruction"),
    [
        ({}, None),
        ({"instruction": "找出直接回答的段落"}, "找出直接回答的段落"),
        ({"instruct": "b"}, "b"),
        ({"instruction": "a", "instruct": "b"}, "a"),
        ({"instruction": "", "instruct": None}, None),
    ],
)
def test_an_instruction_goes_with_the_task(served: Served, fields: dict[str, object], instruction: str | None) -> None:
    assert served.ask("POST", "/v1/rerank", {**ASK, **fields}).status == 200
    assert served.service.tasks[-1].instruction == instruction


def test_the_description_tells_how_documents_are_scored(served: Served) -> None:
    assert served.ask("GET", f"/v1/models/{MODEL}").json["rerank_method"] == "cross-encoder"
