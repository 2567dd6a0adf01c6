"""What programs were seen to send for embeddings, rerank and models, and what they read of the answers.

Chat is in `test_api_streams` and `test_api_openai`, base URLs in `test_api_paths`, Xinference's own client in
`test_api_xinference`.
"""

from __future__ import annotations

import math
import struct
from base64 import b64decode
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from api_server import Served

EMBED, RERANK, CHAT = "bge-m3-local", "bge-reranker-v2-m3-local", "qwen3-4b-chat-local"
QUERY, DOCUMENTS = "中国的首都是哪里？", ["上海是中国最大的城市", "中国的首都是北京", "banana"]


class Seen(NamedTuple):
    """One request of a program, and what it does with the answer."""

    path: str
    body: dict[str, Any]
    reads: Callable[[Any], Any]


def _vectors(answer: Any) -> Any:
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0
    return [item["embedding"] for item in answer["data"]]


def _by_index(answer: Any) -> Any:
    return [item["embedding"] for item in sorted(answer["data"], key=lambda item: item["index"])]


def _unpacked(answer: Any) -> Any:
    return [struct.unpack("<1024f", b64decode(item["embedding"])) for item in answer["data"]]


EMBEDDERS = {
    "RAGFlow, Xinference": Seen("/v1/embeddings", {"encoding_format": "base64"}, _unpacked),
    "RAGFlow, OpenAI-API-Compatible": Seen(
        "/embeddings", {"encoding_format": "float", "drop_params": True, "user": None}, _by_index
    ),
    "RAGFlow, Go": Seen("/v1/embeddings", {}, _by_index),
    "Xinference's client": Seen("/v1/embeddings", {"truncate_prompt_tokens": None, "model_uid": EMBED}, _vectors),
    "Dify": Seen("/v1/embeddings", {"encoding_format": "float", "input_type": "document"}, _vectors),
    "FastGPT": Seen(
        "/v1/embeddings", {"encoding_format": "float"}, lambda answer: [v[:1536] for v in _vectors(answer)]
    ),
    "Open WebUI": Seen("/v1/embeddings", {}, lambda answer: [item["embedding"] for item in answer["data"]]),
    "litellm": Seen("/v1/embeddings", {"timeout": 600, "extra_headers": {}, "user": "u"}, _vectors),
}


@pytest.mark.parametrize("program", EMBEDDERS)
def test_embeddings_are_what_each_program_reads(served: Served, program: str) -> None:
    path, body, reads = EMBEDDERS[program]
    answer = served.ask("POST", path, {"model": EMBED, "input": ["one two", "two", "one two"]} | body)
    assert answer.status == 200
    first, second, third = (list(vector) for vector in reads(answer.json))
    assert first == pytest.approx(third)
    assert first != pytest.approx(second)
    for vector in (first, second, third):
        assert len(vector) == 1024
        assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-5)
    single = served.ask("POST", path, {"model": EMBED, "input": "two"} | body).json
    assert list(next(iter(reads(single)))) == pytest.approx(second)


def test_inputs_may_be_objects_that_hold_a_text(served: Served) -> None:
    for given, texts in (([{"text": "a"}, "b"], ("a", "b")), ({"text": "a"}, ("a",))):
        assert served.ask("POST", "/v1/embeddings", {"model": EMBED, "input": given}).status == 200
        assert served.service.tasks[-1].inputs == texts
    for given in ([{"image": "x"}], {"text": 5}, [{"text": None}]):
        answer = served.ask("POST", "/v1/embeddings", {"model": EMBED, "input": given})
        assert (answer.status, answer.json["error"]["param"]) == (400, "input")


def test_no_text_is_refused_for_being_empty_or_long_and_no_number_is_none(served: Served) -> None:
    texts = ["", " ", "\n", "None", "word " * 20_000, "词" * 20_000]
    answer = served.ask("POST", "/v1/embeddings", {"model": EMBED, "input": texts})
    assert (answer.status, answer.headers["x-lodger-truncated"]) == (200, "2")
    for item in answer.json["data"]:
        assert len(item["embedding"]) == 1024
        assert all(isinstance(number, float) and math.isfinite(number) for number in item["embedding"])


def _results(answer: Any) -> Any:
    return [(result["index"], result["relevance_score"]) for result in answer["results"]]


def _dify(answer: Any) -> Any:
    """It takes the text of `document`, which may be a string or an object, and falls over null."""
    assert all((result["document"] if isinstance(result["document"], str) else result["document"]["text"])
               for result in answer["results"])  # fmt: skip
    return _results(answer)


def _fastgpt(answer: Any) -> Any:
    assert answer["meta"]["tokens"]["input_tokens"] > 0
    return _results(answer)


RERANKERS = {
    "RAGFlow, Xinference": Seen("/v1/rerank", {"return_documents": "true", "return_len": "true"}, _results),
    "RAGFlow, OpenAI-API-Compatible": Seen("/rerank", {"top_n": 3}, _results),
    "RAGFlow, VLLM": Seen("/v1/v1/rerank", {"top_n": 3, "return_documents": False}, _results),
    "RAGFlow, HuggingFace": Seen(
        "/rerank",
        {"model": None, "documents": None, "texts": DOCUMENTS, "raw_scores": False, "truncate": True},
        lambda answer: [(result["index"], result["score"]) for result in answer],
    ),
    "Xinference's client": Seen(
        "/v1/rerank",
        {"top_n": None, "max_chunks_per_doc": None, "return_documents": None, "return_len": None, "kwargs": "{}"},
        _results,
    ),
    "Dify": Seen("/v1/rerank", {"return_documents": True, "top_n": 3}, _dify),
    "FastGPT": Seen("/v1/rerank", {}, _fastgpt),
    "Open WebUI": Seen("/v1/rerank", {"top_n": 3}, lambda answer: sorted(_results(answer), key=lambda one: -one[1])),
    "Jina": Seen(
        "/v1/rerank",
        {"documents": [{"text": text} for text in DOCUMENTS], "top_n": 3, "return_documents": True},
        _dify,
    ),
    "Cohere 2": Seen("/v2/rerank", {"top_n": 3, "max_tokens_per_doc": 4096, "priority": 0}, _results),
    "odd types": Seen(
        "/v1/rerank/", {"top_n": "3", "return_documents": 0, "kwargs": {}, "rank_fields": None}, _results
    ),
}


@pytest.mark.parametrize("program", RERANKERS)
def test_documents_are_ranked_as_each_program_reads_it(served: Served, program: str) -> None:
    path, body, reads = RERANKERS[program]
    answer = served.ask("POST", path, {"model": RERANK, "query": QUERY, "documents": DOCUMENTS} | body)
    assert answer.status == 200
    pairs = reads(answer.json)
    assert [index for index, _ in pairs] == [1, 0, 2]
    scores = [score for _, score in pairs]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_sixty_four_documents_get_one_score_each(served: Served) -> None:
    documents = [f"chunk {number} " + "word " * 20_000 * (number == 7) for number in range(64)]
    answer = served.ask("POST", "/v1/rerank", {"model": RERANK, "query": "chunk 3", "documents": documents})
    assert sorted(result["index"] for result in answer.json["results"]) == list(range(64))
    assert answer.headers["x-lodger-truncated"] == "1"
    assert answer.json["usage"]["total_tokens"] > 0


def test_models_are_listed_as_each_program_reads_it(served: Served) -> None:
    rows = {row["id"]: row for row in served.ask("GET", "/models").json["data"]}
    ragflow = {"LLM": "chat", "embedding": "embedding", "rerank": "rerank"}
    assert {ragflow[row["model_type"]] for row in rows.values()} == set(ragflow.values())
    for uid, row in rows.items():
        assert (row.get("context_length") or row.get("max_tokens") or 0) == 8192, "RAGFlow's limit"
        assert (row["object"], row["owned_by"]) == ("model", "xinference")
        assert isinstance(row["created"], int)
        described = served.ask("GET", f"/v1/models/{uid}").json
        assert described["model_type"] == row["model_type"]
        assert described["context_length"] == described["max_tokens"] == 8192
    dify = served.ask("GET", f"/v1/models/{CHAT}").json
    assert "chat" in dify["model_ability"]
    assert "generate" not in dify["model_ability"]
    for field in ("model_format", "model_name", "model_family", "model_size_in_billions"):
        assert dify[field], field
    assert served.ask("GET", f"/v1/models/{EMBED}").json["dimensions"] == 1024


@pytest.mark.parametrize("token", [None, "Bearer x", "Bearer ", "Bearer EMPTY", "x", "Basic eA=="])
def test_without_a_key_any_token_and_none_will_do(served: Served, token: str | None) -> None:
    sent = {} if token is None else {"authorization": token}
    assert served.ask("GET", "/v1/models", **sent).status == 200
    assert served.ask("GET", "/v1/cluster/auth", **sent).json == {"auth": False}


def test_with_a_key_the_first_question_of_every_client_is_answered_without(serve: Callable[..., Served]) -> None:
    keyed = serve(api_key="secret")
    assert keyed.ask("GET", "/v1/cluster/auth").json == {"auth": True}
    assert keyed.ask("GET", "/v1/models").status == 401
