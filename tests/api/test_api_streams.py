"""Event streams, byte for byte and at the right moment."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPResponse

import pytest
from api_server import Served

from lodger.api import sse
from lodger.errors import ContextExceeded, OutOfMemory, WorkerDown
from lodger.tasks import Delta, GenerateTask, Usage

CHAT = {"model": "qwen3-4b-chat-local", "messages": [{"role": "user", "content": "hi"}]}
STREAM = {**CHAT, "stream": True}
Wait = Callable[[], object]


@contextmanager
def streamed(served: Served, body: dict[str, object]) -> Iterator[HTTPResponse]:
    with served.connection() as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        response = connection.getresponse()
        assert response.status == 200
        yield response


def event_of(response: HTTPResponse) -> dict[str, object]:
    line, blank = response.readline(), response.readline()
    assert line.startswith(b"data: ")
    assert blank == b"\n"
    return json.loads(line[6:])


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does; a test that hangs here has failed."""
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.005)


class Paused:
    """A script whose second delta waits until the test lets it go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.closed = threading.Event()

    async def __call__(self, task: GenerateTask) -> AsyncGenerator[Delta, None]:
        try:
            yield Delta(text="one")
            while not self.go.is_set():
                await asyncio.sleep(0.005)
            yield Delta(text=" two")
            yield Delta(finish_reason="stop", usage=Usage(1, 2))
        finally:
            self.closed.set()


def test_the_bytes_of_a_chat_stream(served: Served) -> None:
    async def script(task: GenerateTask) -> AsyncGenerator[Delta, None]:
        yield Delta(text="你")
        yield Delta(text="好", finish_reason="length", usage=Usage(3, 2))

    served.service.script = script
    answer = served.ask("POST", "/v1/chat/completions", {**STREAM, "stream_options": {"include_usage": True}})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    head = re.escape('{"id":"ID","object":"chat.completion.chunk","created":0,"model":"qwen3-4b-chat-local",')
    normal = re.sub(rb'"chatcmpl-\w+"', b'"ID"', re.sub(rb'"created":\d+', b'"created":0', answer.body)).decode()

    def chunk(delta: str, reason: str) -> str:
        return f'"choices":[{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{reason}}}]}}'

    assert re.sub(head, "", normal).split("\n\n") == [
        "data: " + chunk('{"role":"assistant","content":""}', "null"),
        "data: " + chunk('{"content":"你"}', "null"),
        "data: " + chunk('{"content":"好"}', "null"),
        "data: " + chunk('{"content":""}', '"length"'),
        'data: "choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,'
        '"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}}',
        "data: [DONE]",
        "",
    ]


def test_each_delta_is_sent_as_it_comes(served: Served) -> None:
    served.service.script = paused = Paused()
    with streamed(served, STREAM) as response:
        assert event_of(response)["choices"][0]["delta"]["role"] == "assistant"
        assert event_of(response)["choices"][0]["delta"]["content"] == "one"
        assert not paused.closed.is_set()  # the rest has not been made yet
        paused.go.set()
        assert event_of(response)["choices"][0]["delta"]["content"] == " two"
        assert response.read().endswith(b"data: [DONE]\n\n")


def test_pings_while_nothing_comes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "PING_SECONDS", 0.02)
    served.service.script = paused = Paused()
    with streamed(served, STREAM) as response:
        event_of(response)
        event_of(response)
        assert (response.readline(), response.readline()) == (b": ping\n", b"\n")
        paused.go.set()
        assert b"data: [DONE]\n\n" in response.read()


def test_a_slow_first_token_does_not_hold_the_headers_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "PING_SECONDS", 0.02)
    go = threading.Event()

    async def script(task: GenerateTask) -> AsyncGenerator[Delta, None]:
        while not go.is_set():
            await asyncio.sleep(0.005)
        raise ContextExceeded("The prompt has 9,000 tokens; 8,192 are served.")
        yield Delta()

    served.service.script = script
    with streamed(served, STREAM) as response:
        assert response.readline() == b": ping\n"
        go.set()
        rest = response.read()
    assert b'data: {"type":"error","error":{"message":"The prompt has 9,000 tokens; 8,192 are served."' in rest
    assert b"[DONE]" not in rest


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_takes_its_generation_with_it(served: Served, stream: bool) -> None:
    served.service.script = paused = Paused()
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        body = json.dumps({**CHAT, "stream": stream}).encode()
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        if stream:
            assert connection.recv(64).startswith(b"HTTP/1.1 200")
        until(lambda: served.service.open == 1)
    assert paused.closed.wait(10), "the generation went on for nobody"
    until(lambda: served.service.open == 0)


def test_a_client_that_leaves_before_the_first_token_is_noticed(served: Served) -> None:
    closed = threading.Event()

    async def script(task: GenerateTask) -> AsyncGenerator[Delta, None]:
        try:
            await asyncio.Event().wait()
            yield Delta()
        finally:
            closed.set()

    served.service.script = script
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        body = json.dumps(STREAM).encode()
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        until(lambda: served.service.open == 1)
    assert closed.wait(10)


@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_leaving_closes_every_prompt_of_a_request(served: Served, prompt: object) -> None:
    served.service.script = Paused()
    with served.connection() as connection:
        connection.request(
            "POST",
            "/v1/completions",
            json.dumps({"model": "qwen3-4b-chat-local", "prompt": prompt, "stream": True}),
        )
        response = connection.getresponse()
        event_of(response)
        assert served.service.open == (1 if prompt == "a" else 2)
        response.close()
    until(lambda: served.service.open == 0)


def test_a_failure_in_mid_stream_is_an_event_and_no_done(served: Served) -> None:
    async def script(task: GenerateTask) -> AsyncGenerator[Delta, None]:
        yield Delta(text="half")
        raise WorkerDown("The worker of cuda:0 died.", hint="It is being restarted.")

    served.service.script = script
    answer = served.ask("POST", "/v1/chat/completions", STREAM)
    *_, last, empty = answer.body.decode().split("\n\n")
    assert json.loads(last.removeprefix("data: ")) == {
        "type": "error",
        "error": {
            "message": "The worker of cuda:0 died. It is being restarted.",
            "type": "server_error",
            "code": "worker_down",
            "param": None,
            "hint": "It is being restarted.",
        },
    }
    assert empty == ""
    assert served.service.open == 0


def test_a_defect_in_mid_stream_shows_its_id_and_nothing_else(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    async def script(task: GenerateTask) -> AsyncGenerator[Delta, None]:
        yield Delta(text="half")
        raise ZeroDivisionError("secret of another caller")

    served.service.script = script
    answer = served.ask("POST", "/v1/chat/completions", STREAM, x_request_id="trace-me-7")
    assert b"secret" not in answer.body
    assert b"trace-me-7" in answer.body
    assert b"[DONE]" not in answer.body
    assert "secret of another caller" in caplog.text


def test_an_error_before_the_first_token_keeps_its_status(served: Served) -> None:
    async def script(task: GenerateTask) -> AsyncGenerator[Delta, None]:
        raise OutOfMemory("This request alone needs 3.20 GiB; 1.00 GiB is granted.")
        yield Delta()

    served.service.script = script
    answer = served.ask("POST", "/v1/chat/completions", STREAM)
    assert answer.status == 507
    assert answer.json["error"]["code"] == "out_of_memory"
    assert answer.headers["x-should-retry"] == "false"


def test_a_client_that_does_not_read_holds_its_own_stream_and_nobody_elses(served: Served) -> None:
    piece, made, stop = "x" * 10_000, 0, threading.Event()

    async def script(task: GenerateTask) -> AsyncGenerator[Delta, None]:
        nonlocal made
        if task.stopping.max_tokens == 1:
            yield Delta(text="quick", finish_reason="stop", usage=Usage(1, 1))
            return
        while not stop.is_set():
            made += 1
            yield Delta(text=piece)

    served.service.script = script
    try:
        with streamed(served, STREAM):  # and never read
            until(lambda: made > 3)
            for _ in range(20):
                assert b"quick" in served.ask("POST", "/v1/chat/completions", {**STREAM, "max_tokens": 1}).body
            assert made * len(piece) < 2**26
    finally:
        stop.set()
    until(lambda: served.service.open == 0)
