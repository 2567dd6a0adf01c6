"""Verify asks in a language that the model reads, and finds each wrong answer. The server here is a made-up one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from lodger.catalogue.facts import ModelFacts
from lodger.checks.endpoints import CHINESE, ENGLISH, Answer, verify
from lodger.cli.verify import show_answers
from lodger.client import Client
from lodger.errors import ErrorInfo, ModelLoading
from lodger.service import ModelStatus, State
from lodger.spec import ModelSpec
from lodger.tasks import Kind


class Served:
    """Answers like a good server whose tokenizer knows Chinese; attributes make it worse."""

    vector: tuple[float, ...] = (0.6, 0.8)
    scores: tuple[float, float] = (0.9, 0.1)
    reads_chinese = True
    pieces: tuple[str, ...] = ("Hello", " there")
    usage: dict[str, int] | None = {"completion_tokens": 2}
    heads: dict[str, Any] = {"sparse": {"5": 0.2, "7": 0.1}, "colbert": [[0.6, 0.8]]}

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/completions":
            return {"usage": {"prompt_tokens": 6 if self.reads_chinese else 25}}
        if path == "/v1/embeddings" and "return" in body:
            return {"data": [{head: self.heads[head] for head in body["return"]}]}
        if path == "/v1/embeddings":
            return {"data": [{"index": i, "embedding": self._vector(text)} for i, text in enumerate(body["input"])]}
        assert path == "/v1/rerank"
        scores = self.scores
        if body["documents"] == ["你好", "谢谢"]:
            scores = (0.3, 0.2) if self.reads_chinese else (0.2, 0.2)
        ranked = [{"index": i, "relevance_score": score} for i, score in enumerate(scores)]
        return {"results": sorted(ranked, key=lambda result: -result["relevance_score"])}

    def _vector(self, text: str) -> list[float]:
        turned = text == "谢谢" and self.reads_chinese
        return list(reversed(self.vector) if turned else self.vector)

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        assert path == "/v1/chat/completions"
        yield {"choices": [{"delta": {"role": "assistant"}}]}
        for piece in self.pieces:
            yield {"choices": [{"delta": {"content": piece}}]}
        yield {"choices": [], "usage": self.usage}


def ask(
    server: object,
    kind: Kind,
    state: State = "ready",
    error: ErrorInfo | None = None,
    facts: ModelFacts | None = None,
) -> Answer:
    model = ModelStatus(spec=ModelSpec(uid="m", kind=kind), state=state, created=0.0, error=error, facts=facts)
    (answer,) = verify(cast(Client, server), [model])
    return answer


@pytest.mark.parametrize("kind", ["chat", "embedding", "rerank"])
def test_good_answers_have_no_problems(kind: Kind) -> None:
    assert ask(Served(), kind).problems == ()


def test_numbers_are_measured_from_the_answers() -> None:
    assert ask(Served(), "embedding").numbers["dimensions"] == 2
    assert ask(Served(), "embedding").numbers["norm"] == 1.0
    assert ask(Served(), "rerank").numbers["right"] == 0.9
    chat = ask(Served(), "chat")
    assert chat.answered == "Hello there"
    assert chat.numbers["tokens"] == 2
    assert {"first_token_seconds", "tokens_per_second"} <= chat.numbers.keys()


def test_the_guide_is_asked_in_chinese_and_an_english_model_in_english() -> None:
    server = Served()
    asked = [ask(server, kind).asked for kind in ("embedding", "rerank", "chat")]
    assert asked == [CHINESE.text, CHINESE.query, CHINESE.chat]
    server.reads_chinese = False
    asked = [ask(server, kind).asked for kind in ("embedding", "rerank", "chat")]
    assert asked == [ENGLISH.text, ENGLISH.query, ENGLISH.chat]


@pytest.mark.parametrize(
    ("kind", "worse", "said"),
    [
        ("embedding", {"vector": (3.0, 4.0)}, "length 5.0000"),
        ("embedding", {"vector": (float("nan"), 1.0)}, "not finite"),
        ("embedding", {"vector": ()}, "empty"),
        ("rerank", {"scores": (0.1, 0.9)}, "only 0.1000"),
        ("rerank", {"scores": (0.5, 0.5)}, "only 0.5000"),
        ("rerank", {"scores": (7.0, -3.0)}, "not within 0..1"),
        ("chat", {"pieces": ()}, "no words"),
        ("chat", {"pieces": ("Hello there",)}, "in one piece"),
        ("chat", {"usage": None}, "without its usage"),
    ],
)
def test_each_wrong_answer_is_found(kind: Kind, worse: dict[str, Any], said: str) -> None:
    server = Served()
    for name, value in worse.items():
        setattr(server, name, value)
    assert any(said in problem for problem in ask(server, kind).problems)


def embedding_facts(**fields: Any) -> ModelFacts:
    sizes = ("parameters", "layers", "hidden_size", "intermediate_size", "attention_heads", "kv_heads", "head_dim")
    needed = dict.fromkeys((*sizes, "vocab_size", "context_length"), 8)
    texts = {"path": "/models/m", "architecture": "BertModel", "model_type": "bert"}
    return ModelFacts(kind="embedding", stored_bytes={}, **texts, **needed, **fields)


def test_a_model_that_does_not_normalise_may_make_vectors_of_any_length() -> None:
    server = Served()
    server.vector = (3.0, 4.0)
    assert ask(server, "embedding", facts=embedding_facts(normalize=False)).problems == ()
    assert ask(server, "embedding", facts=embedding_facts(normalize=True)).problems


def test_every_head_of_a_model_is_asked() -> None:
    server = Served()
    facts = embedding_facts(token_heads=("sparse", "colbert"))
    answer = ask(server, "embedding", facts=facts)
    assert (answer.numbers["sparse"], answer.numbers["colbert"], answer.problems) == (2, 1, ())
    server.heads = {"sparse": {}, "colbert": [[0.6, 0.8]]}
    assert ask(server, "embedding", facts=facts).problems == ("the sparse output is empty",)


def test_the_heads_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    facts = embedding_facts(token_heads=("sparse", "colbert"))
    assert show_answers([ask(Served(), "embedding", facts=facts)])
    assert "2 dimensions, length 1, 2 sparse weights, 1 token vectors, " in capsys.readouterr().out


def test_a_failed_model_is_a_problem_with_its_reason() -> None:
    error = ErrorInfo(code="out_of_memory", message="ran out at 3.00 GiB")
    answer = ask(Served(), "chat", state="failed", error=error)
    assert answer.problems == ("not ready: ran out at 3.00 GiB",)
    assert ask(Served(), "chat", state="loading").problems == ("not ready: it is loading",)


def test_a_refused_request_and_a_strange_answer_are_problems_too() -> None:
    class Refusing(Served):
        def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            raise ModelLoading("m is loading.", hint="Try again.")

    class Strange(Served):
        def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            return {}

    assert ask(Refusing(), "embedding").problems == ("m is loading. Try again.",)
    assert "another shape" in ask(Strange(), "rerank").problems[0]
