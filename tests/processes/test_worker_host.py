"""The worker's loop: what its messages may do at the same time, and what not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from service_world import make_facts

from lodger.budget import Budget
from lodger.engines.base import LoadRequest
from lodger.engines.echo import EchoEngine, EchoModel
from lodger.ipc import messages as m
from lodger.spec import ModelSpec
from lodger.worker.host import Host


class Slow(EchoEngine):
    """Loads "slow" only when it is told to, and notes what happens on the device in which order."""

    def __init__(self) -> None:
        super().__init__("cpu", word_seconds=0)
        self.noted: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def load(self, request: LoadRequest, progress: Callable[[float], None]) -> EchoModel:
        uid, noted = request.spec.uid, self.noted
        noted.append(f"{uid} loads")
        if uid == "slow":
            self.begun.set()
            assert self.go_on.wait(20)
        model = super().load(request, progress)
        close = model.close

        def closing() -> None:
            noted.append(f"{uid} closes")
            close()

        model.close = closing  # type: ignore[method-assign]
        noted.append(f"{uid} is loaded")
        return model


class Wire:
    """The gateway's end, without a socket."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.answers: list[Any] = []
        self.news = asyncio.Event()

    async def receive(self) -> Any:
        return await self.inbox.get()

    def post(self, message: Any) -> None:
        self.answers.append(message)
        self.news.set()

    async def send(self, message: Any) -> None:
        self.post(message)

    async def answered(self, kind: type, id: int) -> None:
        while not any(isinstance(one, kind) and one.id == id for one in self.answers):
            self.news.clear()
            await self.news.wait()


def load(id: int, uid: str) -> m.Load:
    spec = ModelSpec(uid=uid)
    return m.Load(
        id, LoadRequest(spec=spec, facts=make_facts("chat"), budget=Budget(weights=0), device="cpu", dtype=None)
    )


@pytest.mark.parametrize("turn", [m.Unload(3, "quick"), m.Unload(3, "slow")], ids=["another", "the same"])
def test_nothing_is_given_back_while_a_model_loads(turn: m.Unload) -> None:
    async def main() -> list[str]:
        wire, engine = Wire(), Slow()
        serving = asyncio.create_task(Host(wire, engine).serve())  # type: ignore[arg-type]
        wire.inbox.put_nowait(load(1, "quick"))
        await wire.answered(m.Loaded, 1)
        wire.inbox.put_nowait(load(2, "slow"))
        await asyncio.to_thread(engine.begun.wait, 20)
        wire.inbox.put_nowait(turn)
        while not wire.inbox.empty():
            await asyncio.sleep(0)
        for _ in range(20):  # as many turns of the event loop as it would take
            await asyncio.sleep(0)
        assert engine.noted[-1] == "slow loads"
        engine.go_on.set()
        await wire.answered(m.Loaded, 2)
        await wire.answered(m.Done, 3)
        noted = list(engine.noted)
        wire.inbox.put_nowait(m.Shutdown())
        assert await serving == 0
        return noted

    assert asyncio.run(main())[2:] == ["slow loads", "slow is loaded", f"{turn.uid} closes"]
