"""The main job with real weights: the demo in two commands, then the guide's three launches and three requests.

One server for all of it. The guide's models are small random ones in exactly the published formats.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from installed import Done, Installed, installed, left

Tiny = Callable[..., Path]

LAUNCHES = {
    "bge-m3-local": """launch --model-name bge-m3 --model-uid bge-m3-local --model-type embedding
        --model-engine transformers --model-path {bge-m3} --size-in-billions 0.6 --disable-virtual-env""",
    "bge-reranker-v2-m3-local": """launch --model-name bge-reranker-v2-m3 --model-uid bge-reranker-v2-m3-local
        --model-type rerank --model-engine vllm --model-path {bge-reranker} --gpu-memory-utilization 0.2
        --disable-virtual-env""",
    "qwen3-4b-chat-local": """launch --model-name Qwen3-Instruct --model-uid qwen3-4b-chat-local --model-type LLM
        --model-engine transformers --model-path {qwen3} --size-in-billions 4 --disable-virtual-env""",
}
EMBEDDING = """curl http://127.0.0.1:9997/v1/embeddings -H "Content-Type: application/json" -d '{
    "model": "bge-m3-local",
    "input": "你好，Xinference"
}'"""
RERANK = """curl http://127.0.0.1:9997/v1/rerank -H "Content-Type: application/json" -d '{
    "model": "bge-reranker-v2-m3-local",
    "query": "中国的首都是哪里？",
    "documents": ["北京是中国的首都。", "上海是中国的经济中心。"]
}'"""
CHAT = """curl http://127.0.0.1:9997/v1/chat/completions -H "Content-Type: application/json" -d '{
    "model": "qwen3-4b-chat-local",
    "messages": [{"role": "user", "content": "请用中文介绍一下你自己"}],
    "max_tokens": 24
}'"""
STREAM = CHAT.replace('"max_tokens": 24', '"max_tokens": 24, "stream": true, "stream_options": {"include_usage": true}')


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Installed, Done]]:
    """The demo, served, and what `lodger up --demo -d` said."""
    with installed(tmp_path_factory.mktemp("real")) as lodger:
        yield lodger, lodger.ok("up", "--demo", "-d", "--port", "0", timeout=300)


@pytest.fixture(scope="module")
def guide(demo: tuple[Installed, Done], tiny: Tiny) -> Installed:
    """The guide's three models launched with the guide's three lines, beside the demo's."""
    lodger, _ = demo
    folders = {family: tiny(family) for family in ("bge-m3", "bge-reranker", "qwen3")}
    for uid, line in LAUNCHES.items():
        assert lodger.ok(*shlex.split(line.format(**folders)), timeout=300).stdout == f"Model uid: {uid}\n"
    return lodger


def curl(lodger: Installed, line: str, *more: str) -> str:
    """What the line prints, sent to this server's port."""
    command = [*shlex.split(line.replace("http://127.0.0.1:9997", lodger.address)), "-sS", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def ask(lodger: Installed, line: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(curl(lodger, line))
    return answer


def test_the_demo_answers_sensibly(demo: tuple[Installed, Done]) -> None:
    lodger, done = demo
    assert "demo-chat: ready" in done.stderr
    assert "weights" in done.stdout
    answers = {answer["uid"]: answer for answer in lodger.json("verify")}
    assert all(answer["problems"] == [] for answer in answers.values())
    assert "Paris" in answers["demo-chat"]["answered"]
    assert answers["demo-embedding"]["numbers"]["dimensions"] == 384
    scores = answers["demo-rerank"]["numbers"]
    assert scores["right"] > scores["wrong"] + 0.1


def test_a_second_demo_is_quick_and_harmless(demo: tuple[Installed, Done]) -> None:
    lodger, _ = demo
    before = lodger.processes()
    assert lodger.ok("up", "--demo", "-d").stderr.count("is there already (ready)") == 3
    assert lodger.processes() == before


def test_the_guides_embedding_request(guide: Installed) -> None:
    answer = ask(guide, EMBEDDING)
    assert answer["object"] == "list"
    [item] = answer["data"]
    assert (item["object"], item["index"]) == ("embedding", 0)
    assert sum(x * x for x in item["embedding"]) == pytest.approx(1.0, abs=1e-3)
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0


def test_the_guides_rerank_request(guide: Installed) -> None:
    results = ask(guide, RERANK)["results"]
    assert sorted(result["index"] for result in results) == [0, 1]
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_the_guides_chat_request(guide: Installed) -> None:
    answer = ask(guide, CHAT)
    assert answer["object"] == "chat.completion"
    [choice] = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] in ("stop", "length")
    usage = answer["usage"]
    assert 0 < usage["completion_tokens"] <= 24
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_the_guides_chat_request_streamed(guide: Installed) -> None:
    lines = [line for line in curl(guide, STREAM, "--no-buffer").splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    finished = [event["choices"][0]["finish_reason"] for event in events if event["choices"]]
    assert [reason for reason in finished if reason] == [finished[-1]]
    assert events[-1]["choices"] == []
    assert 0 < events[-1]["usage"]["completion_tokens"] <= 24


def test_every_model_is_listed_with_what_it_really_is(guide: Installed) -> None:
    kinds = {model["spec"]["uid"]: (model["state"], model["facts"]["kind"]) for model in guide.json("list")}
    assert kinds == {
        "demo-chat": ("ready", "chat"),
        "demo-embedding": ("ready", "embedding"),
        "demo-rerank": ("ready", "rerank"),
        "bge-m3-local": ("ready", "embedding"),
        "bge-reranker-v2-m3-local": ("ready", "rerank"),
        "qwen3-4b-chat-local": ("ready", "chat"),
    }
    assert len(guide.client.status().workers) == 1  # one process for all six


def test_xinferences_own_client_works_against_it(guide: Installed) -> None:
    from xinference_client import RESTfulClient

    client = RESTfulClient(guide.address)
    assert set(LAUNCHES) <= set(client.list_models())
    vector = client.get_model("bge-m3-local").create_embedding("你好，Xinference")
    assert vector["data"][0]["embedding"]
    ranked = client.get_model("bge-reranker-v2-m3-local").rerank(["北京是中国的首都。", "香蕉"], "中国的首都是哪里？")
    assert len(ranked["results"]) == 2
    client.terminate_model("bge-m3-local")
    assert "bge-m3-local" not in client.list_models()


def test_a_model_that_is_gone_is_said_to_be_gone(guide: Installed) -> None:
    answer = ask(guide, CHAT.replace("qwen3-4b-chat-local", "no-such-model"))
    assert "no-such-model" in answer["error"]["message"]
    assert "qwen3-4b-chat-local" in answer["detail"]  # the uids there are


def test_down_leaves_no_process_and_says_what_came_back(guide: Installed) -> None:
    processes = guide.processes()
    assert len(processes) == 2
    assert "came back" in guide.ok("down").stderr
    assert left(processes) == []
