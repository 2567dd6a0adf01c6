"""From the deltas of one or several generations to whole answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from operator import add
from typing import cast

import msgspec

from lodger.api.disconnect import stop
from lodger.api.measure import Measured
from lodger.errors import Unsupported
from lodger.service import Service
from lodger.tasks import ChatTask, Delta, FinishReason, GenerateTask, TokenLogprobs, ToolCall, Usage


@dataclass
class Choice:
    """One of the `n` answers, as far as it has come."""

    parts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stopped_by: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    @property
    def reasoning(self) -> str:
        return "".join(self.thoughts)

    def add(self, delta: Delta) -> None:
        self.parts.append(delta.text)
        self.thoughts.append(delta.reasoning)
        self.calls += delta.calls
        self.logprobs += delta.logprobs
        if delta.finish_reason is not None:
            self.finish_reason = finished(delta.finish_reason, bool(self.calls))
            self.stopped_by = delta.stopped_by


def finished(reason: FinishReason, called: bool) -> FinishReason:
    """An answer that ends by itself after calling a tool has ended for that."""
    return "tool_calls" if called and reason == "stop" else reason


def check_tools(service: Service, task: ChatTask) -> None:
    """
    Raises:
        Unsupported: there are tools, and the model would never hear of them.
    """
    if task.tools and (facts := service.model(task.model).facts) and not facts.tools:
        raise Unsupported(f"The chat template of {task.model} takes no tools.", param="tools")


def generate(service: Service, tasks: Sequence[GenerateTask]) -> AsyncGenerator[Delta, None]:
    """Deltas of all tasks as they come. Choices of the second task follow those of the first, and so on; the usage is
    the sum. Closing the generator cancels every task."""
    streams = [_measured(service, task) for task in tasks]
    return streams[0] if len(streams) == 1 else _merge(streams, tasks[0].n)


async def collect(deltas: AsyncGenerator[Delta, None]) -> tuple[list[Choice], Usage]:
    """Every choice in order of its index, and the usage of the whole request."""
    choices: dict[int, Choice] = {}
    usage = Usage()
    async with aclosing(deltas):
        async for delta in deltas:
            choices.setdefault(delta.index, Choice()).add(delta)
            usage = delta.usage or usage
    return [choices[index] for index in sorted(choices)], usage


async def _measured(service: Service, task: GenerateTask) -> AsyncGenerator[Delta, None]:
    with Measured("chat" if isinstance(task, ChatTask) else "completion", task.model) as measured:
        async with aclosing(cast(AsyncGenerator[Delta, None], service.generate(task))) as deltas:
            async for delta in deltas:
                measured.delta(delta)
                yield delta


async def _merge(streams: list[AsyncGenerator[Delta, None]], n: int) -> AsyncGenerator[Delta, None]:
    pending = {asyncio.ensure_future(anext(stream)): number for number, stream in enumerate(streams)}
    usage = Usage()
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                number = pending.pop(future)
                if isinstance(future.exception(), StopAsyncIteration):
                    continue
                delta = future.result()
                pending[asyncio.ensure_future(anext(streams[number]))] = number
                if delta.usage is not None:
                    usage = _sum(usage, delta.usage)
                yield msgspec.structs.replace(delta, index=number * n + delta.index, usage=None)
        yield Delta(index=len(streams) * n - 1, usage=usage)
    finally:
        await stop(*pending)
        for stream in streams:
            await stream.aclose()


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(*map(add, msgspec.structs.astuple(one), msgspec.structs.astuple(other)))
