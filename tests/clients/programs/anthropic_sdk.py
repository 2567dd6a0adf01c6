"""The anthropic package against /v1/messages."""

from __future__ import annotations

import json
import sys

import anthropic
from run import refusal

CASE = json.loads(sys.argv[1])
client = anthropic.Anthropic(base_url=CASE["url"], api_key="x", max_retries=0)
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "name": "weather",
    "description": "Weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def message() -> None:
    answer = client.messages.create(model=CASE["chat"], max_tokens=64, messages=QUESTION, extra_body={"temperature": 0})
    assert "Paris" in answer.content[0].text
    assert answer.stop_reason == "end_turn"
    assert answer.usage.input_tokens > 0


def stream() -> None:
    with client.messages.stream(
        model=CASE["chat"], max_tokens=64, messages=QUESTION, extra_body={"temperature": 0}
    ) as events:
        assert "Paris" in "".join(events.text_stream)
        final = events.get_final_message()
    assert final.stop_reason == "end_turn"
    assert final.usage.output_tokens > 0


def tool() -> None:
    asked = {
        "model": CASE["tools"],
        "max_tokens": 1000,
        "tools": [WEATHER],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "messages": [{"role": "user", "content": "Weather in Paris?"}],
    }
    answer = client.messages.create(**asked)
    block = next(block for block in answer.content if block.type == "tool_use")
    assert answer.stop_reason == "tool_use"
    assert (block.name, block.input["city"] in ("Paris", "Rome")) == ("weather", True)
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
    history = [
        *asked["messages"],
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    again = client.messages.create(model=CASE["tools"], max_tokens=8, tools=[WEATHER], messages=history)
    assert again.usage.output_tokens <= 8
    with client.messages.stream(**asked) as events:
        assert any(block.type == "tool_use" for block in events.get_final_message().content)


def count() -> None:
    assert client.messages.count_tokens(model=CASE["chat"], messages=QUESTION).input_tokens > 5


def errors() -> None:
    asked = {"model": "nosuch", "max_tokens": 5, "messages": QUESTION}
    assert "nosuch" in str(refusal(lambda: client.messages.create(**asked), anthropic.NotFoundError))


PARTS = (message, stream, tool, count, errors)
