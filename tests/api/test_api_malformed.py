"""Two hundred malformed bodies for every route that takes one: each is answered, and the next request too."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any

import pytest
from fake_service import FakeService
from fastapi import FastAPI
from malformed_bodies import broken_texts, odd_fields, wrong_shapes

from lodger.api.app import ApiOptions, build_app

CHAT = "qwen3-4b-chat-local"
SAID = [{"role": "user", "content": "hi"}]
# A body that each route answers, or at least understands; {} for routes that need none.
VALID: dict[str, dict[str, Any]] = {
    "POST /v1/chat/completions": {"model": CHAT, "messages": SAID},
    "POST /v1/completions": {"model": CHAT, "prompt": "hi"},
    "POST /v1/responses": {"model": CHAT, "input": "hi"},
    "POST /v1/messages": {"model": CHAT, "max_tokens": 8, "messages": SAID},
    "POST /v1/messages/count_tokens": {"model": CHAT, "messages": SAID},
    "POST /v1/embeddings": {"model": "bge-m3-local", "input": "hi"},
    "POST /embed": {"inputs": "hi"},
    "POST /token": {"password": "x"},
    "POST /v1/rerank": {"query": "q", "documents": ["a"]},
    "POST /v1/convert_ids_to_tokens": {"model": "bge-m3-local", "input": [1]},
    "POST /v1/models": {"model_name": "m", "model_type": "LLM", "model_uid": "bge-m3-local"},
    "POST /v1/model_registrations/{model_type}": {"model": '{"model_name": "mine", "model_uri": "/models"}'},
    "POST /lodger/models": {"uid": "bge-m3-local", "name": "m"},
    "POST /lodger/plan": {"models": [{"uid": "a", "name": "x"}]},
}
NEEDED = {"POST /v1/models": ["model_name"]}  # what the document cannot say is required
PATH = {"uid": CHAT, "model_type": "LLM"}


def app_of(service: FakeService) -> FastAPI:
    return build_app(service, ApiOptions())


@cache
def document() -> dict[str, Any]:
    return app_of(FakeService()).openapi()


def routes() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation of the document that takes a body, and those without one that change something."""
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            if method in ("post", "put", "patch", "delete"):
                yield f"{method.upper()} {path}", operation


def schema_of(route: str) -> dict[str, Any]:
    """The JSON schema of the route's body; empty where it takes none."""
    operation = dict(routes())[route]
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    return document()["components"]["schemas"][name] if name else schema


async def send(app: FastAPI, route: str, body: bytes, kind: bytes = b"application/json") -> tuple[int, bytes]:
    """One request, in this process."""
    method, path = route.split(" ")
    path = re.sub(r"\{(\w+)\}", lambda match: PATH.get(match[1], "x"), path)
    headers = [(b"host", b"localhost"), (b"content-type", kind), (b"content-length", str(len(body)).encode())]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    scope |= {"http_version": "1.1", "scheme": "http", "client": ("127.0.0.1", 1), "raw_path": path.encode()}
    read, status, parts = False, 0, []

    async def receive() -> dict[str, Any]:
        nonlocal read
        if read:
            await asyncio.sleep(60)  # the client stays
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def hear(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    await asyncio.wait_for(app(scope, receive, hear), 20)
    return status, b"".join(parts)


def check_refusal(route: str, body: bytes, status: int, answer: bytes) -> None:
    assert 400 <= status < 500, (route, body[:300], status, answer[:300])
    said = json.loads(answer)
    assert said["error"]["message"], (route, body[:300])
    assert "/v1/messages" in route or said["detail"] == said["error"]["message"]
    assert not re.search(r"Traceback|/src/|\.py\b|pydantic|<class|0x[0-9a-f]{6}", answer.decode()), answer


def test_every_route_has_a_body_to_be_malformed() -> None:
    assert {route for route, operation in routes() if "requestBody" in operation} <= VALID.keys() | {ABORT}
    assert VALID.keys() <= dict(routes()).keys()


ABORT = "POST /v1/models/{uid}/requests/{request_id}/abort"


@pytest.mark.parametrize("route", [route for route, _ in routes()])
def test_two_hundred_malformed_bodies_are_refused_and_the_next_request_is_answered(route: str) -> None:
    chance = random.Random(route)
    body, schema = VALID.get(route, {"a": 1}), schema_of(route)
    needed = NEEDED.get(route, schema.get("required", []))
    sure = [*broken_texts(body, chance), *(wrong_shapes(body, needed, chance) if route in VALID else ())]
    odd = list(islice(odd_fields(body, sorted(schema.get("properties", {})), chance), 100))
    assert len(sure) >= 200

    async def main() -> None:
        app = app_of(FakeService())
        for text in sure:
            check_refusal(route, text, *await send(app, route, text))
        for text in odd:
            status, answer = await send(app, route, text)
            if status != 200:
                check_refusal(route, text, status, answer)
        for kind in (b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b"\xff"):
            check_refusal(route, b"a=1", *await send(app, route, b"a=1", kind))
        app.state.service = FakeService()
        assert (await send(app, "GET /v1/models", b""))[0] == 200
        if route in VALID:
            status, answer = await send(app, route, json.dumps(body).encode())
            assert status == 200 or b"taken" in answer or b"wants no key" in answer, answer

    asyncio.run(main())
