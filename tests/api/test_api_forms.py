"""What an answer must be, and how probable it was: the fields for it, as the many clients write them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from api_server import Served
from scripted import ANSWERED, events, says

from lodger.tasks import Constraint, Delta, Likely, TokenLogprobs

CHAT = "qwen3-4b-chat-local"
SAID = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"名": {"type": "string"}}, "required": ["名"]}
AS_JSON = Constraint(kind="json", text=json.dumps(SCHEMA, ensure_ascii=False))
ANY = Constraint(kind="json", text='{"type": "object"}')
NUMBER = Constraint(kind="regex", text="[0-9]+")
WORDS = Constraint(kind="lark", text='start: "yes" | "是\\""')
GRAMMAR = Constraint(kind="lark", text='start: "a"+')
NAMED = {"name": "person", "schema": SCHEMA, "strict": True}
TOKENS = (
    TokenLogprobs(Likely(5, "你".encode(), -0.5), (Likely(5, "你".encode(), -0.5), Likely(6, b"\xe4", -1.0))),
    TokenLogprobs(Likely(7, b"!", -math.inf)),
)


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"response_format": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": "text"}, None),
        ({"response_format": {"type": "json_object"}}, ANY),
        ({"response_format": "json_object"}, ANY),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, AS_JSON),
        ({"response_format": {"type": "json", "value": SCHEMA}}, AS_JSON),
        ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, AS_JSON),
        ({"response_format": {"type": "json_schema", "json_schema": {**NAMED, "strict": False}}}, AS_JSON),
        ({"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, AS_JSON),
        ({"response_format": {"type": "json_schema", "schema": SCHEMA}}, AS_JSON),
        ({"response_format": SCHEMA}, AS_JSON),
        ({"response_format": {"type": "regex", "pattern": "[0-9]+"}}, NUMBER),
        ({"guided_json": SCHEMA, "guided_decoding_backend": "outlines"}, AS_JSON),
        ({"guided_json": json.dumps(SCHEMA)}, AS_JSON),
        ({"guided_regex": "[0-9]+"}, NUMBER),
        ({"guided_choice": ["yes", '是"']}, WORDS),
        ({"guided_grammar": GRAMMAR.text}, GRAMMAR),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, AS_JSON),
        ({"structured_outputs": {"json_object": True}}, ANY),
        ({"structured_outputs": {"choice": ["yes", '是"']}}, WORDS),
        ({"structured_outputs": {}}, None),
        ({"guided_json": None, "guided_choice": []}, None),
    ],
)
def test_every_way_to_ask_for_a_form(served: Served, fields: dict[str, Any], form: Constraint | None) -> None:
    served.service.script = says(ANSWERED)
    assert served.ask("POST", "/v1/chat/completions", {"model": CHAT, "messages": SAID, **fields}).status == 200
    assert served.ask("POST", "/v1/completions", {"model": CHAT, "prompt": "hello", **fields}).status == 200
    assert [task.constraint for task in served.service.tasks] == [form, form]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": 1}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}}, "response_format"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_json": [1]}, "guided_json"),
        ({"guided_regex": 1}, "guided_regex"),
        ({"guided_choice": [1]}, "guided_choice"),
        ({"guided_choice": ["a"] * 1025}, "guided_choice"),
        ({"guided_grammar": ["a"]}, "guided_grammar"),
        ({"guided_grammar": 'root ::= "a"'}, "guided_grammar"),
        ({"structured_outputs": "a"}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs"),
        ({"guided_json": SCHEMA, "response_format": {"type": "json_object"}}, "guided_json"),
    ],
)
def test_a_form_that_cannot_be_is_refused_by_name(served: Served, fields: dict[str, Any], param: str) -> None:
    answer = served.ask("POST", "/v1/chat/completions", {"model": CHAT, "messages": SAID, **fields})
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


def test_biases_stop_tokens_and_other_numbers_arrive(served: Served) -> None:
    fields = {"logit_bias": {"5": -100, "7": 1.5}, "stop_token_ids": [1, 2], "max_tokens": -1, "n": None}
    served.ask("POST", "/v1/chat/completions", {"model": CHAT, "messages": SAID, **fields})
    served.ask("POST", "/v1/completions", {"model": CHAT, "prompt": "a", "echo": True, **fields})
    chat, completion = served.service.tasks
    for task in (chat, completion):
        assert task.sampling.logit_bias == {5: -100.0, 7: 1.5}
        assert task.stopping.stop_token_ids == (1, 2)
        assert task.stopping.max_tokens is None
    assert completion.echo


@pytest.mark.parametrize(
    ("fields", "asked"),
    [({}, None), ({"logprobs": False}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 2}, 2)],
)
def test_how_many_alternatives_are_asked_for(served: Served, fields: dict[str, Any], asked: int | None) -> None:
    served.ask("POST", "/v1/chat/completions", {"model": CHAT, "messages": SAID, **fields})
    assert served.service.tasks[0].logprobs == asked


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ({"thinking": {"type": "enabled"}}, {"enable_thinking": True}),
        ({"thinking": "disabled"}, {"enable_thinking": False}),
        ({"reasoning_effort": "none"}, {"enable_thinking": False}),
        ({"reasoning_effort": "high"}, {}),
    ],
)
def test_every_way_to_ask_for_thought(served: Served, fields: dict[str, Any], thinks: dict[str, bool]) -> None:
    served.ask("POST", "/v1/chat/completions", {"model": CHAT, "messages": SAID, **fields})
    served.ask("POST", "/v1/chat/completions", {"model": CHAT, "messages": SAID, "separate_reasoning": False, **fields})
    assert [task.template_args for task in served.service.tasks] == [thinks, thinks]
    assert [task.separate_reasoning for task in served.service.tasks] == [True, False]


def test_logprobs_of_a_chat(served: Served) -> None:
    served.service.script = says(Delta(text="你", logprobs=TOKENS[:1]), Delta(0, "!", "stop", logprobs=TOKENS[1:]))
    body = {"model": CHAT, "messages": SAID, "logprobs": True, "top_logprobs": 2}
    first = {"token": "你", "logprob": -0.5, "bytes": list("你".encode())}
    half = {"token": "\ufffd", "logprob": -1.0, "bytes": [0xE4]}
    content = [
        first | {"top_logprobs": [first, half]},
        {"token": "!", "logprob": -9999.0, "bytes": [33], "top_logprobs": []},
    ]
    whole = served.ask("POST", "/v1/chat/completions", body).json["choices"][0]
    assert whole["logprobs"] == {"content": content, "refusal": None}
    chunks = events(served.ask("POST", "/v1/chat/completions", {**body, "stream": True}).body)
    shown = [chunk["choices"][0] for _, chunk in chunks if chunk != "[DONE]"]
    streamed = [token for choice in shown if choice["logprobs"] for token in choice["logprobs"]["content"]]
    assert streamed == content
    assert "".join(choice["delta"]["content"] for choice in shown) == "你!"


def test_logprobs_of_a_completion(served: Served) -> None:
    served.service.script = says(Delta(text="你", logprobs=TOKENS[:1]), Delta(0, "!", "stop", logprobs=TOKENS[1:]))
    body = {"model": CHAT, "prompt": "a", "logprobs": 2}
    whole = served.ask("POST", "/v1/completions", body).json["choices"][0]["logprobs"]
    assert whole == {
        "tokens": ["你", "!"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": [{"你": -0.5, "\ufffd": -1.0}, {"!": -9999.0}],
        "text_offset": [0, 1],
    }
    chunks = events(served.ask("POST", "/v1/completions", {**body, "stream": True}).body)
    parts = [chunk["choices"][0]["logprobs"] for _, chunk in chunks if chunk != "[DONE]"]
    assert {key: [value for part in parts for value in part[key]] for key in whole} == whole
