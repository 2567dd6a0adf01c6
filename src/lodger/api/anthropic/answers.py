"""An answer as a message of blocks, whole and as events."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec

from lodger.api.generation import Choice, finished
from lodger.api.sse import SLOT, EventTemplate, event
from lodger.tasks import Delta, FinishReason, ToolCall, Usage

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def head_of(model: str) -> dict[str, Any]:
    """A message without what its end makes known."""
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": count(Usage()),
    }


def count(usage: Usage) -> dict[str, Any]:
    """Anthropic counts what came from the prefix cache apart."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def whole(head: dict[str, Any], choice: Choice, usage: Usage) -> dict[str, Any]:
    """The message of an answer that has ended."""
    content: list[dict[str, Any]] = []
    if choice.reasoning:
        content.append(_thinking(choice.reasoning))
    if choice.text:
        content.append({"type": "text", "text": choice.text})
    content += [_tool_use(call) | {"input": msgspec.Raw(call.arguments.encode())} for call in choice.calls]
    return head | {"content": content, **_ended(choice.finish_reason, choice.stopped_by), "usage": count(usage)}


def _ended(reason: FinishReason | None, stopped_by: str | None) -> dict[str, Any]:
    said = "stop_sequence" if reason == "stop" and stopped_by is not None else _REASONS[reason or "stop"]
    return {"stop_reason": said, "stop_sequence": stopped_by}


def _thinking(text: str) -> dict[str, Any]:
    """Nobody has signed it: thoughts that come back are believed as they are."""
    return {"type": "thinking", "thinking": text, "signature": ""}


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": call.name, "input": {}}


class MessageEvents:
    """Renders one answer: its thought, then its text, each a block that opens with its first piece; calls at its end.

    The tokens of the prompt are known at the end and told there: those of the first event are none.
    """

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = head
        self._begun = False
        self._index = -1  # of the block that is open, or was last
        self._open: str | None = None
        self._piece = EventTemplate(SLOT)
        self._calls: list[ToolCall] = []
        self._reason: FinishReason | None = None
        self._stopped_by: str | None = None
        self._usage = Usage()

    def feed(self, delta: Delta) -> bytes:
        self._usage = delta.usage or self._usage
        self._calls += delta.calls
        events = b"" if self._begun else _event("message_start", message=self._head)
        self._begun = True
        if delta.reasoning:
            events += self._show("thinking", _thinking(""), delta.reasoning)
        if delta.text:
            events += self._show("text", {"type": "text", "text": ""}, delta.text)
        if delta.finish_reason:
            self._reason = finished(delta.finish_reason, bool(self._calls))
            self._stopped_by = delta.stopped_by
            events += self._close() + b"".join(map(self._call, self._calls))
        return events

    def end(self) -> bytes:
        """The usage of the whole request has come by now."""
        told = _event("message_delta", delta=_ended(self._reason, self._stopped_by), usage=count(self._usage))
        return told + _event("message_stop")

    def _show(self, kind: str, block: dict[str, Any], text: str) -> bytes:
        events = b""
        if self._open != kind:
            events = self._close() + self._begin(block)
            self._open = kind
            delta = {"type": f"{kind}_delta", kind: SLOT}
            data = {"type": "content_block_delta", "index": self._index, "delta": delta}
            self._piece = EventTemplate(data, "content_block_delta")
        return events + self._piece.fill(text)

    def _call(self, call: ToolCall) -> bytes:
        events = self._begin(_tool_use(call))
        self._open = "tool_use"
        delta = {"type": "input_json_delta", "partial_json": call.arguments}
        return events + _event("content_block_delta", index=self._index, delta=delta) + self._close()

    def _begin(self, block: dict[str, Any]) -> bytes:
        self._index += 1
        return _event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=self._index)


def _event(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)
