"""Who may ask for what: keys, Host and Origin, loopback."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain

import pytest
from api_server import Served
from fake_service import FakeService
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.routing import BaseRoute, Route

from lodger.api.app import ApiOptions, build_app
from lodger.api.dialects import routers
from lodger.api.security import PUBLIC_PATHS, require_admin

# Everyone who may use models may use these; every other route changes what runs, or shows more than its callers' own.
FOR_EVERYONE = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/responses"),
    ("POST", "/v1/messages"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/embeddings"),
    ("POST", "/v1/rerank"),
    ("POST", "/embed"),
    ("POST", "/token"),
    ("POST", "/v1/convert_ids_to_tokens"),
    ("POST", "/v1/models/x/requests/x/abort"),
}
EVIL = {"host": "evil.example:9997"}


def routes() -> Iterator[tuple[str, str, BaseRoute]]:
    """Method, a concrete path, and the route, of everything that is mounted."""
    own = [route for route in build_app(FakeService(), ApiOptions()).routes if isinstance(route, Route)]
    for route in [*own, *chain.from_iterable(router.routes for router in routers())]:
        for method in route.methods:
            yield method, re.sub(r"\{\w+\}", "x", route.path), route


def local(options: ApiOptions, peer: str = "127.0.0.1") -> TestClient:
    app = build_app(FakeService(), options)
    return TestClient(app, base_url="http://127.0.0.1:9997", client=(peer, 50000), raise_server_exceptions=False)


def test_the_walk_sees_the_routes() -> None:
    assert len(list(routes())) > 35
    assert ("GET", "/openapi.json") in {(method, path) for method, path, _ in routes()}


@pytest.mark.parametrize(
    "sent", [{}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}, {"x-api-key": "secre"}]
)
def test_with_a_key_every_route_wants_it(sent: dict[str, str]) -> None:
    client = local(ApiOptions(api_key="secret"))
    for method, path, _ in routes():
        answer = client.request(method, path, headers=sent)
        assert (answer.status_code == 401) == (path not in PUBLIC_PATHS), f"{method} {path}: {answer.status_code}"
    assert client.get("/no/such/route", headers=sent).status_code == 401


@pytest.mark.parametrize(
    "sent", [{"authorization": "Bearer sécret ключ".encode()}, {"x-api-key": "sécret ключ".encode()}]
)
def test_the_right_key_opens_every_route_even_from_elsewhere(sent: dict[str, bytes]) -> None:
    client = local(ApiOptions(api_key="sécret ключ", host="0.0.0.0"), peer="10.1.2.3")
    key = {**sent, **EVIL, "origin": "https://evil.example"}
    for method, path, _ in routes():
        assert client.request(method, path, headers=key).status_code not in (401, 403), f"{method} {path}"
    assert client.get("/v1/cluster/auth").json() == {"auth": True}


def test_a_refusal_for_want_of_a_key_reads_like_every_error() -> None:
    answer = local(ApiOptions(api_key="secret")).get("/v1/models")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "key_required"
    assert answer.json()["detail"] == answer.json()["error"]["message"]
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9997", "127.0.0.1:1", "[::1]:9997", "host.docker.internal:9997", "LOCALHOST"]
)
def test_names_of_this_machine_are_answered(host: str) -> None:
    assert local(ApiOptions()).get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:9997", "", "[::1", "10.0.0.1"]
)
def test_a_rebound_name_is_not_answered(host: str) -> None:
    client = local(ApiOptions())
    for method, path, _ in routes():
        assert client.request(method, path, headers={"host": host}).status_code == 403, f"{method} {path}"


def test_the_configured_address_is_a_name_of_this_machine() -> None:
    client = local(ApiOptions(host="172.17.0.1"))
    assert client.get("/v1/models", headers={"host": "172.17.0.1:9997"}).status_code == 200


def test_a_page_of_another_site_may_read_what_it_has_the_key_for() -> None:
    page = {"origin": "https://chat.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    client = local(ApiOptions(api_key="secret", host="0.0.0.0"))
    preflight = client.options("/v1/chat/completions", headers=page | asked)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, "*")
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    refused = client.get("/v1/models", headers=page)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "*")
    answer = client.get("/v1/models", headers=page | {"authorization": "Bearer secret"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("origin", "read"),
    [
        ("http://localhost:3000", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("null", False),
    ],
)
@pytest.mark.parametrize("options", [ApiOptions(), ApiOptions(open=True, host="0.0.0.0")])
def test_without_a_key_only_pages_of_this_machine_read_answers(origin: str, read: bool, options: ApiOptions) -> None:
    client, page = local(options), {"origin": origin}
    preflight = client.options("/v1/embeddings", headers=page | {"access-control-request-method": "POST"})
    answer = client.get("/v1/models", headers=page)
    assert (preflight.status_code, answer.status_code) == ((200, 200) if read else (400, 403))
    for one in (preflight, answer):
        assert one.headers.get("access-control-allow-origin") == (origin if read else None)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "http://[::1", "http://10.0.0.1:9997"]
)
def test_a_web_page_of_another_site_is_not_answered(origin: str) -> None:
    for options in (ApiOptions(), ApiOptions(open=True, host="0.0.0.0")):
        answer = local(options).post("/v1/models", json={"model_name": "x"}, headers={"origin": origin})
        assert answer.status_code == 403


def test_pages_of_this_machine_are_answered() -> None:
    answer = local(ApiOptions()).get("/v1/models", headers={"origin": "http://localhost:3000"})
    assert answer.status_code == 200
    client = local(ApiOptions(open=True, host="0.0.0.0"), peer="10.1.2.3")
    own = {"host": "gpu.example:9997", "origin": "http://gpu.example:9997"}
    assert client.get("/v1/models", headers=own).status_code == 200


def test_an_open_server_gives_everyone_inference() -> None:
    client = local(ApiOptions(open=True, host="0.0.0.0"), peer="10.1.2.3")
    chat = {"model": "qwen3-4b-chat-local", "messages": [{"role": "user", "content": "hi"}]}
    assert client.post("/v1/chat/completions", json=chat, headers=EVIL).status_code == 200
    assert client.get("/v1/models", headers={"host": "gpu.example:9997"}).status_code == 200


@pytest.mark.parametrize("peer", ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1", "testclient"])
def test_an_open_server_is_managed_from_loopback_only(peer: str) -> None:
    client = local(ApiOptions(open=True, host="0.0.0.0"), peer=peer)
    for method, path in [
        ("POST", "/v1/models"),
        ("DELETE", "/v1/models/bge-m3-local"),
        ("POST", "/v1/models/bge-m3-local/cancel"),
        ("POST", "/lodger/models"),
        ("DELETE", "/lodger/models/bge-m3-local"),
        ("POST", "/lodger/plan"),
        ("GET", "/lodger/status"),
        ("GET", "/lodger/logs"),
    ]:
        answer = client.request(method, path, json={"model_name": "x", "model_path": "/etc"})
        assert answer.status_code == 403, f"{method} {path}"
        assert "same machine" in answer.json()["detail"]


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_loopback_manages_an_open_server_unless_its_name_was_rebound(peer: str) -> None:
    client = local(ApiOptions(open=True, host="0.0.0.0"), peer=peer)
    assert client.delete("/v1/models/bge-m3-local").status_code == 200
    assert client.delete("/v1/models/qwen3-4b-chat-local", headers=EVIL).status_code == 403


def test_every_route_that_changes_something_is_for_admins() -> None:
    for method, path, route in routes():
        if method in ("GET", "HEAD") or (method, path) in FOR_EVERYONE:
            continue
        assert isinstance(route, APIRoute)
        assert require_admin in [dependency.call for dependency in route.dependant.dependencies], f"{method} {path}"


def test_a_model_path_works_from_loopback_and_with_a_key(serve: Callable[..., Served]) -> None:
    body = {"model_name": "m", "model_path": "/models/m", "model_type": "LLM"}
    assert local(ApiOptions()).post("/v1/models", json=body).status_code == 200
    keyed = serve(api_key="k")
    assert keyed.ask("POST", "/v1/models", body).status == 401
    assert keyed.ask("POST", "/v1/models", body, authorization="Bearer k").status == 200
    assert keyed.service.model("m").spec.path == "/models/m"
