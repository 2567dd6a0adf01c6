"""The messages of a conversation, as the many clients write them, in the one form that chat templates understand."""

from __future__ import annotations

from typing import Any

from lodger.api.limits import parse_json
from lodger.errors import EmptyInput, MalformedBody, Unsupported

_ROLES = {"developer": "system", "function": "tool"}  # newer and older names of OpenAI's
_KEPT = ("name", "tool_call_id", "reasoning_content")  # further keys that templates know


def messages_of(value: Any, field: str = "messages") -> tuple[dict[str, Any], ...]:
    """Each message with `role`, a string `content`, and what templates know of names and tool calls.

    Raises:
        EmptyInput: no message.
        MalformedBody: not a list of messages; names the place.
        Unsupported: a content part that is not text.
    """
    if not isinstance(value, list):
        raise MalformedBody(f"{field} must be a list.", param=field)
    if not value:
        raise EmptyInput(f"{field} is empty: there is nothing to answer.", param=field)
    return tuple(_message(message, f"{field}.{place}") for place, message in enumerate(value))


def _field(place: str) -> str:
    return place.partition(".")[0]


def _message(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("role"), str):
        raise MalformedBody(f"{place} must be an object with a role.", param=_field(place))
    message = {"role": _ROLES.get(value["role"], value["role"]), "content": _content(value.get("content"), place)}
    message |= {key: value[key] for key in _KEPT if isinstance(value.get(key), str)}
    if isinstance(value.get("reasoning"), str):  # what others call it
        message.setdefault("reasoning_content", value["reasoning"])
    calls = _tool_calls(value, place)
    return message | {"tool_calls": calls} if calls else message


def _content(value: Any, place: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(_part(part, place) for part in value)
    raise MalformedBody(f"{place}.content must be a string or a list of parts.", param=_field(place))


def _part(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return str(value["text"])
    if isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"] != "text":
        raise Unsupported(f"{place} has a part of type {value['type'][:50]!r}; Lodger reads text.", param=_field(place))
    raise MalformedBody(f"{place}.content holds a part without text.", param=_field(place))


def _tool_calls(message: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """The calls of an assistant's message; Dify still writes the one of `function_call`."""
    calls = message.get("tool_calls") or []
    if message.get("function_call"):
        calls = [{"function": message["function_call"]}]
    if not isinstance(calls, list):
        raise MalformedBody(f"{place}.tool_calls must be a list.", param=_field(place))
    return [_tool_call(call, place) for call in calls]


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise MalformedBody(f"{place}.tool_calls holds a call without a function name.", param=_field(place))
    arguments = _arguments(function.get("arguments"))
    named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _arguments(value: Any) -> Any:
    """OpenAI's JSON text as the object that templates print; text that is no object stays as it is."""
    if not isinstance(value, str):
        return {} if value is None else value
    try:
        parsed = parse_json(value.encode())
    except MalformedBody:
        return value
    return parsed if isinstance(parsed, dict) else value
