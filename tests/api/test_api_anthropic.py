"""Anthropic's Messages API over raw HTTP: what arrives as a task, and what goes out as blocks and events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest
from api_server import Served
from scripted import ANSWERED, events, says

from lodger.errors import WorkerDown
from lodger.tasks import Constraint, Delta, GenerateTask, ToolCall, Usage

CHAT = "qwen3-4b-chat-local"
NOW = {
    "name": "now",
    "description": "The time",
    "input_schema": {"type": "object"},
    "cache_control": {"type": "ephemeral"},
}
ASK = {"model": CHAT, "max_tokens": 100, "messages": [{"role": "user", "content": "Time?"}]}
ANSWER = (
    Delta(reasoning="I must "),
    Delta(reasoning="look."),
    Delta(text="One "),
    Delta(text="moment."),
    Delta(
        calls=(ToolCall("now", '{"zone": "北京"}'), ToolCall("now", "{}")), finish_reason="stop", usage=Usage(7, 20, 5)
    ),
)
COUNT = {
    "input_tokens": 2,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 5,
    "output_tokens": 20,
}


def post(served: Served, **fields: Any) -> Any:
    answer = served.ask("POST", "/v1/messages?beta=true", {**ASK, **fields})
    assert answer.status == 200, answer.json
    return answer.json


def test_a_whole_message(served: Served) -> None:
    served.service.script = says(*ANSWER)
    message = post(served, tools=[NOW])
    assert (message["type"], message["role"], message["model"]) == ("message", "assistant", CHAT)
    assert (message["stop_reason"], message["stop_sequence"], message["usage"]) == ("tool_use", None, COUNT)
    thought, text, first, second = message["content"]
    assert thought == {"type": "thinking", "thinking": "I must look.", "signature": ""}
    assert text == {"type": "text", "text": "One moment."}
    assert (first["type"], first["name"], first["input"]) == ("tool_use", "now", {"zone": "北京"})
    assert second["input"] == {}
    assert first["id"].startswith("toolu_")
    assert first["id"] != second["id"]


@pytest.mark.parametrize(("reason", "said"), [("stop", "end_turn"), ("length", "max_tokens")])
def test_why_an_answer_ended(served: Served, reason: Any, said: str) -> None:
    served.service.script = says(Delta(0, "a", reason, Usage(1, 1)))
    assert post(served)["stop_reason"] == said


def test_the_stop_sequence_that_ended_an_answer_is_named(served: Served) -> None:
    served.service.script = says(Delta(0, "a", "stop", Usage(1, 1), stopped_by="END"))
    message = post(served, stop_sequences=["END"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")
    told = events(served.ask("POST", "/v1/messages", {**ASK, "stop_sequences": ["END"], "stream": True}).body)
    assert told[-2][1]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}


def test_the_events_of_a_stream(served: Served) -> None:
    served.service.script = says(*ANSWER)
    told = events(served.ask("POST", "/v1/messages", {**ASK, "tools": [NOW], "stream": True}).body)
    assert [data["type"] for _, data in told] == [name for name, _ in told]
    assert [(name, data.get("index")) for name, data in told] == [
        ("message_start", None),
        ("content_block_start", 0),
        ("content_block_delta", 0),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("content_block_start", 3),
        ("content_block_delta", 3),
        ("content_block_stop", 3),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert told[0][1]["message"]["content"] == []
    started = [data["content_block"]["type"] for name, data in told if name == "content_block_start"]
    assert started == ["thinking", "text", "tool_use", "tool_use"]
    deltas = [data["delta"] for name, data in told if name == "content_block_delta"]
    assert deltas[0] == {"type": "thinking_delta", "thinking": "I must "}
    assert deltas[3] == {"type": "text_delta", "text": "moment."}
    assert deltas[4] == {"type": "input_json_delta", "partial_json": '{"zone": "北京"}'}
    assert told[-2][1]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert told[-2][1]["usage"] == COUNT


def test_a_conversation_of_blocks_becomes_messages(served: Served) -> None:
    post(
        served,
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: v=1"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be kind."},
        ],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Time?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "Wait."},
                    {"type": "tool_use", "id": "t1", "name": "now", "input": {"zone": "x"}},
                    {"type": "tool_use", "id": "t2", "name": "now", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "12:00"},
                    {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "13:00"}]},
                    {"type": "text", "text": "And?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t3", "name": "now", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t3", "is_error": True}]},
        ],
    )

    def call(id: str, arguments: dict[str, str]) -> dict[str, Any]:
        return {"id": id, "type": "function", "function": {"name": "now", "arguments": arguments}}

    assert served.service.tasks[0].messages == (
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Time?"},
        {
            "role": "assistant",
            "content": "Wait.",
            "reasoning_content": "Hm.",
            "tool_calls": [call("t1", {"zone": "x"}), call("t2", {})],
        },
        {"role": "tool", "content": "12:00", "tool_call_id": "t1"},
        {"role": "tool", "content": "13:00", "tool_call_id": "t2"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "", "tool_calls": [call("t3", {})]},
        {"role": "tool", "content": "", "tool_call_id": "t3"},
    )


def test_the_other_fields_arrive(served: Served) -> None:
    served.service.script = says(ANSWERED)
    schema = {"type": "object"}
    post(
        served,
        system="Be brief.",
        tools=[NOW],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "enabled", "budget_tokens": 2000},
        stop_sequences=["END"],
        temperature=1,
        top_k=5,
        metadata={"user_id": "me"},
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    post(served, tools=[NOW, {**NOW, "name": "then"}], tool_choice={"type": "tool", "name": "then"})
    post(served, tools=[NOW], tool_choice={"type": "none"}, thinking={"type": "disabled"})
    first, named, none = served.service.tasks
    assert first.messages[0] == {"role": "system", "content": "Be brief."}
    assert (first.tool_choice, first.parallel_tool_calls) == ("required", False)
    assert first.tools[0]["function"] == {"name": "now", "description": "The time", "parameters": {"type": "object"}}
    assert [task.template_args for task in (first, named, none)] == [
        {"enable_thinking": True},
        {"enable_thinking": False},
        {"enable_thinking": False},
    ]
    assert (first.stopping.max_tokens, first.stopping.stop, first.sampling.top_k) == (100, ("END",), 5)
    assert first.constraint == Constraint(kind="json", text='{"type": "object"}')
    assert [tool["function"]["name"] for tool in named.tools] == ["then"]
    assert none.tools == ()


def test_tokens_are_counted_as_they_are_when_the_conversation_is_answered(served: Served) -> None:
    asked = {key: value for key, value in ASK.items() if key != "max_tokens"}
    counted = served.ask("POST", "/v1/messages/count_tokens", {**asked, "system": "Be brief.", "tools": [NOW]}).json
    usage = post(served, system="Be brief.", tools=[NOW])["usage"]
    assert counted == {"input_tokens": usage["input_tokens"]}
    assert served.service.tasks[0].stopping.max_tokens == 1


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"messages": {}}, "messages must be a list"),
        ({"messages": []}, "nothing to answer"),
        ({"messages": ["a"]}, "messages.0"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "a block without a type"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "'image'"),
        ({"messages": [*ASK["messages"], {"role": "assistant", "content": "The answer is ("}]}, "begun already"),
        ({"system": [{"type": "image"}]}, "system must be"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"tools": [{"name": ""}]}, "tools.0"),
        ({"tools": [NOW], "tool_choice": {"type": "tool", "name": "then"}}, "'then'"),
        ({"tools": [NOW], "tool_choice": {"type": "tool"}}, "something unknown"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_cannot_be_done_is_refused_in_anthropics_shape(served: Served, fields: dict[str, Any], word: str) -> None:
    answer = served.ask("POST", "/v1/messages", {**ASK, **fields})
    assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (400, "error", "invalid_request_error")
    assert word in answer.json["error"]["message"]


def test_a_failure_in_mid_stream_is_an_event_that_clients_hear(served: Served) -> None:
    async def script(task: GenerateTask) -> AsyncGenerator[Delta, None]:
        yield Delta(text="a")
        raise WorkerDown("The worker died.")

    served.service.script = script
    *_, (name, data) = events(served.ask("POST", "/v1/messages", {**ASK, "stream": True}).body)
    assert (name, data["type"], data["error"]["message"]) == ("error", "error", "The worker died.")
