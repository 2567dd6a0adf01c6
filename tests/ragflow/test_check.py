"""`lodger ragflow check`: what RAGFlow sends, and each way in which a server could disappoint it."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from api_server import Served, serving
from fake_service import FakeService
from scripted_http import Scripted, scripted

from lodger.api.app import ApiOptions
from lodger.checks.base import Check
from lodger.client import Client
from lodger.errors import ConfigProblem, SetupProblem
from lodger.ragflow.check import check, check_names, guessed_type
from lodger.ragflow.connect import Offer, offers
from lodger.ragflow.docker import bridge_address, check_listening, find_container, pick
from lodger.ragflow.probes import Probe, Wrong, probes
from lodger.ragflow.reply import Container, Direct, Reply

CHAT = Offer(name="qwen3-chat", type="chat", max_tokens=8192, tools=True)
EMBEDDING = Offer(name="bge", type="embedding", max_tokens=8192)
RERANK = Offer(name="bge-rerank", type="rerank", max_tokens=8192)
CHAT_HERE = Offer(name="qwen3-4b-chat-local", type="chat", max_tokens=8192)
DOCKER = """#!/bin/sh
[ "$1" = ps ] && { printf 'ragflow-mysql\\tmysql:8\\nragflow-server\\tinfiniflow/ragflow:v0.27.0\\n'; exit; }
[ "$1 $2 $3" = "exec -i ragflow-server" ] || exit 9
echo "$@" >> "$(dirname "$0")/words"
shift 3; exec "$@"
"""


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(FakeService(), ApiOptions()) as made:
        yield made


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A docker whose one container is this machine."""
    script = tmp_path / "docker"
    script.write_text(DOCKER)
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted() as made:
        yield made


def models_of(served: Served) -> tuple[Offer, ...]:
    return offers(Client(served.url).get("/v1/models")["data"])


def probe_of(model: Offer, word: str) -> Probe:
    return next(probe for probe in probes(model) if word in probe.what)


def judged(probe: Probe, body: Any) -> str:
    return probe.judge(Reply(status=200, body=json.dumps(body).encode()))


def bad(checks: list[Check]) -> list[str]:
    return [f"{one.name}: {one.measured}" for one in checks if one.state == "fail"]


def test_lodger_is_right_for_every_request_of_every_version(served: Served) -> None:
    checks = list(check(Direct(), served.url, None, models_of(served), thorough=True))
    assert bad(checks) == []
    assert len(checks) > 14
    assert all("answered" in one.measured for one in checks if "base URL" in one.name)


def test_from_a_container_the_same_is_sent_by_curl_and_the_key_is_in_no_list_of_processes(
    docker: None, tmp_path: Path
) -> None:
    assert find_container(None) == "ragflow-server"
    with serving(FakeService(), ApiOptions(api_key="s3cret")) as served:
        models = offers(Client(served.url, api_key="s3cret").get("/v1/models")["data"])
        checks = list(check(Container("ragflow-server"), served.url, "s3cret", models, thorough=False))
    assert bad(checks) == []
    assert checks[0].name.startswith("ragflow-server: ")
    words = (tmp_path / "words").read_text()
    assert "curl --config -" in words
    assert "s3cret" not in words


def test_a_container_that_cannot_reach_it_is_told_why(docker: None) -> None:
    checks = list(check(Container("ragflow-server"), "http://127.0.0.1:9", None, [CHAT], thorough=False))
    assert len(checks) == 1, "nothing else would be reached"
    assert "refused" in checks[0].measured
    assert "--host" in (checks[0].hint or "")
    unknown = list(check(Container("ragflow-server"), "http://nowhere.invalid:9", None, [CHAT], thorough=False))
    assert "extra_hosts" in (unknown[0].hint or "")


def test_a_missing_key_is_said_with_what_to_do() -> None:
    with serving(FakeService(), ApiOptions(api_key="s3cret")) as served:
        first = next(check(Direct(), served.url, None, [CHAT], thorough=True))
        assert first.state == "fail"
        assert first.measured.startswith("401")
        assert "key" in (first.hint or "")
        assert not bad(list(check(Direct(), served.url, "s3cret", [CHAT_HERE], thorough=False)))


def test_bodies_are_ragflows_own(server: Scripted) -> None:
    list(check(Direct(), server.url, None, [CHAT, EMBEDDING, RERANK], thorough=True))
    sent = [(path, headers, json.loads(body)) for _, path, headers, body in server.seen if body]
    chats = [body for path, _, body in sent if path == "/v1/chat/completions" and "max_completion_tokens" not in body]
    assert all(body["enable_thinking"] is False and "max_tokens" not in body for body in chats)
    assert [bool(body.get("stream")) for body in chats] == [False, True, True]
    embeds = [body for path, _, body in sent if path == "/v1/embeddings"]
    assert embeds[0] == {"input": ["Test if the api key is available"], "model": "bge", "encoding_format": "base64"}
    assert embeds[1]["drop_params"] is True
    assert embeds[1]["encoding_format"] == "float"
    assert len(embeds[2]["input"]) == 16
    reranks = [(headers, body) for path, headers, body in sent if path == "/v1/rerank"]
    assert reranks[0][1]["return_documents"] == reranks[0][1]["return_len"] == "true"
    assert "authorization" not in reranks[0][0], "RAGFlow leaves the key 'x' out there"
    assert len(reranks[1][1]["documents"]) == 64
    assert all(headers["authorization"] == "Bearer x" for path, headers, _ in sent if "chat" in path)


def test_tools_are_sent_only_to_a_model_that_takes_them() -> None:
    plain = msgspec.structs.replace(CHAT, tools=False)
    assert [any("tools" in probe.what for probe in probes(model)) for model in (CHAT, plain)] == [True, False]


def test_a_server_that_knows_only_v1_is_told_to_have_its_root_typed(server: Scripted) -> None:
    server.reply = (404, {}, b'{"detail": "Not Found"}')
    for path in ("GET /v1/models", "POST /v1/embeddings"):
        server.replies[path] = (200, {}, b'{"data": []}')
    typed = [one for one in check(Direct(), server.url, None, [EMBEDDING], thorough=False) if "base URL" in one.name]
    assert [one.state for one in typed] == ["warn", "warn", "warn", "warn"]
    assert "/embeddings (404)" in typed[0].measured
    assert "as Xinference" in (typed[0].hint or "")
    assert "/v1/v1/models (404)" in typed[1].measured
    assert "root URL" in (typed[1].hint or "")


@pytest.mark.parametrize(
    ("model", "word", "body", "says"),
    [
        (EMBEDDING, "base64", {"data": [{"embedding": [1.0]}], "usage": {"total_tokens": 1}}, "floats came"),
        (EMBEDDING, "float", {"data": [{"embedding": [3.0, 4.0]}], "usage": {"total_tokens": 1}}, "length 5"),
        (EMBEDDING, "float", {"data": [{"embedding": [0.6, 0.8]}], "usage": {"total_tokens": 0}}, "total_tokens is 0"),
        (EMBEDDING, "16", {"data": [{"index": n, "embedding": [1.0]} for n in range(15, -1, -1)]}, "not in the order"),
        (RERANK, "adding", {"results": []}, "0 scores for 1"),
        (RERANK, "adding", {"results": [{"index": 0, "relevance_score": 4.2}]}, r"not within 0\.\.1"),
        (CHAT, "0.25", {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}, "no words"),
        (CHAT, "0.25", {"choices": [{"message": {"content": "a"}, "finish_reason": "length"}]}, "cut"),
    ],
)
def test_each_wrong_answer_is_found(model: Offer, word: str, body: Any, says: str) -> None:
    with pytest.raises(Wrong, match=says):
        judged(probe_of(model, word), body)


def test_an_empty_stream_is_found_and_one_cut_off_in_the_middle_is_no_defect() -> None:
    probe = probe_of(CHAT, "0.26")
    with pytest.raises(Wrong, match="no words"):
        probe.judge(Reply(status=200, body=b'data: {"choices":[{"delta":{"content":""}}]}\n\ndata: [DONE]\n\n'))
    body = b': ping\n\ndata: {"choices":[{"delta":{"content":"Hi"}}]}\n\ndata: {"cho'
    assert "words come" in probe.judge(Reply(status=200, body=body, in_time=False))


def test_late_is_a_warning_where_only_older_versions_wait_for_the_whole_answer(docker: None) -> None:
    class Slow:
        where = "host"

        def send(self, method: str, *_: Any, **__: Any) -> Reply:
            listed = json.dumps({"data": [{"id": CHAT.name, "model_type": "LLM"}]}).encode()
            return Reply(status=200, body=listed) if method == "GET" else Reply(seconds=10, in_time=False)

    checks = {one.name: one for one in check(Slow(), "http://x", None, [CHAT], thorough=False)}
    assert checks["host: qwen3-chat: chat, adding it (up to 0.25)"].state == "warn"
    assert checks["host: qwen3-chat: chat stream, adding it (0.26+)"].state == "fail"


def test_from_a_container_slow_is_not_taken_for_unreachable(docker: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, and nobody answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/models"
        reply = Container("ragflow-server").send("GET", url, {}, None, 0.5)
    assert reply.unreached is None
    assert not reply.in_time


def test_names_that_0_26_takes_for_another_type_are_warned_of() -> None:
    assert [guessed_type(name) for name in ("bge-reranker-v2-m3", "bge-m3", "qwen3")] == ["rerank", "embedding", "chat"]
    odd = msgspec.structs.replace(RERANK, name="bge-order")
    assert [one.state for one in check_names([CHAT, EMBEDDING, RERANK, odd])] == ["warn"]


@pytest.mark.parametrize(
    ("host", "bridge", "in_docker", "state"),
    [
        ("127.0.0.1", "172.17.0.1", True, "fail"),
        ("127.0.0.1", "172.17.0.1", False, "warn"),
        ("172.17.0.1", "172.17.0.1", True, "ok"),
        ("0.0.0.0", None, True, "ok"),
        ("192.168.1.5", None, True, "ok"),
    ],
)
def test_where_it_listens_decides_whether_a_container_reaches_it(
    host: str, bridge: str | None, in_docker: bool, state: str
) -> None:
    found = check_listening(host, 9997, bridge, in_docker=in_docker)
    assert found.state == state
    assert (bridge or "0.0.0.0") in (found.hint or "172.17.0.1 0.0.0.0")


def test_the_container_is_found_by_its_image_or_named() -> None:
    listed = "es\telasticsearch:8\nragflow-mysql\tmysql\nmine\tregistry.cn/infiniflow/ragflow:v0.22.1-slim\n"
    assert pick(listed, None) == "mine"
    assert pick(listed, "es") == "es"
    assert pick("es\telasticsearch:8\n", None) is None
    with pytest.raises(ConfigProblem, match="No container ragflow runs"):
        pick(listed, "ragflow")


def test_without_docker_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupProblem, match="docker cannot be run"):
        find_container(None)


def test_the_bridge_is_docker0s_ipv4_address() -> None:
    class Address(msgspec.Struct):
        address: str

    assert bridge_address({"docker0": [Address("fe80::1"), Address("172.17.0.1")]}) == "172.17.0.1"
    assert bridge_address({"eth0": [Address("10.0.0.1")]}) is None


def test_the_command_prints_a_line_for_each_and_ends_with_1_when_something_is_wrong(
    server: Scripted, served: Served, docker: None, lodger: Callable[..., Any]
) -> None:
    listed = json.dumps({"data": [{"id": "bge", "model_type": "embedding", "context_length": 8192}]}).encode()
    server.replies["GET /v1/models"] = (200, {}, listed)
    server.reply = (500, {}, b'{"detail": "died"}')
    done = lodger("ragflow", "check", "--url", server.url, "--base-url", server.url)
    assert done.returncode == 1
    assert "fail  host: bge: embedding, adding it (base64): 500: died" in done.stdout
    assert "ragflow-server: " in done.stdout
    good = lodger("ragflow", "check", "--url", served.url, "--base-url", served.url, "--json")
    assert good.returncode == 0, good.stdout
    assert {one["state"] for one in json.loads(good.stdout)} <= {"ok", "warn"}
