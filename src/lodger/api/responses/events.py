"""`ResponseEvents`: a response as OpenAI's typed events."""

from __future__ import annotations

from typing import Any

from lodger.api.generation import Choice, finished
from lodger.api.responses.output import (
    Item,
    call_item,
    ended,
    message_item,
    new_id,
    reasoning_item,
    reasoning_part,
    status_of,
    text_part,
)
from lodger.api.sse import event
from lodger.api.token_logprobs import chat_logprobs
from lodger.tasks import Delta, ToolCall, Usage

_TEXT, _THOUGHT = "response.output_text", "response.reasoning_text"


class ResponseEvents:
    """Renders one answer: its thought, then its text, each an item that opens with its first piece; calls when it ends.

    Args:
        head: the response without what its end makes known.
    """

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = head
        self._number = 0  # of the next event
        self._items: list[Item] = []  # those that are whole
        self._open: tuple[str, str] | None = None  # id of the item that is not, and what its events are called
        self._told = Choice()  # what the open item has told
        self._calls: list[ToolCall] = []
        self._usage = Usage()

    def feed(self, delta: Delta) -> bytes:
        self._usage = delta.usage or self._usage
        self._calls += delta.calls
        events = b"" if self._number else self._begin()
        if delta.reasoning:
            events += self._piece(_THOUGHT, delta.reasoning, {})
            self._told.thoughts.append(delta.reasoning)
        if delta.text or delta.logprobs:
            logprobs = {"logprobs": chat_logprobs(delta.logprobs)["content"]}
            events += self._piece(_TEXT, delta.text, logprobs)
            self._told.parts.append(delta.text)
            self._told.logprobs += delta.logprobs
        return events + self._finish(delta) if delta.finish_reason else events

    def end(self) -> bytes:
        return b""

    def _begin(self) -> bytes:
        begun = self._head | {"status": "in_progress", "output": [], "usage": None}
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def _finish(self, delta: Delta) -> bytes:
        assert delta.finish_reason is not None
        reason = finished(delta.finish_reason, bool(self._calls))
        events = b""
        if not self._open and not self._calls:
            events += self._piece(_TEXT, "", {"logprobs": []})
        events += self._close(status_of(reason)) + b"".join(map(self._call, self._calls))
        response = ended(self._head, self._items, reason, self._usage)
        return events + self._event(f"response.{response['status']}", response=response)

    def _piece(self, kind: str, text: str, more: dict[str, Any]) -> bytes:
        """More of an item, which is opened if need be; another one that is open ends here."""
        events = b""
        if self._open is None or self._open[1] != kind:
            events = self._close("completed") + self._open_item(kind)
        assert self._open is not None
        if text or more.get("logprobs"):
            events += self._part_event(f"{kind}.delta", self._open[0], delta=text, **more)
        return events

    def _open_item(self, kind: str) -> bytes:
        id = new_id("msg" if kind == _TEXT else "rs")
        self._open = (id, kind)
        item: Item = message_item(id, "", (), "in_progress") if kind == _TEXT else reasoning_item(id, "")
        part = text_part("") if kind == _TEXT else reasoning_part("")
        added = item | {"content": [], "status": "in_progress"}
        return self._item_event("added", added) + self._part_event("response.content_part.added", id, part=part)

    def _close(self, status: str) -> bytes:
        """The open item is whole."""
        if self._open is None:
            return b""
        id, kind = self._open
        told, self._open, self._told = self._told, None, Choice()
        if kind == _TEXT:
            item, part = message_item(id, told.text, told.logprobs, status), text_part(told.text, told.logprobs)
            done = self._part_event(f"{kind}.done", id, text=told.text, logprobs=part["logprobs"])
        else:
            item, part = reasoning_item(id, told.reasoning), reasoning_part(told.reasoning)
            done = self._part_event(f"{kind}.done", id, text=told.reasoning)
        done += self._part_event("response.content_part.done", id, part=part) + self._item_event("done", item)
        self._items.append(item)
        return done

    def _call(self, call: ToolCall) -> bytes:
        item = call_item(new_id("fc"), call)
        place = {"item_id": item["id"], "output_index": len(self._items)}
        kind, arguments = "response.function_call_arguments", item["arguments"]
        events = self._item_event("added", item | {"arguments": "", "status": "in_progress"})
        events += self._event(f"{kind}.delta", **place, delta=arguments)
        events += self._event(f"{kind}.done", **place, name=item["name"], arguments=arguments)
        events += self._item_event("done", item)
        self._items.append(item)
        return events

    def _item_event(self, what: str, item: Item) -> bytes:
        return self._event(f"response.output_item.{what}", output_index=len(self._items), item=item)

    def _part_event(self, kind: str, id: str, **fields: Any) -> bytes:
        return self._event(kind, item_id=id, output_index=len(self._items), content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)
