"""The openai package, as most programs use it."""

from __future__ import annotations

import json
import math
import sys

import openai
from run import refusal

CASE = json.loads(sys.argv[1])
client = openai.OpenAI(base_url=CASE["url"] + "/v1", api_key="x", max_retries=0)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def models() -> None:
    ids = {model.id for model in client.models.list()}
    assert {CASE["chat"], CASE["embedding"], CASE["rerank"]} <= ids
    assert client.models.retrieve(CASE["chat"]).id == CASE["chat"]


def chat() -> None:
    answer = client.chat.completions.create(
        model=CASE["chat"], messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
    )
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def stream() -> None:
    chunks = list(
        client.chat.completions.create(
            model=CASE["chat"],
            messages=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0


def options() -> None:
    answer = client.chat.completions.create(
        model=CASE["chat"],
        messages=[{"role": "user", "content": "Name a colour."}],
        max_completion_tokens=4,
        n=2,
        seed=7,
        logprobs=True,
        top_logprobs=2,
        logit_bias={"5": -100},
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    first = answer.choices[0].logprobs.content[0]
    assert first.logprob <= 0
    assert len(first.top_logprobs) == 2


def forced_tool() -> None:
    answer = client.chat.completions.create(
        model=CASE["tools"],
        messages=[{"role": "user", "content": "Weather in Paris?"}],
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=1000,
        temperature=0,
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    assert answer.choices[0].finish_reason == "tool_calls"


def streamed_tool() -> None:
    found = {}
    for chunk in client.chat.completions.create(
        model=CASE["tools"],
        messages=[{"role": "user", "content": "Weather in Paris?"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
        max_tokens=1000,
        temperature=0,
        stream=True,
    ):
        for call in chunk.choices[0].delta.tool_calls or ():
            one = found.setdefault(call.index, {"name": "", "arguments": ""})
            one["name"] += call.function.name or ""
            one["arguments"] += call.function.arguments or ""
    assert found[0]["name"] == "weather"
    assert json.loads(found[0]["arguments"])["city"] in ("Paris", "Rome")


def schema() -> None:
    form = {
        "type": "object",
        "properties": {"size": {"enum": ["big", "small"]}},
        "required": ["size"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=CASE["chat"],
        messages=[{"role": "user", "content": "How big is an ant? Answer in JSON."}],
        response_format={"type": "json_schema", "json_schema": {"name": "size", "schema": form}},
        max_tokens=200,
        temperature=0,
    )
    assert json.loads(answer.choices[0].message.content)["size"] in ("big", "small")


def choice() -> None:
    """One of some words, by vLLM's and Xinference's name for it."""
    answer = client.chat.completions.create(
        model=CASE["chat"],
        messages=[{"role": "user", "content": "Is water wet?"}],
        extra_body={"guided_choice": ["yes", "no"]},
        max_tokens=10,
        temperature=0,
    )
    assert answer.choices[0].message.content in ("yes", "no")


def stop() -> None:
    answer = client.chat.completions.create(
        model=CASE["chat"],
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        stop=["Paris"],
    )
    assert "Paris" not in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"


def completions() -> None:
    answer = client.completions.create(model=CASE["chat"], prompt="The capital of France is", max_tokens=5)
    assert answer.choices[0].text
    assert answer.usage.completion_tokens <= 5
    several = client.completions.create(model=CASE["chat"], prompt=["One,", "Two,"], max_tokens=2)
    assert [choice.index for choice in several.choices] == [0, 1]


def responses() -> None:
    answer = client.responses.create(model=CASE["chat"], input="What is the capital of France?", temperature=0)
    assert "Paris" in answer.output_text
    with client.responses.stream(model=CASE["chat"], input="What is the capital of France?", temperature=0) as events:
        assert "Paris" in "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert events.get_final_response().status == "completed"


def embeddings() -> None:
    texts = ["Hello", "Bananas are yellow.", ""]
    based = client.embeddings.create(model=CASE["embedding"], input=texts[:2])  # the package asks for base64 by itself
    plain = client.embeddings.create(model=CASE["embedding"], input=texts[:2], encoding_format="float")
    for one, other in zip(based.data, plain.data, strict=True):
        assert one.index == other.index
        assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(one.embedding, other.embedding, strict=True))
        assert math.isclose(sum(x * x for x in one.embedding), 1, abs_tol=1e-3)
    assert based.usage.total_tokens > 0


def errors() -> None:
    def ask(**more: object) -> object:
        body = {"model": CASE["chat"], "messages": [{"role": "user", "content": "x"}]}
        return client.chat.completions.create(**body | more)

    unknown = refusal(lambda: client.embeddings.create(model="nosuch", input="x"), openai.NotFoundError)
    assert "nosuch" in unknown.body["message"]
    for wrong in ({"messages": []}, {"temperature": 99}):
        assert refusal(lambda: ask(**wrong), openai.BadRequestError).body["message"]  # noqa: B023


PARTS = (
    models, chat, stream, options, forced_tool, streamed_tool, schema, choice, stop, completions, responses, embeddings,
    errors,
)  # fmt: skip
