"""Answers that a test writes itself."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from lodger.tasks import Delta, GenerateTask, Usage

ANSWERED = Delta(0, "Yes.", "stop", Usage(1, 1))


def says(*deltas: Delta) -> Callable[[GenerateTask], AsyncGenerator[Delta, None]]:
    """A script for `FakeService` that gives these deltas to every task."""

    async def script(task: GenerateTask) -> AsyncGenerator[Delta, None]:
        for delta in deltas:
            yield delta

    return script


def events(body: bytes) -> list[tuple[str | None, Any]]:
    """The events of a stream: name, if it has one, and data as JSON, or "[DONE]"."""
    found = []
    for block in body.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            data = lines["data"]
            found.append((lines.get("event"), data if data == "[DONE]" else json.loads(data)))
    return found
