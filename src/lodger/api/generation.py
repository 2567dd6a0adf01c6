"""From the deltas of one or several generations to whole answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

import msgspec

from lodger.api.disconnect import stop
from lodger.api.measure import Measured
from lodger.service import Service
from lodger.tasks import ChatTask, Delta, FinishReason, GenerateTask, Usage


@dataclass
class Choice:
    """One of the `n` answers, as far as it has come."""

    parts: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)


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
            choice = choices.setdefault(delta.index, Choice())
            choice.parts.append(delta.text)
            choice.finish_reason = delta.finish_reason or choice.finish_reason
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
    prompt_tokens = completion_tokens = 0
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
                    prompt_tokens += delta.usage.prompt_tokens
                    completion_tokens += delta.usage.completion_tokens
                yield msgspec.structs.replace(delta, index=number * n + delta.index, usage=None)
        yield Delta(index=len(streams) * n - 1, usage=Usage(prompt_tokens, completion_tokens))
    finally:
        await stop(*pending)
        for stream in streams:
            await stream.aclose()
