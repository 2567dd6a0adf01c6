"""Which tools a model may call, and whether it must: OpenAI's fields, new and old, and what others write into them."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from lodger.errors import InvalidRequest, MalformedBody, Unsupported

Tool = dict[str, Any]


class Tools(NamedTuple):
    """What a `ChatTask` is told."""

    tools: tuple[Tool, ...] = ()
    choice: Literal["auto", "required"] = "auto"


def tools_of(tools: Any, choice: Any) -> Tools:
    """`tools` and `tool_choice`. A choice of one tool offers the model that one alone.

    Raises:
        MalformedBody, InvalidRequest, Unsupported: with the field at fault.
    """
    known = tuple(_tool(tool, place) for place, tool in enumerate(_list(tools, "tools")))
    if choice in (None, "auto", ""):
        return Tools(known)
    if choice == "none" or (isinstance(choice, dict) and choice.get("type") == "none"):
        return Tools()
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        return _allowed(known, choice.get("allowed_tools", choice))
    return Tools(_chosen(known, choice), "auto" if _type_of(choice) == "auto" else "required")


def old_functions(functions: Any, choice: Any) -> tuple[list[Tool], Any]:
    """`functions` and `function_call`, which were before tools, as `tools` and `tool_choice`."""
    tools = [{"type": "function", "function": function} for function in _list(functions, "functions")]
    if isinstance(choice, dict) and isinstance(choice.get("name"), str):
        choice = {"type": "function", "function": choice}
    return tools, choice


def _list(value: Any, field: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise MalformedBody(f"{field} must be a list.", param=field)
    return value


def _tool(value: Any, place: int) -> Tool:
    """As chat templates know it: an object of type "function". Some clients leave out the object around it."""
    kind = value.get("type", "function") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "function":
        raise Unsupported(f"tools.{place} is of type {kind[:50]!r}; models here call functions.", param="tools")
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise MalformedBody(f"tools.{place} must be a function with a name.", param="tools")
    if not isinstance(function.get("parameters") or {}, dict):
        raise MalformedBody(f"tools.{place}.function.parameters must be a JSON schema.", param="tools")
    kept = {key: value for key, value in function.items() if key != "type" and value is not None}
    return {"type": "function", "function": kept}


def _chosen(known: tuple[Tool, ...], choice: Any) -> tuple[Tool, ...]:
    """The tools of one of which a call is wanted."""
    if not known and choice is not None:
        raise InvalidRequest("tool_choice asks for a call, and there are no tools.", param="tool_choice")
    if _type_of(choice) in ("auto", "required", "any"):
        return known
    name = _name_of(choice)
    found = tuple(tool for tool in known if tool["function"]["name"] == name)
    if not isinstance(name, str) or not found:
        asked = f"the tool {name[:100]!r}" if isinstance(name, str) else "something unknown"
        raise InvalidRequest(
            f"tool_choice asks for {asked}.",
            hint=f"It may be auto, none, required, or one of: {', '.join(_names(known))[:500]}.",
            param="tool_choice",
        )
    return found[:1]


def _allowed(known: tuple[Tool, ...], allowed: Any) -> Tools:
    """OpenAI's way to keep the prompt and narrow the choice."""
    listed = allowed.get("tools") if isinstance(allowed, dict) else None
    names = [_name_of(tool) for tool in _list(listed, "tool_choice")]
    found = tuple(tool for tool in known if tool["function"]["name"] in names)
    if not found:
        raise InvalidRequest("tool_choice allows none of the tools.", param="tool_choice")
    return Tools(found, "required" if allowed.get("mode") == "required" else "auto")


def _type_of(choice: Any) -> Any:
    """What is asked for by a bare word, or by an object with no more than a type."""
    return choice.get("type") if isinstance(choice, dict) else choice


def _name_of(choice: Any) -> Any:
    """The name in a choice of one function, however deep it is; a bare one too."""
    if not isinstance(choice, dict):
        return choice
    function = choice.get("function")
    return function.get("name") if isinstance(function, dict) else choice.get("name")


def _names(tools: tuple[Tool, ...]) -> list[str]:
    return [tool["function"]["name"] for tool in tools]
