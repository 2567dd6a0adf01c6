"""What clients of text-embeddings-inference send: RAGFlow's provider "HuggingFace" names no model at all."""

from __future__ import annotations

import pytest
from api_server import Served

from lodger.spec import ModelSpec
from lodger.tasks import RerankResult, RerankTask, Usage

TEXTS = ["上海是中国最大的城市", "中国的首都是北京", "banana"]
ASK = {"query": "中国的首都是哪里？", "texts": TEXTS, "raw_scores": False, "truncate": True}


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_texts_are_ranked_in_teis_shape(served: Served, path: str) -> None:
    results = served.ask("POST", path, ASK).json
    assert [result["index"] for result in results] == [1, 0, 2]
    assert [result.keys() for result in results] == [{"index", "score"}] * 3
    assert all(0 <= result["score"] <= 1 for result in results)


def test_texts_come_back_and_scores_raw_where_asked_for(served: Served) -> None:
    best = served.ask("POST", "/rerank", ASK | {"return_text": True, "raw_scores": "true"}).json[0]
    assert best["text"] == TEXTS[1]
    assert served.ask("POST", "/rerank", ASK | {"texts": []}).json == []


@pytest.mark.parametrize(("raw", "scores"), [(None, [0.9, 0.1]), (False, [0.9, 0.1]), (True, [2.2, -2.2])])
def test_raw_scores_are_those_before_the_sigmoid(served: Served, raw: bool | None, scores: list[float]) -> None:
    async def rerank(task: RerankTask) -> RerankResult:
        return RerankResult(scores=(0.1, 0.9), logits=(-2.2, 2.2), usage=Usage(prompt_tokens=2))

    served.service.rerank = rerank  # type: ignore[method-assign]
    results = served.ask("POST", "/rerank", {"query": "q", "texts": ["a", "b"], "raw_scores": raw}).json
    assert [result["score"] for result in results] == scores


def test_documents_win_over_texts(served: Served) -> None:
    assert len(served.ask("POST", "/rerank", ASK | {"documents": ["a"]}).json["results"]) == 1


@pytest.mark.parametrize(("inputs", "count"), [("one", 1), (["one", "two"], 2), ([[1, 2], [3]], 2)])
def test_embed_answers_bare_vectors(served: Served, inputs: object, count: int) -> None:
    vectors = served.ask("POST", "/embed", {"inputs": inputs, "truncate": True, "normalize": True}).json
    assert [len(vector) for vector in vectors] == [1024] * count
    named = served.ask("POST", "/embed", {"inputs": inputs, "model": "bge-m3-local"}).json
    assert named == vectors


def test_over_long_inputs_are_cut_and_counted(served: Served) -> None:
    for path, body in (("/embed", {"inputs": ["word " * 9000, "b"]}), ("/rerank", ASK | {"texts": ["word " * 9000]})):
        assert served.ask("POST", path, body).headers["x-lodger-truncated"] == "1"


@pytest.mark.parametrize(
    ("path", "body", "kind"), [("/embed", {"inputs": "x"}, "embedding"), ("/rerank", ASK, "rerank")]
)
def test_of_two_models_one_must_be_named(served: Served, path: str, body: dict[str, object], kind: str) -> None:
    served.service.add(ModelSpec(uid="second", kind=kind))  # type: ignore[arg-type]
    answer = served.ask("POST", path, body)
    assert (answer.status, answer.json["error"]["param"]) == (400, "model")
    assert "second" in answer.json["detail"]
    assert served.ask("POST", path, body | {"model": "second"}).status == 200


@pytest.mark.parametrize(("path", "body"), [("/embed", {"inputs": "x"}), ("/rerank", ASK)])
def test_without_any_model_of_the_kind_that_is_said(served: Served, path: str, body: dict[str, object]) -> None:
    for model in served.service.models():
        if model.uid != "qwen3-4b-chat-local":
            served.service.forget(model.uid)
    answer = served.ask("POST", path, body)
    assert answer.status == 400
    assert "model was launched" in answer.json["detail"]
