"""A `LocalService` with real worker processes and no weights, for the tests of this folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from lodger.catalogue.facts import ModelFacts
from lodger.device.view import DeviceView
from lodger.errors import FolderMissing
from lodger.paths import Home
from lodger.plan.values import Candidate
from lodger.spec import ModelSpec
from lodger.supervisor.local_service import LocalService
from lodger.supervisor.placement import Placement
from lodger.tasks import ChatTask, Kind
from lodger.units import GIB

DEADLINE = 20.0  # seconds for anything that should take a moment: a test that hangs must end
FAULTY = "faulty_engine:FaultyEngine"
UNSTARTABLE = "faulty_engine:UnstartableEngine"
Result = TypeVar("Result")


def make_facts(kind: Kind = "chat", path: str = "/models/fake") -> ModelFacts:
    return ModelFacts(
        path=path,
        kind=kind,
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        parameters=1_000_000,
        stored_bytes={"float32": 4_000_000},
        layers=2,
        hidden_size=64,
        intermediate_size=128,
        attention_heads=4,
        kv_heads=2,
        head_dim=16,
        vocab_size=1000,
        context_length=512,
        dimensions=None if kind == "chat" else 32,
    )


class FakePlacement(Placement):
    """A machine with one big device and every folder but those named "missing"; the planner is the real one."""

    def __init__(self, total: int = 64 * GIB) -> None:
        super().__init__(Home(Path("/nowhere")), device=None, reserve=0)
        self.total = total

    def candidate(self, spec: ModelSpec) -> Candidate:
        if spec.path == "missing":
            raise FolderMissing("There is no folder 'missing'.")
        return Candidate(spec, make_facts(spec.kind or "chat"))

    def devices(self, our_pids: Collection[int]) -> tuple[DeviceView, ...]:
        return (DeviceView(id="cpu", kind="cpu", name="fake", total=self.total, free=self.total),)


@asynccontextmanager
async def serving(home: Path, *, engine: str = "echo", **options: Any) -> AsyncIterator[LocalService]:
    options.setdefault("placement", FakePlacement())
    service = LocalService(Home(home).make(), engine=engine, **options)
    try:
        yield service
    finally:
        await service.close()


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """Run one test's coroutine, to an end."""
    return asyncio.run(asyncio.wait_for(main, 60))


async def until(holds: Callable[[], Any]) -> None:
    """Wait until something that no event tells has come true."""
    limit = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < limit, "it did not happen in time"
        await asyncio.sleep(0.01)


def chat(model: str, text: str, **fields: Any) -> ChatTask:
    return ChatTask(model=model, messages=({"role": "user", "content": text},), **fields)


async def say(service: LocalService, model: str, text: str, **fields: Any) -> str:
    return "".join([delta.text async for delta in service.generate(chat(model, text, **fields))])


def spec(uid: str, **fields: Any) -> ModelSpec:
    return ModelSpec(uid=uid, path="/models/fake", **fields) if "path" not in fields else ModelSpec(uid=uid, **fields)
