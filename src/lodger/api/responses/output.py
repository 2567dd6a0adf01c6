"""The object of a response, and the items of its output, as plain values."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from lodger.api.generation import Choice
from lodger.api.token_logprobs import chat_logprobs
from lodger.tasks import FinishReason, TokenLogprobs, ToolCall, Usage

Item = dict[str, Any]


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


def count(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def whole(head: dict[str, Any], choice: Choice, usage: Usage) -> dict[str, Any]:
    """The response of an answer that has ended."""
    status = status_of(choice.finish_reason)
    items: list[Item] = []
    if choice.reasoning:
        items.append(reasoning_item(new_id("rs"), choice.reasoning))
    if choice.text or not choice.calls:
        items.append(message_item(new_id("msg"), choice.text, choice.logprobs, status))
    items += [call_item(new_id("fc"), call) for call in choice.calls]
    return ended(head, items, choice.finish_reason, usage)


def ended(head: dict[str, Any], items: list[Item], reason: FinishReason | None, usage: Usage) -> dict[str, Any]:
    details = {"reason": "max_output_tokens"} if reason == "length" else None
    more = {"status": status_of(reason), "incomplete_details": details, "output": items, "usage": count(usage)}
    return head | more


def status_of(reason: FinishReason | None) -> str:
    return "incomplete" if reason == "length" else "completed"


def reasoning_item(id: str, text: str) -> Item:
    return {"type": "reasoning", "id": id, "summary": [], "content": [reasoning_part(text)], "status": "completed"}


def reasoning_part(text: str) -> Item:
    return {"type": "reasoning_text", "text": text}


def message_item(id: str, text: str, logprobs: Sequence[TokenLogprobs], status: str) -> Item:
    parts = [text_part(text, logprobs)]
    return {"type": "message", "id": id, "status": status, "role": "assistant", "content": parts}


def text_part(text: str, logprobs: Sequence[TokenLogprobs] = ()) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": chat_logprobs(logprobs)["content"]}


def call_item(id: str, call: ToolCall) -> Item:
    return {
        "type": "function_call",
        "id": id,
        "call_id": f"call_{uuid.uuid4().hex[:24]}",
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }
