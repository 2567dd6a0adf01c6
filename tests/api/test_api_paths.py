"""Base URLs as people type them: every request that real clients were seen to make of them reaches its route."""

from __future__ import annotations

from typing import Any

import pytest
from api_server import Served
from fake_service import FakeService
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from lodger.api.app import ApiOptions, build_app
from lodger.api.dialects import routers
from lodger.api.paths import canonical, known_heads

CHAT, EMBED, RERANK = "chat/completions", "embeddings", "rerank"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "qwen3-4b-chat-local", "messages": [{"role": "user", "content": "hi"}]},
    EMBED: {"model": "bge-m3-local", "input": "hi"},
    RERANK: {"model": "bge-reranker-v2-m3-local", "query": "q", "documents": ["a"]},
}
# By base URL, the paths of the requests of RAGFlow 0.17 to 0.27 that arrive for it, through its providers Xinference,
# OpenAI-API-Compatible and VLLM, whose rerank is Cohere's SDK.
RAGFLOW = {
    "": {
        CHAT: ["/v1/chat/completions", "/chat/completions"],
        EMBED: ["/v1/embeddings", "/embeddings"],
        RERANK: ["/v1/rerank", "/rerank"],
        "models": ["/v1/models"],
    },
    "/v1": {
        CHAT: ["/v1/chat/completions"],
        EMBED: ["/v1/embeddings"],
        RERANK: ["/v1/rerank", "/rerank", "/v1/v1/rerank"],
        "models": ["/v1/v1/models", "/v1/models"],
    },
    "/v1/": {
        CHAT: ["/v1/v1/chat/completions", "/v1/chat/completions"],
        EMBED: ["/v1/v1/embeddings", "/v1/embeddings"],
        RERANK: ["/v1/rerank", "/rerank", "/v1/v1/rerank"],
        "models": ["/v1/v1/models"],
    },
    "/v1/rerank": {
        CHAT: ["/v1/v1/chat/completions", "/v1/rerank/v1/chat/completions", "/v1/rerank/chat/completions"],
        EMBED: ["/v1/v1/embeddings", "/v1/rerank/v1/embeddings", "/v1/rerank/embeddings"],
        RERANK: ["/v1/rerank", "/v1/rerank/rerank", "/v1/rerank/v1/rerank"],
        "models": ["/v1/rerank/v1/models"],
    },
}
CELLS = [
    pytest.param(what, path, id=f"{base or '/'} {path}")
    for base, kinds in RAGFLOW.items()
    for what, paths in kinds.items()
    for path in paths
]
HEADS = known_heads(route.path for router in routers() for route in router.routes)


@pytest.mark.parametrize("slash", ["", "/"])
@pytest.mark.parametrize(("what", "path"), CELLS)
def test_every_cell_of_ragflows_matrix_is_answered(served: Served, what: str, path: str, slash: str) -> None:
    if what == "models":
        answer = served.ask("GET", path + slash)
        assert {row["id"] for row in answer.json["data"]} >= {"bge-m3-local"}
    else:
        answer = served.ask("POST", path + slash, BODIES[what])
        assert answer.json.keys() & {"choices", "data", "results"}
    assert answer.status == 200


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("/v2/rerank", "/v1/rerank"),
        ("//v1//embeddings", "/v1/embeddings"),
        ("/completions", "/v1/completions"),
        ("/v1/v1/cluster/auth", "/v1/cluster/auth"),
        ("/v1/models/rerank", "/v1/models/rerank"),
        ("/models/v1/progress", "/v1/models/v1/progress"),
        ("/v1/v1/models/rerank/", "/v1/models/rerank"),
        ("/v1/model_registrations/rerank/", "/v1/model_registrations/rerank"),
        ("/v1/healthz", "/healthz"),
        ("/anthropic/v1/messages", "/v1/messages"),
        ("/anthropic/v1/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/lodger/models/", "/lodger/models"),
        ("/v1/rerank/nothing", "/v1/rerank/nothing"),
        ("/v3/embeddings", "/v3/embeddings"),
        ("/audio/v1/embeddings", "/audio/v1/embeddings"),
        ("/V1/embeddings", "/V1/embeddings"),
        *((path, path) for path in ("", "/", "/v1", "/v1/", "/v1/v1", "/nothing", "/openapi.json")),
    ],
)
def test_only_what_stands_before_a_known_route_counts_for_nothing(asked: str, meant: str) -> None:
    assert canonical(asked, HEADS) == meant


prefixes = st.lists(st.sampled_from(["v1", "v2", "rerank", ""]), max_size=6)


@given(prefixes, st.sampled_from([route.path for router in routers() for route in router.routes]), st.booleans())
def test_any_run_of_prefixes_means_the_route_itself(before: list[str], route: str, slash: bool) -> None:
    typed = "/".join(["", *before]) + route + "/" * slash
    assert canonical(typed, HEADS) == route
    assert canonical(canonical(typed, HEADS), HEADS) == route


def test_a_route_by_another_path_wants_the_key_like_the_route_itself() -> None:
    app = build_app(FakeService(), ApiOptions(api_key="secret"))
    client = TestClient(app, base_url="http://127.0.0.1:9997", raise_server_exceptions=False)
    for path in ("/v1/v1/models", "/models", "/v1/rerank/v1/models/", "/v1/lodger/status"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer secret"}).status_code == 200
    assert client.get("/v1/v1/cluster/auth/").json() == {"auth": True}


def test_a_path_of_no_route_is_named_as_it_was_asked_for(served: Served) -> None:
    answer = served.ask("GET", "/v1/v1/audio/speech")
    assert answer.status == 404
    assert "/v1/v1/audio/speech" in answer.json["detail"]
