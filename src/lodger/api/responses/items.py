"""The input of a response as the messages that chat templates understand."""

from __future__ import annotations

from typing import Any

from lodger.api.conversation import messages_of
from lodger.errors import MalformedBody, Unsupported

Message = dict[str, Any]
_FIELD = "input"


def conversation_of(value: Any, instructions: str | None) -> tuple[Message, ...]:
    """A text, or items. Calls that follow each other are one message, with the text and the thought before them.

    Raises:
        EmptyInput, MalformedBody, Unsupported: with the place.
    """
    items = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise MalformedBody(f"{_FIELD} must be a string or a list of items.", param=_FIELD)
    messages: list[Message] = []
    for place, item in enumerate(items):
        _add(messages, item, f"{_FIELD}.{place}")
    parsed = messages_of(messages, _FIELD)
    return ({"role": "system", "content": instructions}, *parsed) if instructions else parsed


def _add(messages: list[Message], item: Any, place: str) -> None:
    if not isinstance(item, dict):
        raise MalformedBody(f"{place} must be an object.", param=_FIELD)
    kind = item.get("type") or "message"
    if kind == "message":
        _add_message(messages, item)
    elif kind == "reasoning":
        messages.append({"role": "assistant", "content": "", "reasoning_content": _thought(item)})
    elif kind == "function_call":
        call = {"id": item.get("call_id"), "function": {"name": item.get("name"), "arguments": item.get("arguments")}}
        message = _assistant(messages)
        message["tool_calls"] = [*message.get("tool_calls", ()), call]
    elif kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")})
    elif kind == "item_reference":
        raise Unsupported(f"{place} refers to an item of before: Lodger keeps none.", hint="Send it.", param=_FIELD)
    else:
        raise Unsupported(f"{place} is of type {str(kind)[:50]!r}, which is not served.", param=_FIELD)


def _add_message(messages: list[Message], item: dict[str, Any]) -> None:
    content = item.get("content")
    if isinstance(content, list):
        content = [_part(part) for part in content]
    message = {"role": item.get("role"), "content": content}
    if item.get("role") == "assistant" and _is_thought(messages):
        message["reasoning_content"] = messages.pop()["reasoning_content"]
    messages.append(message)


def _assistant(messages: list[Message]) -> Message:
    """The message that a call belongs to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    return messages[-1]


def _is_thought(messages: list[Message]) -> bool:
    """Whether the last message is a thought without what it led to."""
    last = messages[-1] if messages else {}
    return "reasoning_content" in last and not last["content"] and "tool_calls" not in last


def _thought(item: dict[str, Any]) -> str:
    """The thought itself, else its summary."""
    for key in ("content", "summary"):
        parts = item.get(key) or []
        texts = [part.get("text") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
        if texts:
            return "\n".join(text for text in texts if isinstance(text, str))
    return ""


def _part(part: Any) -> Any:
    """What a model refused to say was its answer all the same."""
    return part["refusal"] if isinstance(part, dict) and isinstance(part.get("refusal"), str) else part
