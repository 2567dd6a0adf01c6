"""A turn of an agent in each of three APIs, with a real model behind them: what must be called is, by its schema."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_server import Served, serving
from fake_service import FakeService
from msgspec.structs import replace
from scripted import events

from lodger.api.app import ApiOptions
from lodger.catalogue.inspect import inspect_folder
from lodger.spec import ModelSpec
from lodger.tasks import Delta, GenerateTask

CITY = {"enum": ["Paris", "北京"]}
DAYS = {"type": "integer", "minimum": 1, "maximum": 9}
SCHEMA = {"type": "object", "properties": {"city": CITY, "days": DAYS}, "required": ["city", "days"]}
SCHEMA |= {"additionalProperties": False}
ASKED = [{"role": "user", "content": "Weather?"}]
FUNCTION = {"name": "weather", "parameters": SCHEMA}
CHAT = {"model": "m", "messages": ASKED, "max_tokens": 200, "enable_thinking": False, "seed": 5}
CHAT |= {"tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required", "parallel_tool_calls": False}


@pytest.fixture(scope="module")
def agents(serve: Callable[..., Any], tiny: Callable[..., Path]) -> Iterator[Served]:
    """The three APIs before a small random model, which left to itself would write nonsense."""
    facts = replace(inspect_folder(tiny("qwen3")), context_length=1024)  # its tokens are bytes, and tools take many
    model, service = serve.fresh(facts), FakeService({})

    async def script(task: GenerateTask) -> AsyncIterator[Delta]:
        hot = replace(task.sampling, temperature=1.5) if task.sampling.temperature is None else task.sampling
        async for delta in model.generate(replace(task, sampling=hot)):
            yield delta

    service.add(ModelSpec(uid="m", kind="chat"))
    service.script = script  # type: ignore[assignment]
    with serving(service, ApiOptions()) as served:
        yield served
    model.close()


def post(agents: Served, path: str, body: dict[str, Any]) -> Any:
    answer = agents.ask("POST", path, body)
    assert answer.status == 200, answer.body
    return answer.json if "json" in answer.headers["content-type"] else [data for _, data in events(answer.body)]


def check(arguments: Any) -> None:
    assert set(arguments) == {"city", "days"}
    assert arguments["city"] in CITY["enum"]
    assert arguments["days"] in range(1, 10)


def test_chat_completions_call_what_is_required(agents: Served) -> None:
    (choice,) = post(agents, "/v1/chat/completions", CHAT)["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"], call["function"]["name"]) == (
        "tool_calls",
        "",
        "weather",
    )
    check(json.loads(call["function"]["arguments"]))
    *_, last, done = post(agents, "/v1/chat/completions", {**CHAT, "stream": True})
    assert done == "[DONE]"
    (streamed,) = last["choices"][0]["delta"]["tool_calls"]
    assert streamed["function"] == call["function"]


def test_a_text_by_a_schema_beside_tools_is_that_or_a_call(agents: Served) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}
    body = {**CHAT, "tool_choice": "auto", "response_format": form, "max_tokens": 400}
    message = post(agents, "/v1/chat/completions", body)["choices"][0]["message"]
    if message["content"]:
        assert json.loads(message["content"]) in CITY["enum"]
    else:
        check(json.loads(message["tool_calls"][0]["function"]["arguments"]))


def test_responses_call_and_answer_by_a_schema(agents: Served) -> None:
    body = {"model": "m", "input": ASKED, "max_output_tokens": 200, "reasoning": {"effort": "none"}}
    tools = {"tools": [{"type": "function", **FUNCTION}], "tool_choice": {"type": "function", "name": "weather"}}
    (call, *_) = post(agents, "/v1/responses", {**body, **tools, "parallel_tool_calls": False})["output"]
    check(json.loads(call["arguments"]))
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Rain."}
    form = {"text": {"format": {"type": "json_schema", "name": "x", "schema": CITY}}}
    *_, last = post(agents, "/v1/responses", {**body, **form, "input": [*ASKED, call, result], "stream": True})
    assert last["type"] == "response.completed"
    assert json.loads(last["response"]["output"][0]["content"][0]["text"]) in CITY["enum"]


def test_messages_call_and_stop(agents: Served) -> None:
    tool = {"name": "weather", "input_schema": SCHEMA}
    any_one = {"type": "any", "disable_parallel_tool_use": True}
    body = {"model": "m", "messages": ASKED, "max_tokens": 200, "tools": [tool], "tool_choice": any_one}
    message = post(agents, "/v1/messages", body)
    assert (message["stop_reason"], [block["type"] for block in message["content"]]) == ("tool_use", ["tool_use"])
    check(message["content"][0]["input"])
    told = post(agents, "/v1/messages", {**body, "stream": True})
    (arguments,) = [data["delta"]["partial_json"] for data in told if data["type"] == "content_block_delta"]
    check(json.loads(arguments))
    counted = {key: value for key, value in body.items() if key != "max_tokens"}
    usage = message["usage"]
    assert post(agents, "/v1/messages/count_tokens", counted) == {
        "input_tokens": usage["input_tokens"] + usage["cache_read_input_tokens"]
    }
