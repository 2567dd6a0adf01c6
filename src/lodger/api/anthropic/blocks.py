"""Messages of blocks as the messages that chat templates understand."""

from __future__ import annotations

from typing import Any

from lodger.api.conversation import messages_of
from lodger.errors import InvalidRequest, MalformedBody, Unsupported

Message = dict[str, Any]
_FIELD = "messages"
# Claude Code puts a line about its billing first, another one each time, which would make every prompt a new one.
_NOT_FOR_MODELS = "x-anthropic-billing-header"


def conversation_of(system: Any, messages: Any) -> tuple[Message, ...]:
    """
    Raises:
        EmptyInput, MalformedBody, Unsupported, InvalidRequest: with the place.
    """
    if not isinstance(messages, list):
        raise MalformedBody(f"{_FIELD} must be a list.", param=_FIELD)
    if messages and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant":
        raise InvalidRequest(
            "The last message is the assistant's: an answer that is begun already cannot be gone on with.",
            hint="End with a message of the user.",
            param=_FIELD,
        )
    converted = [made for place, message in enumerate(messages) for made in _message(message, f"{_FIELD}.{place}")]
    parsed = messages_of(converted, _FIELD)
    told = _system(system)
    return ({"role": "system", "content": told}, *parsed) if told else parsed


def _system(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    texts = (
        [block.get("text") if isinstance(block, dict) else None for block in value]
        if isinstance(value, list)
        else [None]
    )
    if not all(isinstance(text, str) for text in texts):
        raise MalformedBody("system must be a string or a list of text blocks.", param="system")
    return "\n\n".join(text for text in texts if text and not text.startswith(_NOT_FOR_MODELS))


def _message(value: Any, place: str) -> list[Message]:
    """One message; before one of the user, those of the tools whose results are in it."""
    if not isinstance(value, dict):
        raise MalformedBody(f"{place} must be an object with a role.", param=_FIELD)
    role, content = value.get("role"), value.get("content")
    if not isinstance(content, list):
        return [{"role": role, "content": content}]
    blocks = [_block(block, place) for block in content]
    made = [_result(block, place) for block in blocks if block["type"] == "tool_result"]
    message: Message = {"role": role, "content": [block for block in blocks if block["type"] == "text"]}
    if thoughts := [block["thinking"] for block in blocks if isinstance(block.get("thinking"), str)]:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls := [_call(block) for block in blocks if block["type"] == "tool_use"]:
        message["tool_calls"] = calls
    return [*made, message] if message["content"] or not made else made


def _block(value: Any, place: str) -> dict[str, Any]:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        raise MalformedBody(f"{place} holds a block without a type.", param=_FIELD)
    if kind not in ("text", "tool_use", "tool_result", "thinking", "redacted_thinking"):
        raise Unsupported(f"{place} has a block of type {kind[:50]!r}; Lodger reads text.", param=_FIELD)
    return dict(value)


def _result(block: dict[str, Any], place: str) -> Message:
    content = block.get("content")
    if isinstance(content, list):
        content = [_block(inner, place) for inner in content]
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": content}


def _call(block: dict[str, Any]) -> dict[str, Any]:
    return {"id": block.get("id"), "function": {"name": block.get("name"), "arguments": block.get("input")}}
