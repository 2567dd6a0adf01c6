"""Qwen3-Coder: `<tool_call><function=NAME><parameter=KEY>VALUE</parameter>...</function></tool_call>`.

A value stands between two line breaks as it is where the tool's schema wants a string, and as JSON otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lodger.tasks import ToolCall
from lodger.text.schema_rules import call_rule
from lodger.text.tool_formats.base import (
    Block,
    Tool,
    alternatives,
    literal,
    name_of,
    parameters_of,
)
from lodger.text.tool_formats.json_value import parse, write

# An end counts where another part or nothing follows: values may hold anything.
_END_OF_FUNCTION = re.compile(r"</function>\s*(?=<function=|</tool_call>|\Z)")
_END_OF_PARAMETER = re.compile(r"</parameter>\s*(?=<parameter=|\Z)")
_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*)", re.DOTALL)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>(.*)", re.DOTALL)
_CLOSING, _LAST = "</tool_call>", "</function>"


class _XmlBlock:
    """Up to the closing mark that follows the end of a function."""

    def __init__(self) -> None:
        self._at = 0

    def end(self, text: str, *, final: bool) -> int | None:
        while (found := text.find(_CLOSING, self._at)) >= 0:
            self._at = found + len(_CLOSING)
            if text[:found].rstrip().endswith(_LAST):
                return self._at
        self._at = max(self._at, len(text) - len(_CLOSING) + 1)
        return len(text) if final and text.rstrip().endswith(_LAST) else None


class QwenCoder:
    """See `ToolFormat`."""

    opens = ("<tool_call>", "<function=")
    special = ("<tool_call>", "</tool_call>")
    bare = False
    between = " \n\r\t"

    def block(self, opened: str) -> Block:
        return _XmlBlock()

    def read(self, block: str, tools: Sequence[Tool]) -> tuple[ToolCall, ...]:
        *functions, rest = _END_OF_FUNCTION.split(block.removeprefix("<tool_call>"))
        types = {name_of(tool): parameters_of(tool) for tool in tools}
        try:
            calls = tuple(_call(function, types) for function in functions)
        except ValueError:
            return ()
        return calls if rest.strip() in ("", _CLOSING) else ()

    def grammar(self, tools: Sequence[Tool], *, several: bool) -> str:
        one = f"{literal('<tool_call>' + chr(10))} call {literal(chr(10) + _CLOSING)}"
        body = f"{one} ({literal(chr(10))} {one})*" if several else one
        rules = [f"calls: {body}", "call: " + alternatives(tools)]
        for number, tool in enumerate(tools):
            rules += _rules(number, tool)
        return "\n".join(rules)


FORMAT = QwenCoder()


def _call(function: str, types: dict[str, Any]) -> ToolCall:
    """
    Raises:
        ValueError: it is broken.
    """
    name, body = _parts(_FUNCTION, function)
    declared = types.get(name, {}).get("properties")
    properties = declared if isinstance(declared, dict) else {}
    *parameters, rest = _END_OF_PARAMETER.split(body)
    if rest.strip():
        raise ValueError("text between the parameters")
    pairs = [_parts(_PARAMETER, parameter) for parameter in parameters]
    return ToolCall(name, write({key: _value(value, properties.get(key)) for key, value in pairs}))


def _parts(pattern: re.Pattern[str], text: str) -> tuple[str, str]:
    """What stands in the opening mark, and after it."""
    found = pattern.fullmatch(text)
    if found is None:
        raise ValueError("no opening mark")
    return found[1].strip(), found[2]


def _value(text: str, schema: Any) -> Any:
    text = text.removeprefix("\n").removesuffix("\n")
    if _is_string(schema):
        return text
    try:
        return parse(text)
    except ValueError:
        lowered = text.strip().lower()
        return {"true": True, "false": False, "none": None}.get(lowered, text)


def _is_string(schema: Any) -> bool:
    return isinstance(schema, dict) and schema.get("type") == "string"


def _rules(number: int, tool: Tool) -> list[str]:
    """One parameter after the other in the order of the schema; those not required may be left out."""
    schema = parameters_of(tool)
    declared = schema.get("properties")
    properties = declared if isinstance(declared, dict) else {}
    required = schema.get("required") or ()
    shared: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    parts, rules = [], []
    for place, (key, value) in enumerate(properties.items()):
        name = f"value_{number}_{place}"
        parts.append(f"({literal(f'<parameter={key}>{chr(10)}')} {name}){'' if key in required else '?'}")
        rules += _value_rules(name, value, shared)
    head, tail = literal(f"<function={name_of(tool)}>\n"), literal(_LAST)
    return [f"call_{number}: {head} {' '.join(parts)} {tail}", *rules]


def _value_rules(name: str, schema: Any, shared: dict[str, Any]) -> list[str]:
    """Rules of a value and the mark after it."""
    end = "\n</parameter>\n"
    if _is_string(schema) and not schema.get("enum"):
        return [f"{name}[lazy]: /(.|\\n)*\\n<\\/parameter>\\n/"]
    if _is_string(schema):
        return [f"{name}: ({' | '.join(literal(str(choice)) for choice in schema['enum'])}) {literal(end)}"]
    whole = {**shared, **schema} if isinstance(schema, dict) else {}
    return [f"{name}: {call_rule(whole)} {literal(end)}"]
