"""OpenAI's answers to generations, whole and in chunks, as plain values and bytes."""

from __future__ import annotations

from typing import Any

from lodger.api.generation import Choice
from lodger.api.sse import DONE, SLOT, EventTemplate, event
from lodger.tasks import Delta, Usage


def count(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def chat_choice(index: int, choice: Choice) -> dict[str, Any]:
    message = {"role": "assistant", "content": choice.text}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason}


def text_choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


class ChatChunks:
    """Renders a chat stream so that every client known to us survives it.

    Every delta has a string `content` (LangChain fails on none, LlamaIndex on null); one choice a chunk; the chunk with
    the finish reason holds no text; a chunk without choices comes only to who asked for the usage.
    """

    def __init__(self, head: dict[str, Any], include_usage: bool) -> None:
        self._head = head | {"object": "chat.completion.chunk"}
        self._text: dict[int, EventTemplate] = {}
        self._include_usage = include_usage
        self._usage = Usage()

    def feed(self, delta: Delta) -> bytes:
        self._usage = delta.usage or self._usage
        events = b""
        if delta.index not in self._text:
            self._text[delta.index] = EventTemplate(self._chunk(delta.index, {"content": SLOT}, None))
            events += event(self._chunk(delta.index, {"role": "assistant", "content": ""}, None))
        if delta.text:
            events += self._text[delta.index].fill(delta.text)
        if delta.finish_reason:
            events += event(self._chunk(delta.index, {"content": ""}, delta.finish_reason))
        return events

    def end(self) -> bytes:
        usage = event(self._head | {"choices": [], "usage": count(self._usage)}) if self._include_usage else b""
        return usage + DONE

    def _chunk(self, index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._head | {"choices": [choice]}


class TextChunks:
    """Renders a completions stream."""

    def __init__(self, head: dict[str, Any], include_usage: bool) -> None:
        self._head = head
        self._text: dict[int, EventTemplate] = {}
        self._include_usage = include_usage
        self._usage = Usage()

    def feed(self, delta: Delta) -> bytes:
        self._usage = delta.usage or self._usage
        if not (delta.text or delta.finish_reason):
            return b""
        if delta.finish_reason:
            return event(self._chunk(delta.index, delta.text, delta.finish_reason))
        if delta.index not in self._text:
            self._text[delta.index] = EventTemplate(self._chunk(delta.index, SLOT, None))
        return self._text[delta.index].fill(delta.text)

    def end(self) -> bytes:
        usage = event(self._head | {"choices": [], "usage": count(self._usage)}) if self._include_usage else b""
        return usage + DONE

    def _chunk(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return self._head | {"choices": [text_choice(index, text, finish_reason)]}
