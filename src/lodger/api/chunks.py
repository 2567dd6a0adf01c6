"""OpenAI's answers to generations, whole and in chunks, as plain values and bytes."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from lodger.api.generation import Choice, finished
from lodger.api.sse import DONE, SLOT, EventTemplate, event
from lodger.api.token_logprobs import chat_logprobs, text_length, text_logprobs
from lodger.tasks import Delta, TokenLogprobs, ToolCall, Usage


def count(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def chat_choice(index: int, choice: Choice, *, old_calls: bool) -> dict[str, Any]:
    """`old_calls`: a call is `function_call`, as it was before there were tools."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.text}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    return {
        "index": index,
        "message": message | _calls(choice.calls, old_calls),
        "logprobs": chat_logprobs(choice.logprobs) if choice.logprobs else None,
        "finish_reason": _reason(choice.finish_reason, old_calls),
    }


def text_choice(index: int, choice: Choice) -> dict[str, Any]:
    logprobs = text_logprobs(choice.logprobs, 0) if choice.logprobs else None
    return {"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.finish_reason}


def _calls(calls: Sequence[ToolCall], old: bool) -> dict[str, Any]:
    """Calls whole, with `index` in answers that are no stream too: RAGFlow reads it there."""
    if not calls:
        return {}
    if old:
        return {"function_call": {"name": calls[0].name, "arguments": calls[0].arguments}}
    return {
        "tool_calls": [
            {
                "index": index,
                "id": f"call_{uuid.uuid4().hex[:24]}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for index, call in enumerate(calls)
        ]
    }


def _reason(reason: str | None, old_calls: bool) -> str | None:
    return "function_call" if old_calls and reason == "tool_calls" else reason


class ChatChunks:
    """Renders a chat stream so that every client known to us survives it.

    Every delta has a string `content` (LangChain fails on none, LlamaIndex on null); one choice a chunk; the chunk with
    the finish reason holds no text, but every call (Dify loses calls from chunks before it); a chunk without choices
    comes only to who asked for the usage.
    """

    def __init__(self, head: dict[str, Any], include_usage: bool, *, old_calls: bool = False) -> None:
        self._head = head | {"object": "chat.completion.chunk"}
        self._text: dict[int, EventTemplate] = {}
        self._thought: dict[int, EventTemplate] = {}
        self._called: dict[int, list[ToolCall]] = {}
        self._include_usage, self._old_calls = include_usage, old_calls
        self._usage = Usage()

    def feed(self, delta: Delta) -> bytes:
        self._usage = delta.usage or self._usage
        index, events = delta.index, b""
        if index not in self._text:
            self._text[index] = EventTemplate(self._chunk(index, {"content": SLOT}))
            self._thought[index] = EventTemplate(self._chunk(index, {"content": "", "reasoning_content": SLOT}))
            events += event(self._chunk(index, {"role": "assistant", "content": ""}))
        if delta.reasoning:
            events += self._thought[index].fill(delta.reasoning)
        if delta.logprobs:
            events += event(self._chunk(index, {"content": delta.text}, logprobs=chat_logprobs(delta.logprobs)))
        elif delta.text:
            events += self._text[index].fill(delta.text)
        if delta.calls:
            self._called.setdefault(index, []).extend(delta.calls)
        return events + self._finish(delta) if delta.finish_reason else events

    def end(self) -> bytes:
        usage = event(self._head | {"choices": [], "usage": count(self._usage)}) if self._include_usage else b""
        return usage + DONE

    def _finish(self, delta: Delta) -> bytes:
        assert delta.finish_reason is not None
        calls = self._called.get(delta.index, [])
        reason = _reason(finished(delta.finish_reason, bool(calls)), self._old_calls)
        return event(self._chunk(delta.index, {"content": ""} | _calls(calls, self._old_calls), reason))

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head | {"choices": [choice]}


class TextChunks:
    """Renders a completions stream."""

    def __init__(self, head: dict[str, Any], include_usage: bool) -> None:
        self._head = head
        self._text: dict[int, EventTemplate] = {}
        self._offsets: dict[int, int] = {}  # where the text of the next token begins
        self._include_usage = include_usage
        self._usage = Usage()

    def feed(self, delta: Delta) -> bytes:
        self._usage = delta.usage or self._usage
        if delta.finish_reason or delta.logprobs:
            return event(self._chunk(delta.index, delta.text, delta.finish_reason, self._logprobs(delta)))
        if not delta.text:
            return b""
        if delta.index not in self._text:
            self._text[delta.index] = EventTemplate(self._chunk(delta.index, SLOT))
        return self._text[delta.index].fill(delta.text)

    def end(self) -> bytes:
        usage = event(self._head | {"choices": [], "usage": count(self._usage)}) if self._include_usage else b""
        return usage + DONE

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        tokens: tuple[TokenLogprobs, ...] = delta.logprobs
        offset = self._offsets.get(delta.index, 0)
        self._offsets[delta.index] = offset + text_length(tokens)
        return text_logprobs(tokens, offset) if tokens else None

    def _chunk(self, index: int, text: str, reason: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        return self._head | {"choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}]}
