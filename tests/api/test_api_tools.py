"""Calls of tools over OpenAI's API, as its own client and every other one reads them."""

from __future__ import annotations

from typing import Any

import pytest
from api_server import Served
from openai import OpenAI
from scripted import ANSWERED, says

from lodger.tasks import Delta, ToolCall, Usage

CHAT = "qwen3-4b-chat-local"
SAID = [{"role": "user", "content": "Weather?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "It", "parameters": SCHEMA}}
NOW = {"type": "function", "function": {"name": "now"}}
CALLS = (ToolCall("weather", '{"city": "北京"}'), ToolCall("now", "{}"))
ANSWER = (
    Delta(reasoning="I must "),
    Delta(reasoning="look."),
    Delta(text="One moment."),
    Delta(calls=CALLS[:1]),
    Delta(calls=CALLS[1:], finish_reason="stop", usage=Usage(7, 20, 5, 4)),
)


@pytest.fixture
def client(openai_client: OpenAI, served: Served) -> OpenAI:
    served.service.script = says(*ANSWER)
    return openai_client


def test_calls_of_a_whole_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=CHAT, messages=SAID, tools=[WEATHER, NOW])
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "One moment.")
    assert choice.message.reasoning_content == "I must look."
    weather, now = choice.message.tool_calls
    assert (weather.type, weather.function.name, weather.function.arguments) == ("function", *_values(CALLS[0]))
    assert (now.function.name, now.function.arguments) == _values(CALLS[1])
    assert [weather.index, now.index] == [0, 1]
    assert weather.id.startswith("call_")
    assert weather.id != now.id
    assert answer.usage.prompt_tokens_details.cached_tokens == 5
    assert answer.usage.completion_tokens_details.reasoning_tokens == 4


def _values(call: ToolCall) -> tuple[str, str]:
    return call.name, call.arguments


def test_calls_of_a_stream_come_whole_in_its_last_chunk(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=CHAT, messages=SAID, tools=[WEATHER, NOW], stream=True))
    *before, last = [chunk.choices[0] for chunk in chunks]
    assert all(choice.delta.content is not None for choice in (*before, last))
    assert not any(choice.delta.tool_calls or choice.finish_reason for choice in before)
    assert "".join(getattr(choice.delta, "reasoning_content", None) or "" for choice in before) == "I must look."
    assert "".join(choice.delta.content for choice in before) == "One moment."
    assert (last.finish_reason, last.delta.content) == ("tool_calls", "")
    assert [call.index for call in last.delta.tool_calls] == [0, 1]
    assert [_values(call.function) for call in last.delta.tool_calls] == [_values(call) for call in CALLS]
    assert all(call.id and call.type == "function" for call in last.delta.tool_calls)


def test_an_answer_cut_off_after_a_call_says_so(client: OpenAI, served: Served) -> None:
    served.service.script = says(Delta(calls=CALLS[:1]), Delta(finish_reason="length"))
    choice = client.chat.completions.create(model=CHAT, messages=SAID, tools=[WEATHER]).choices[0]
    assert (choice.finish_reason, len(choice.message.tool_calls)) == ("length", 1)
    *_, last = client.chat.completions.create(model=CHAT, messages=SAID, tools=[WEATHER], stream=True)
    assert (last.choices[0].finish_reason, len(last.choices[0].delta.tool_calls)) == ("length", 1)


def test_functions_are_answered_as_they_were_asked(client: OpenAI, served: Served) -> None:
    old = {"functions": [WEATHER["function"], NOW["function"]], "function_call": {"name": "now"}}
    choice = client.chat.completions.create(model=CHAT, messages=SAID, **old).choices[0]
    assert (choice.finish_reason, choice.message.function_call.name) == ("function_call", "weather")
    assert choice.message.tool_calls is None
    *_, last = client.chat.completions.create(model=CHAT, messages=SAID, stream=True, **old)
    assert (last.choices[0].finish_reason, last.choices[0].delta.function_call.name) == ("function_call", "weather")
    task = served.service.tasks[0]
    assert (task.tools, task.tool_choice, task.parallel_tool_calls) == ((NOW,), "required", False)


@pytest.mark.parametrize(
    ("choice", "tools", "required"),
    [
        (None, (WEATHER, NOW), "auto"),
        ("auto", (WEATHER, NOW), "auto"),
        ({"type": "auto"}, (WEATHER, NOW), "auto"),
        ("none", (), "auto"),
        ("required", (WEATHER, NOW), "required"),
        ("any", (WEATHER, NOW), "required"),
        ("now", (NOW,), "required"),
        ({"type": "function", "function": {"name": "now"}}, (NOW,), "required"),
        ({"type": "function", "name": "now"}, (NOW,), "required"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NOW]}}, (NOW,), "required"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NOW]}}, (NOW,), "auto"),
    ],
)
def test_which_tools_may_or_must_be_called(served: Served, choice: Any, tools: tuple[Any, ...], required: str) -> None:
    served.service.script = says(ANSWERED)
    given = [WEATHER, {"type": "function", "name": "now", "description": None}]  # the second as Responses writes it
    body = {"model": CHAT, "messages": SAID, "tools": given, "tool_choice": choice, "parallel_tool_calls": None}
    assert served.ask("POST", "/v1/chat/completions", body).status == 200
    (task,) = served.service.tasks
    assert (task.tools, task.tool_choice, task.parallel_tool_calls) == (tools, required, True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": {}}, "tools"),
        ({"tools": ["now"]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": [1]}}]}, "tools"),
        ({"tools": [NOW], "tool_choice": "never"}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": 3}}}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": 3}, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "allowed_tools", "allowed_tools": []}}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "now"}}}, "tool_choice"),
        ({"functions": [{"description": "no name"}]}, "tools"),
    ],
)
def test_what_is_wrong_about_tools_is_said(served: Served, fields: dict[str, Any], param: str) -> None:
    answer = served.ask("POST", "/v1/chat/completions", {"model": CHAT, "messages": SAID, **fields})
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


def test_a_model_that_would_never_hear_of_tools_refuses_them(served: Served) -> None:
    spec = served.service.model(CHAT).spec
    served.service.add(spec, tools=False)
    body = {"model": CHAT, "messages": SAID, "tools": [NOW]}
    answer = served.ask("POST", "/v1/chat/completions", body)
    assert (answer.status, answer.json["error"]["param"]) == (400, "tools")
    assert served.ask("POST", "/v1/chat/completions", {**body, "tool_choice": "none"}).status == 200


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_thought_may_come_back_under_either_name(served: Served, name: str) -> None:
    said = [*SAID, {"role": "assistant", "content": "Rain.", name: "Hm."}, *SAID]
    assert served.ask("POST", "/v1/chat/completions", {"model": CHAT, "messages": said}).status == 200
    answer = {"role": "assistant", "content": "Rain.", "reasoning_content": "Hm."}
    assert served.service.tasks[0].messages[1] == answer
