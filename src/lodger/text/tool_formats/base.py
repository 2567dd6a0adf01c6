"""What a format of tool calls is, and what the formats that write JSON have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lodger.tasks import ToolCall
from lodger.text.schema_rules import call_rule
from lodger.text.tool_formats.json_value import JsonEnd, is_text, parse, write

Tool = dict[str, Any]
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_NOWHERE = -1
_SPACE = re.compile(r"\s*")
_CALL_KEYS = frozenset({"name", "type", "id", "function", *_ARGUMENTS})
_BEGINNING = re.compile(r'[\[\s]*(?:\{\s*(?:"(\w*)("?))?)?')


class Block(Protocol):
    """One block of calls while it arrives."""

    def end(self, text: str, *, final: bool) -> int | None:
        """Offset after the block in `text`, which begins with the block and grows from call to call; 0 if it is none,
        None while more must come, which it does not once the text is `final`."""
        ...


class ToolFormat(Protocol):
    """One way to write calls."""

    @property
    def opens(self) -> tuple[str, ...]:
        """Marks that begin a block, as text."""
        ...

    @property
    def special(self) -> tuple[str, ...]:
        """Those of its marks that some tokenizers know as special tokens, which text usually leaves out."""
        ...

    @property
    def bare(self) -> bool:
        """Whether a block may also begin an answer, or follow another block, without a mark."""
        ...

    @property
    def between(self) -> str:
        """Characters that stand between blocks and mean nothing."""
        ...

    def block(self, opened: str) -> Block:
        """A block that begins with this mark, or with none."""
        ...

    def read(self, block: str, tools: Sequence[Tool]) -> tuple[ToolCall, ...]:
        """The calls of a whole block; none if it is broken."""
        ...

    def grammar(self, tools: Sequence[Tool], *, several: bool) -> str:
        """Rules in llguidance's form of Lark, of which `calls` matches one call of one of `tools`, or `several`."""
        ...


class JsonBlock:
    """Mark, JSON value, and perhaps a closing mark.

    Args:
        opened: the mark that it begins with; "" for none, when it must look like a call from its first key on.
        closing: the mark that ends it; a value without one counts too.
        named: words may stand between mark and value.
    """

    def __init__(self, opened: str, closing: str = "", *, named: bool = False) -> None:
        self._opened, self._closing, self._named = opened, closing, named
        self._value: JsonEnd | None = None
        self._value_end: int | None = None

    def end(self, text: str, *, final: bool) -> int | None:
        if self._value is None:
            start = self._start(text)
            if start is None or start == _NOWHERE:
                return None if start is None else 0
            self._value = JsonEnd(start)
        if not self._opened and _is_no_call(text):
            return 0
        if self._value_end is None:
            self._value_end = self._value.find(text)
        return None if self._value_end is None else self._closed(text, self._value_end, final)

    def _start(self, text: str) -> int | None:
        """Where the value begins, which may be nowhere; None if that is not known yet."""
        at = _match_space(text, len(self._opened))
        if at == len(text):
            return None
        if text[at] not in "{[" and self._named:
            at = text.find("{", at)
            return None if at < 0 else at
        return at if text[at] in "{[" else _NOWHERE

    def _closed(self, text: str, value_end: int, final: bool) -> int | None:
        at = _match_space(text, value_end)
        if not self._closing or text.startswith(self._closing, at):
            return at + len(self._closing)
        if self._closing.startswith(text[at:]):  # half of the mark
            return len(text) if final else None
        return value_end


def _match_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _is_no_call(value: str) -> bool:
    """What has come of a bare value shows that it is no call: its first key is none of a call's."""
    found = _BEGINNING.match(value)
    assert found is not None, "it matches nothing too"
    key, closed = found.groups()
    return key not in _CALL_KEYS if closed else found.end() < len(value)


@dataclass(frozen=True)
class JsonFormat:
    """A format whose calls are JSON objects or lists of them. See `ToolFormat`.

    Attributes:
        closing: the mark after a value.
        named: the function's name may stand before the value, which then holds the arguments alone.
        wrap: what `grammar` writes around a call, or around all calls if `listed`.
        listed: several calls are one list.
        separator: what `grammar` writes between calls.
        arguments: the key that the template asks for.
    """

    opens: tuple[str, ...] = ()
    special: tuple[str, ...] = ()
    bare: bool = False
    between: str = " \n\r\t"
    closing: str = ""
    named: bool = False
    wrap: tuple[str, str] = ("", "")
    listed: bool = False
    separator: str = ""
    arguments: str = "arguments"

    def block(self, opened: str) -> Block:
        return JsonBlock(opened, self.closing, named=self.named)

    def read(self, block: str, tools: Sequence[Tool]) -> tuple[ToolCall, ...]:
        opened = next((mark for mark in self.opens if block.startswith(mark)), "")
        try:
            calls = self._calls(block[len(opened) :].strip())
        except ValueError:
            return ()
        known = {name_of(tool) for tool in tools}
        return calls if opened or all(call.name in known for call in calls) else ()

    def _calls(self, text: str) -> tuple[ToolCall, ...]:
        if self.named and text[:1] not in ("{", "["):
            name, brace, rest = text.partition("{")
            return (call_of({"name": name.replace("[ARGS]", "").strip(), "arguments": parse(brace + rest)}),)
        value = parse(text[: JsonEnd(0).find(text)])  # without the closing mark, or half of it
        values = value if isinstance(value, list) else [value]
        return tuple(call_of(item) for item in values)

    def grammar(self, tools: Sequence[Tool], *, several: bool) -> str:
        before, after = map(literal, self.wrap)
        comma = literal(", " if self.listed else self.separator)
        one = "call" if self.listed else f"{before} call {after}"
        body = f"{one} ({comma} {one})*" if several else one
        rules = [f"calls: {f'{before} {body} {after}' if self.listed else body}", "call: " + alternatives(tools)]
        for number, tool in enumerate(tools):
            head = f'{{"name": {json.dumps(name_of(tool), ensure_ascii=False)}, "{self.arguments}": '
            rules.append(f"call_{number}: {literal(head)} {call_rule(parameters_of(tool))} {literal('}')}")
        return "\n".join(rules)


def alternatives(tools: Sequence[Tool]) -> str:
    """The rules of all tools' calls."""
    return " | ".join(f"call_{number}" for number in range(len(tools)))


def literal(text: str) -> str:
    """A string of Lark's; none for no text."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def name_of(tool: Tool) -> str:
    return str(_function(tool).get("name", ""))


def parameters_of(tool: Tool) -> dict[str, Any]:
    """The JSON schema of its arguments; any object if it has none."""
    schema = _function(tool).get("parameters")
    return {"type": "object", **schema} if isinstance(schema, dict) else {"type": "object"}


def _function(tool: Tool) -> dict[str, Any]:
    function = tool.get("function")
    return function if isinstance(function, dict) else tool


def call_of(value: Any) -> ToolCall:
    """
    Raises:
        ValueError: it is no call.
    """
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError("not an object with a name")
    if not is_text(value["name"]):
        raise ValueError("the name is no text")
    arguments: Any = next((value[key] for key in _ARGUMENTS if value.get(key) is not None), {})
    if isinstance(arguments, str):
        arguments = parse(arguments)
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are no object")
    return ToolCall(value["name"], write(arguments))
