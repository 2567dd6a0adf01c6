"""A request that carries a `request_id` can be aborted by it, and its client is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from api_server import Answer, Served

from lodger.api.aborts import Name, Running, name_in
from lodger.errors import Cancelled
from lodger.tasks import Delta, GenerateTask

CHAT = "qwen3-4b-chat-local"
ASK = {"model": CHAT, "messages": [{"role": "user", "content": "x"}], "request_id": "r-1"}
ABORT = f"/v1/models/{CHAT}/requests/r-1/abort"


class Endless:
    """A generation that says one word and then nothing until it is cancelled."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    async def __call__(self, task: GenerateTask) -> AsyncGenerator[Delta, None]:
        try:
            yield Delta(text="word")
            self.begun.set()
            await asyncio.sleep(60)
        finally:
            self.ended.set()


@pytest.fixture
def endless(served: Served) -> Endless:
    served.service.script = script = Endless()
    return script


def aborted(served: Served, endless: Endless, **asked: Any) -> Answer:
    """What the client of an endless request gets when another one aborts it."""
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(served.ask, "POST", "/v1/chat/completions", ASK | asked)
        assert endless.begun.wait(10)
        assert served.ask("POST", ABORT, {"block_duration": 30}).json == {"msg": "DONE"}
        answer = asking.result(10)
    assert endless.ended.wait(10), "its work ends too"
    return answer


def test_a_whole_answer_becomes_an_error(served: Served, endless: Endless) -> None:
    answer = aborted(served, endless)
    assert (answer.status, answer.json["detail"]) == (499, "The request was aborted.")


def test_a_stream_ends_with_an_error_event(served: Served, endless: Endless) -> None:
    answer = aborted(served, endless, stream=True)
    *_, said, last, empty = answer.body.decode().split("\n\n")
    assert (answer.status, empty) == (200, "")
    assert json.loads(said.removeprefix("data: "))["choices"][0]["delta"]["content"] == "word"
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "The request was aborted."


def test_others_go_on(served: Served, endless: Endless) -> None:
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(served.ask, "POST", "/v1/chat/completions", ASK)
        assert endless.begun.wait(10)
        for path in (ABORT.replace("r-1", "r-2"), ABORT.replace(CHAT, "bge-m3-local")):
            assert served.ask("POST", path, {"block_duration": 0}).json == {"msg": "NOT_FOUND"}
        assert not endless.ended.is_set()
        served.ask("POST", ABORT, {"block_duration": 0})
        assert asking.result(10).status == 499


def block(served: Served, path: str = ABORT, **fields: Any) -> None:
    """Abort an id of no request. Of one that has just been answered the server may still know for a moment."""
    while served.ask("POST", path, fields).json != {"msg": "NOT_FOUND"}:
        pass


def test_an_id_without_a_request_blocks_the_one_that_comes(served: Served) -> None:
    block(served, block_duration=30)
    assert served.ask("POST", "/v1/chat/completions", ASK).status == 499
    assert served.ask("POST", "/v1/chat/completions", ASK).status == 200, "once"
    for brief in ({"block_duration": 0}, {"block_duration": None}, {}):
        block(served, **brief)
        assert served.ask("POST", "/v1/chat/completions", ASK).status == 200
    assert served.service.open == 0


def test_every_kind_of_request_may_carry_an_id(served: Served) -> None:
    for path, body in (
        ("/v1/embeddings", {"model": "bge-m3-local", "input": "x"}),
        ("/v1/rerank", {"model": "bge-reranker-v2-m3-local", "query": "q", "documents": ["a"]}),
        ("/v1/completions", {"model": CHAT, "prompt": "x", "stream": True}),
    ):
        abort = f"/v1/models/{body['model']}/requests/r-1/abort"
        assert served.ask("POST", path, body | {"request_id": "r-1"}).status == 200
        block(served, abort, block_duration=30)
        assert served.ask("POST", path, body | {"request_id": "r-1"}).status == 499


def test_of_an_unknown_model_nothing_is_aborted(served: Served) -> None:
    answer = served.ask("POST", ABORT.replace(CHAT, "nosuch"), {})
    assert (answer.status, answer.json["error"]["code"]) == (400, "model_not_found")
    assert served.ask("POST", ABORT, {"block_duration": -1}).status == 400


@pytest.mark.parametrize(
    "body", [None, [], "x", {}, {"model": CHAT}, {"request_id": "r"}, ASK | {"request_id": 5}, ASK | {"request_id": ""}]
)
def test_what_has_no_id_has_no_name(body: object) -> None:
    assert name_in(body) is None
    assert name_in(ASK) == Name(CHAT, "r-1")


def test_nothing_is_kept_of_what_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    running, name = Running(), Name("m", "r")
    with running.entered(name) as first, running.entered(name) as second:
        assert running.abort(name, 30)
        assert first.is_set()
        assert second.is_set()
    assert running._aborts == {}
    assert not running.abort(name, 0)
    for number in range(3000):
        running.abort(Name("m", str(number)), 30)
    assert len(running._awaited) <= 1024
    now = 1e12
    monkeypatch.setattr("lodger.api.aborts.time.monotonic", lambda: now)
    running.abort(name, 30)
    assert list(running._awaited) == [name]


def test_a_cancellation_that_nobody_asked_for_keeps_its_own_words(served: Served) -> None:
    async def script(task: GenerateTask) -> AsyncGenerator[Delta, None]:
        raise Cancelled("It was unloaded.")
        yield Delta()

    served.service.script = script
    assert served.ask("POST", "/v1/chat/completions", ASK).json["detail"] == "It was unloaded."
