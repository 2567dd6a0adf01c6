"""OpenAI's Responses API over raw HTTP: what arrives as a task, and what goes out as items and events."""

from __future__ import annotations

from typing import Any

import pytest
from api_server import Served
from scripted import ANSWERED, events, says

from lodger.tasks import Constraint, Delta, Likely, TokenLogprobs, ToolCall, Usage

CHAT = "qwen3-4b-chat-local"
NOW = {"type": "function", "name": "now", "description": "The time", "parameters": {"type": "object"}, "strict": True}
ASK = {"model": CHAT, "input": "Time?"}
ANSWER = (
    Delta(reasoning="I must "),
    Delta(reasoning="look."),
    Delta(text="One "),
    Delta(text="moment."),
    Delta(calls=(ToolCall("now", '{"zone": "北京"}'),), finish_reason="stop", usage=Usage(7, 20, 5, 4)),
)


def post(served: Served, **fields: Any) -> Any:
    answer = served.ask("POST", "/v1/responses", {**ASK, **fields})
    assert answer.status == 200, answer.json
    return answer.json


def test_a_whole_response(served: Served) -> None:
    served.service.script = says(*ANSWER)
    response = post(served, tools=[NOW], max_output_tokens=50, temperature=0, instructions="Be brief.")
    assert (response["object"], response["status"], response["model"]) == ("response", "completed", CHAT)
    assert (response["tools"], response["instructions"], response["store"]) == ([NOW], "Be brief.", False)
    thought, message, call = response["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "I must look."}]
    part = {"type": "output_text", "text": "One moment.", "annotations": [], "logprobs": []}
    assert (message["role"], message["status"], message["content"]) == ("assistant", "completed", [part])
    assert (call["type"], call["name"], call["arguments"]) == ("function_call", "now", '{"zone": "北京"}')
    assert call["call_id"].startswith("call_")
    usage = response["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (7, 20, 27)
    assert usage["input_tokens_details"]["cached_tokens"] == 5
    assert usage["output_tokens_details"] == {"reasoning_tokens": 4}
    assert served.service.tasks[0].tools[0]["function"]["parameters"] == {"type": "object"}
    assert served.service.tasks[0].stopping.max_tokens == 50


def test_an_answer_that_was_cut_off_is_incomplete(served: Served) -> None:
    response = post(served, input="a b c", max_output_tokens=2)
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["content"][0]["text"] for item in response["output"]] == ["a b"]
    told = events(
        served.ask("POST", "/v1/responses", {**ASK, "input": "a b c", "max_output_tokens": 2, "stream": True}).body
    )
    assert told[-1][0] == "response.incomplete"
    assert told[-1][1]["response"]["output"][0]["status"] == "incomplete"


def test_the_events_of_a_stream_build_the_response_that_ends_it(served: Served) -> None:
    served.service.script = says(*ANSWER)
    answer = served.ask("POST", "/v1/responses", {**ASK, "tools": [NOW], "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer.body)
    assert [data["type"] for _, data in told] == [name for name, _ in told]
    assert [data["sequence_number"] for _, data in told] == list(range(len(told)))
    assert [name.removeprefix("response.") for name, _ in told] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    done = [data["item"] for name, data in told if name == "response.output_item.done"]
    last = told[-1][1]["response"]
    assert last["output"] == done
    assert (last["status"], last["usage"]["output_tokens"]) == ("completed", 20)
    assert [item["type"] for item in done] == ["reasoning", "message", "function_call"]
    assert [data["output_index"] for name, data in told if name == "response.output_item.added"] == [0, 1, 2]
    texts = [data["delta"] for name, data in told if name == "response.output_text.delta"]
    assert texts == ["One ", "moment."]
    added = next(data["item"] for name, data in told if name == "response.output_item.added")
    assert (added["status"], added["content"]) == ("in_progress", [])


def test_an_empty_answer_is_an_empty_message(served: Served) -> None:
    served.service.script = says(Delta(finish_reason="stop", usage=Usage(1, 1)))
    assert post(served)["output"][0]["content"][0]["text"] == ""
    told = events(served.ask("POST", "/v1/responses", {**ASK, "stream": True}).body)
    assert told[-1][1]["response"]["output"][0]["content"][0]["text"] == ""


def test_log_probabilities_come_with_the_text(served: Served) -> None:
    token = TokenLogprobs(Likely(1, b"a", -0.5), (Likely(1, b"a", -0.5),))
    served.service.script = says(Delta(0, "a", "stop", Usage(1, 1), logprobs=(token,)))
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}
    (told,) = post(served, **fields)["output"][0]["content"][0]["logprobs"]
    assert (told["token"], told["bytes"], told["logprob"], len(told["top_logprobs"])) == ("a", [97], -0.5, 1)
    assert served.service.tasks[0].logprobs == 1
    streamed = events(served.ask("POST", "/v1/responses", {**ASK, **fields, "stream": True}).body)
    (delta,) = [data for name, data in streamed if name == "response.output_text.delta"]
    assert delta["logprobs"] == [told]


def test_a_conversation_of_items_becomes_messages(served: Served) -> None:
    call = {"type": "function_call", "call_id": "c1", "name": "now", "arguments": '{"zone": "x"}'}
    post(
        served,
        instructions="Be brief.",
        input=[
            {"role": "developer", "content": "Really."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Time?"}]},
            {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Wait.", "annotations": []}]},
            call,
            {**call, "call_id": "c2", "id": "fc", "status": "completed"},
            {"type": "function_call_output", "call_id": "c1", "output": "12:00"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "13:00"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Again."}]},
            {**call, "call_id": "c3"},
            {"type": "function_call_output", "call_id": "c3", "output": "14:00"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"role": "user", "content": "Why?"},
        ],
    )
    calls = [
        {"id": id, "type": "function", "function": {"name": "now", "arguments": {"zone": "x"}}}
        for id in ("c1", "c2", "c3")
    ]
    assert served.service.tasks[0].messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Really."},
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": "Wait.", "reasoning_content": "Hm.", "tool_calls": calls[:2]},
        {"role": "tool", "content": "12:00", "tool_call_id": "c1"},
        {"role": "tool", "content": "13:00", "tool_call_id": "c2"},
        {"role": "assistant", "content": "", "reasoning_content": "Again.", "tool_calls": calls[2:]},
        {"role": "tool", "content": "14:00", "tool_call_id": "c3"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Why?"},
    )


def test_the_other_fields_arrive(served: Served) -> None:
    served.service.script = says(ANSWERED)
    schema = {"type": "object", "properties": {}}
    form = {"type": "json_schema", "name": "it", "schema": schema, "strict": True}
    post(
        served,
        text={"format": form},
        reasoning={"effort": "none"},
        tools=[NOW],
        tool_choice={"type": "function", "name": "now"},
        parallel_tool_calls=False,
        top_p=0.5,
        store=True,
        metadata={"a": "b"},
        truncation="auto",
        previous_response_id="",
    )
    (task,) = served.service.tasks
    assert task.constraint == Constraint(kind="json", text='{"type": "object", "properties": {}}')
    assert (task.tool_choice, task.parallel_tool_calls, task.sampling.top_p) == ("required", False, 0.5)
    assert task.template_args == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": {"id": "c"}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a"]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "xml"}}}, "text"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(served: Served, fields: dict[str, Any], param: str) -> None:
    answer = served.ask("POST", "/v1/responses", {**ASK, **fields})
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
