"""From a worker's event loop to who reads an answer: nothing lost, nothing out of order, nobody waits for another."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service_world import chat, run

from lodger.errors import OutOfMemory
from lodger.ipc import messages as m
from lodger.ipc.channel import Channel
from lodger.supervisor.remote import RemoteWorker
from lodger.tasks import Delta, GenerateTask, Likely, TokenLogprobs, ToolCall, Usage
from lodger.worker.host import Host

END = Usage(3, 4)
TASK = chat("m", "hi")


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[RemoteWorker, Channel[Any]]]:
    """A gateway's end that hands out what comes, and a worker's end that the test speaks for."""
    ours, theirs = socket.socketpair()
    gateway: Channel[Any] = await Channel.open(ours, m.ToGateway)
    worker: Channel[Any] = await Channel.open(theirs, m.ToWorker)
    remote = RemoteWorker(gateway)
    running = asyncio.create_task(remote.run())
    try:
        yield remote, worker
    finally:
        await worker.close()
        await running


async def begin(
    remote: RemoteWorker, worker: Channel[Any]
) -> tuple[AsyncGenerator[Delta, None], asyncio.Task[Delta], int]:
    """A generation whose first delta is waited for, and its id."""
    deltas = cast("AsyncGenerator[Delta, None]", remote.generate(TASK))
    first = asyncio.ensure_future(anext(deltas))
    asked = await worker.receive()
    assert isinstance(asked, m.Generate)
    return deltas, cast("asyncio.Task[Delta]", first), asked.id


async def heard(remote: RemoteWorker, messages: int) -> None:
    while remote.heard < messages:
        await asyncio.sleep(0)


def test_who_does_not_read_holds_one_delta_and_stops_nobody() -> None:
    async def main() -> None:
        async with connected() as (remote, worker):
            slow, slow_first, slow_id = await begin(remote, worker)
            quick, quick_first, quick_id = await begin(remote, worker)
            read = ""
            for n in range(1000):
                worker.post(m.Tokens(((slow_id, Delta(text=f"{n} ")), (quick_id, Delta(text=f"{n} ")))))
                read += (await (quick_first if n == 0 else anext(quick))).text
            assert read == "".join(f"{n} " for n in range(1000))
            assert (await slow_first).text == "0 "
            assert len(remote._calls[slow_id]._waiting) == 1  # type: ignore[union-attr]
            worker.post(m.Tokens(((slow_id, Delta(finish_reason="stop", usage=END)), (quick_id, Delta(usage=END)))))
            assert (await anext(quick)).usage == END
            last = await anext(slow)
            assert last == Delta(0, "".join(f"{n} " for n in range(1, 1000)), "stop", END)
            assert not remote.busy
            await quick.aclose()
            await slow.aclose()

    run(main())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=30), st.permutations([0, 1, 2]))
def test_however_a_caller_reads_each_choice_is_whole_and_the_usage_comes_last(
    steps: list[tuple[int, bool]], order: list[int]
) -> None:
    """`steps`: whose token comes, and whether the caller reads then. `order`: in which they end."""

    async def main() -> None:
        async with connected() as (remote, worker):
            deltas, first, id = await begin(remote, worker)
            seen: list[Delta] = []
            for n, (index, reads) in enumerate(steps):
                worker.post(m.Tokens(((id, Delta(index, f"{n},")),)))
                await heard(remote, n + 1)
                if reads and (not seen or remote._calls[id]._waiting):  # type: ignore[union-attr]
                    seen.append(await anext(deltas) if seen else await first)
            ends = [Delta(index, "", "length", END if index == order[-1] else None) for index in order]
            worker.post(m.Tokens(tuple((id, end) for end in ends)))
            await heard(remote, len(steps) + 1)
            if not seen:
                seen.append(await first)
            seen += [delta async for delta in deltas]
            for index in range(3):
                whole = "".join(f"{n}," for n, (whose, _) in enumerate(steps) if whose == index)
                assert "".join(delta.text for delta in seen if delta.index == index) == whole
            assert sorted(delta.index for delta in seen if delta.finish_reason) == [0, 1, 2]
            assert [delta.usage for delta in seen].index(END) == len(seen) - 1

    run(main())


def test_what_waits_together_keeps_thought_calls_and_log_probabilities() -> None:
    told = [TokenLogprobs(Likely(n, b"t", -1.0)) for n in range(3)]
    calls = [ToolCall(f"f{n}", "{}") for n in range(2)]

    async def main() -> None:
        async with connected() as (remote, worker):
            deltas, first, id = await begin(remote, worker)
            parts = (
                Delta(reasoning="so ", logprobs=(told[0],)),
                Delta(reasoning="be it"),
                Delta(text="well", calls=(calls[0],), logprobs=(told[1], told[2])),
                Delta(calls=(calls[1],), finish_reason="tool_calls", usage=END, stopped_by="."),
            )
            worker.post(m.Tokens(tuple((id, part) for part in parts)))
            assert await first == Delta(0, "well", "tool_calls", END, "so be it", tuple(calls), tuple(told), ".")
            assert [delta async for delta in deltas] == []

    run(main())


def test_an_error_comes_after_what_was_made_before_it() -> None:
    async def main() -> None:
        async with connected() as (remote, worker):
            deltas, first, id = await begin(remote, worker)
            other, other_first, other_id = await begin(remote, worker)
            worker.post(m.Tokens(((id, Delta(text="half")), (other_id, Delta(text="a")))))
            worker.post(m.Failed(id, OutOfMemory("no room.").info()))
            worker.post(m.Tokens(((other_id, Delta(text="b", usage=END)),)))
            await heard(remote, 3)
            assert (await first).text == "half"
            with pytest.raises(OutOfMemory, match="no room"):
                await anext(deltas)
            assert (await other_first).text + "".join([delta.text async for delta in other]) == "ab"

    run(main())


def test_who_leaves_is_cancelled_and_what_crosses_that_is_dropped() -> None:
    async def main() -> None:
        async with connected() as (remote, worker):
            deltas, first, id = await begin(remote, worker)
            worker.post(m.Tokens(((id, Delta(text="a")),)))
            await first
            await deltas.aclose()
            assert await worker.receive() == m.Cancel(id)
            worker.post(m.Tokens(((id, Delta(text="b")),)))
            await heard(remote, 2)
            assert not remote.busy

    run(main())


class Puts:
    """A model that puts what the test says, all requests in the same turn of the event loop."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()

    async def generate_to(self, task: GenerateTask, put: Callable[[Delta], None]) -> None:
        self.asked += 1
        await self.go.wait()
        put(Delta(text="one"))
        put(Delta(text=" two"))
        if task.n == 2:
            raise OutOfMemory("no room.")
        put(Delta(finish_reason="stop", usage=END))


def test_a_worker_sends_one_message_for_all_that_came_together() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        gateway: Channel[Any] = await Channel.open(ours, m.ToGateway)
        host, model = Host(await Channel.open(theirs, m.ToWorker), cast(Any, None)), Puts()
        host._models["m"] = cast(Any, model)
        listening = asyncio.create_task(host._listen())
        for id in range(3):
            gateway.post(m.Generate(id, chat("m", "hi", n=2 if id == 2 else 1)))
        while model.asked < 3:
            await asyncio.sleep(0)
        model.go.set()
        got = [await gateway.receive(), await gateway.receive()]
        tokens = got[0]
        assert isinstance(tokens, m.Tokens)
        for id in range(3):
            texts = [delta.text for whose, delta in tokens.deltas if whose == id]
            assert texts == (["one", " two"] if id == 2 else ["one", " two", ""])
        assert isinstance(got[1], m.Failed)
        assert got[1].id == 2
        await gateway.close()
        await listening

    run(main())
