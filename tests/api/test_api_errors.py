"""Nothing that a client sends makes the server fail, hang or fall silent."""

from __future__ import annotations

import json
import re
import socket
import timeit
from array import array
from http.client import HTTPConnection
from typing import Any

import pytest
from api_server import Served, ask
from fake_service import FakeService
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lodger.api import limits
from lodger.api.app import ApiOptions, build_app
from lodger.api.bodies import json_response
from lodger.api.dialects.embeddings import floats
from lodger.errors import MalformedBody

VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "qwen3-4b-chat-local", "messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"model": "qwen3-4b-chat-local", "prompt": "hi"},
    "/v1/embeddings": {"model": "bge-m3-local", "input": "hi"},
    "/v1/rerank": {"model": "bge-reranker-v2-m3-local", "query": "q", "documents": ["a"]},
    "/v1/models": {"model_name": "m", "model_type": "LLM", "model_uid": "bge-m3-local"},
    "/lodger/models": {"uid": "bge-m3-local", "name": "m"},
    "/lodger/plan": {"models": [{"uid": "a", "name": "x"}]},
}
BROKEN = [
    *(b"{", b"[1, 2", b'{"model": }', b"not json", b'{"a": 1} x', b"model=x&input=y", b"", b" ", b"\x00"),
    *(b"\xff\xfe{}", b'{"a": "\xff"}', b'{"a": "\\ud800"}', b'{"a": NaN}', b'{"a": 1e999}'),
    *(b"[" * 100_000, b'{"a":' * 5000),
]

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


calls = st.lists(st.dictionaries(st.sampled_from(["id", "function", "type"]), anything, max_size=3), max_size=2)
parts = st.dictionaries(st.sampled_from(["role", "name", "tool_call_id", "function_call"]), anything, max_size=3)
messages = st.builds(
    lambda part, content, made: {"role": "user", **part, "content": content, "tool_calls": made},
    parts,
    anything,
    calls | anything,
)


def fields_of(path: str) -> list[str]:
    schema = build_app(FakeService(), ApiOptions()).openapi()
    body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = body.get("$ref", "").rpartition("/")[2]
    return sorted((schema["components"]["schemas"][name] if name else body)["properties"])


def check_refusal(answer: Any) -> None:
    assert 400 <= answer.status < 500, answer.body
    said = answer.json
    assert said["detail"] == said["error"]["message"] != ""
    assert {"message", "type", "code", "param"} <= said["error"].keys()
    assert not re.search(r"Traceback|/src/|\.py|pydantic|<class|0x[0-9a-f]{6}", answer.body.decode())


def test_strange_conversations_are_answered_and_the_connection_goes_on(served: Served) -> None:
    """Deeper into messages than the OpenAPI document says; `test_api_malformed` and `test_api_schema` have the rest."""
    path = "/v1/chat/completions"
    names = fields_of(path)
    with served.connection() as connection:

        @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(
            st.fixed_dictionaries({}, optional={"messages": st.lists(messages, max_size=2)}),
            st.dictionaries(st.sampled_from(names), anything, max_size=4),
            st.none() | anything,
        )
        def strange(said: dict[str, Any], changed: dict[str, Any], other: Any) -> None:
            body = {**VALID[path], **said, **changed} if other is None else other
            answer = ask(connection, "POST", path, json.dumps(body).encode())
            if answer.status != 200:
                check_refusal(answer)

        strange()
        assert ask(connection, "POST", path, VALID[path]).status in (200, 400)


@pytest.mark.parametrize("path", VALID)
def test_bodies_that_are_not_json_are_400_and_the_connection_goes_on(served: Served, path: str) -> None:
    with served.connection() as connection:
        for body in BROKEN:
            answer = ask(connection, "POST", path, body)
            assert answer.status == 400, body[:20]
            check_refusal(answer)
            port = connection.sock.getsockname()[1]
        assert ask(connection, "GET", "/healthz").status == 200
        assert connection.sock.getsockname()[1] == port


@pytest.mark.parametrize(
    ("path", "changed", "field"),
    [
        ("/v1/chat/completions", {"temperature": "hot"}, "temperature"),
        ("/v1/chat/completions", {"temperature": 9}, "temperature"),
        ("/v1/chat/completions", {"max_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", {"n": 17}, "n"),
        ("/v1/chat/completions", {"stop": ["x"] * 17}, "stop"),
        ("/v1/chat/completions", {"stop": 5}, "stop"),
        ("/v1/chat/completions", {"messages": "hi"}, "messages"),
        ("/v1/chat/completions", {"messages": ["hi"]}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages"),
        ("/v1/chat/completions", {"messages": None}, "messages"),
        ("/v1/chat/completions", {"model": 5}, "model"),
        ("/v1/chat/completions", {"model": None}, "model"),
        ("/v1/chat/completions", {"tools": "f"}, "tools"),
        ("/v1/chat/completions", {"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ("/v1/completions", {"prompt": {"a": 1}}, "prompt"),
        ("/v1/completions", {"prompt": ["x"] * 65}, "prompt"),
        ("/v1/embeddings", {"input": [["a"]]}, "input"),
        ("/v1/embeddings", {"input": [1, "a"]}, "input"),
        ("/v1/embeddings", {"input": [-1]}, "input"),
        ("/v1/embeddings", {"input": ["x"] * 2049}, "input"),
        ("/v1/embeddings", {"encoding_format": "int8"}, "encoding_format"),
        ("/v1/rerank", {"query": ["a"]}, "query"),
        ("/v1/rerank", {"documents": ["x"] * 2049}, "documents"),
        ("/v1/rerank", {"return_documents": "maybe"}, "return_documents"),
    ],
)
def test_the_field_at_fault_is_named(served: Served, path: str, changed: dict[str, Any], field: str) -> None:
    answer = served.ask("POST", path, VALID[path] | changed)
    check_refusal(answer)
    assert answer.status == 400
    assert answer.json["error"]["param"] == field
    assert field in answer.json["detail"]


def test_null_means_unset_and_numbers_may_be_strings(served: Served) -> None:
    body = VALID["/v1/chat/completions"] | {
        "max_tokens": "5",
        "temperature": None,
        "stop": None,
        "user": None,
        "n": None,
    }
    assert served.ask("POST", "/v1/chat/completions", body | {"stream": "false", "top_p": "0.5"}).status == 200
    assert served.service.tasks[-1].stopping.max_tokens == 5


def test_a_body_needs_no_content_type(served: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-8"):
        assert served.ask("POST", "/v1/embeddings", VALID["/v1/embeddings"], content_type=kind).status == 200


def test_a_body_of_many_megabytes_is_read(served: Served) -> None:
    body = VALID["/v1/embeddings"] | {"ignored": "x" * (8 * 2**20)}
    assert served.ask("POST", "/v1/embeddings", body).status == 200


def test_a_body_over_the_limit_is_413_before_it_is_read(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_a_chunked_body_over_the_limit_is_413(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BODY_BYTES", 1000)
    with served.connection() as connection:
        connection.request("POST", "/v1/embeddings", iter([b"x" * 600] * 2))
        assert connection.getresponse().status == 413


def test_nesting_is_limited_and_ordinary_brackets_are_not() -> None:
    limits.parse_json(b"[" * limits.JSON_DEPTH + b"]" * limits.JSON_DEPTH)
    limits.parse_json(json.dumps({"text": "[" * 1000, "list": [[1]] * 1000}).encode())
    for depth in (limits.JSON_DEPTH + 1, 900, 100_000):
        with pytest.raises(MalformedBody, match="nested deeper"):
            limits.parse_json(b"[" * depth + b"]" * depth)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**30])
def test_integers_that_no_frame_can_carry_are_refused(number: int) -> None:
    limits.parse_json(json.dumps([2**63 - 1, -(2**63), str(number)]).encode())
    with pytest.raises(MalformedBody, match="64 bits"):
        limits.parse_json(json.dumps({"a": [number]}).encode())


def test_unknown_routes_and_methods_read_like_every_error(served: Served) -> None:
    missing = served.ask("GET", "/v1/audio/speech")
    assert missing.status == 404
    check_refusal(missing)
    wrong = served.ask("PUT", "/v1/models")
    assert wrong.status == 405
    check_refusal(wrong)
    assert "GET" in wrong.headers["allow"]


def test_a_request_id_comes_back(served: Served) -> None:
    assert served.ask("GET", "/healthz", x_request_id="abc-123").headers["x-request-id"] == "abc-123"
    made = {served.ask("GET", "/nosuch", x_request_id=bad).headers["x-request-id"] for bad in ("a b", "", "x" * 200)}
    assert len(made) == 3
    assert all(re.fullmatch(r"[0-9a-f]{32}", value) for value in made)


def test_a_defect_is_500_with_the_request_id_and_its_trace_only_in_the_log(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("a secret inside")

    monkeypatch.setattr(served.service, "models", broken)
    with served.connection() as connection:
        answer = ask(connection, "GET", "/v1/models", x_request_id="find-me")
        assert answer.status == 500
        assert answer.json["error"]["code"] == "internal_error"
        assert "find-me" in answer.json["detail"]
        assert b"secret" not in answer.body
        assert "a secret inside" in caplog.text
        assert ask(connection, "GET", "/healthz").status == 200


def test_the_openapi_document_describes_the_requests() -> None:
    client = TestClient(build_app(FakeService(), ApiOptions()), base_url="http://localhost")
    schema = client.get("/openapi.json").json()
    chat = schema["components"]["schemas"]["ChatRequest"]
    assert {"model", "messages", "stream", "max_completion_tokens"} <= chat["properties"].keys()
    assert set(chat["required"]) == {"model", "messages"}
    assert "context_length" in fields_of("/lodger/models")
    for page in ("/docs", "/redoc"):
        assert client.get(page).status_code == 404  # FastAPI's would load scripts from a CDN


def test_large_answers_are_quick() -> None:
    """32 vectors of 1024 floats are written in a few milliseconds; 50 would be felt."""
    vectors = array("f", [0.001 * place for place in range(32 * 1024)]).tobytes()
    assert min(timeit.repeat(lambda: json_response({"data": floats(vectors, 1024)}), number=1, repeat=5)) < 0.05


def test_http_1_0_without_a_host_is_refused(served: Served) -> None:
    connection = HTTPConnection("127.0.0.1", served.port)
    connection.putrequest("GET", "/v1/models", skip_host=True)
    connection.putheader("Host", "")
    connection.endheaders()
    assert connection.getresponse().status == 403
    connection.close()
