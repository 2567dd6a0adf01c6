"""`Host`: the models of one worker process, and the loop that answers the gateway's messages."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

from lodger.engines.base import Engine, Model
from lodger.errors import InternalError, LodgerError, UidTaken, UnknownModel
from lodger.ipc import messages as m
from lodger.ipc.channel import Channel
from lodger.log import request_id
from lodger.tasks import Delta
from lodger.units import gib

_HEARTBEAT_SECONDS = 1.0
_log = logging.getLogger("lodger.worker")
Result = TypeVar("Result")
Request = m.Load | m.Unload | m.Sleep | m.Wake | m.Generate | m.Embed | m.Rerank | m.Spell


class Host:
    """Answers every request in a task of its own. One model at a time is loaded, unloaded, put to sleep or woken, in a
    thread: what one gives back another might be just taking."""

    def __init__(self, channel: Channel[m.ToWorker], engine: Engine) -> None:
        self._channel = channel
        self._engine = engine
        self._models: dict[str, Model] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._loading = asyncio.Lock()
        self._deltas: list[tuple[int, Delta]] = []  # to be sent at the end of this turn of the event loop

    async def serve(self) -> int:
        """Until the gateway says `Shutdown` or is gone (0), or the engine cannot go on (1): the process's exit code."""
        listening = asyncio.create_task(self._listen())
        beating = asyncio.create_task(self._beat())
        await asyncio.wait([listening, beating], return_when=asyncio.FIRST_COMPLETED)
        if not listening.done():
            _log.critical("the engine cannot go on", exc_info=beating.exception())
            return 1
        beating.cancel()
        await self._cancel(list(self._tasks.values()))
        await asyncio.to_thread(self._close)
        return 0

    async def _listen(self) -> None:
        while (message := await self._next()) is not None:
            self._accept(message)

    async def _next(self) -> Request | m.Cancel | None:
        """The next message to act on; None when it is time to end."""
        while True:
            try:
                message = await self._channel.receive()
            except LodgerError as error:  # one unreadable frame; the gateway logs what it sent
                _log.error("a frame was skipped: %s", error.text)
                continue
            return None if isinstance(message, m.Shutdown) else message

    def _accept(self, message: Request | m.Cancel) -> None:
        if not isinstance(message, m.Cancel):
            task = self._tasks[message.id] = asyncio.create_task(self._answer(message))
            task.add_done_callback(lambda _: self._tasks.pop(message.id, None))
        elif message.id in self._tasks:
            self._tasks[message.id].cancel()

    async def _answer(self, message: Request) -> None:
        """Work on one message and say what became of it."""
        request_id.set(f"{_uid(message)}/{message.id}")
        try:
            await self._work(message)
        except LodgerError as error:
            _log.info("refused: %s", error.text)
            self._fail(message.id, error)
        except ConnectionResetError:
            _log.info("the gateway is gone")
        except Exception:  # border: whatever goes wrong with a message from the gateway ends that request alone
            _log.exception("a defect of ours")
            defect = InternalError("The model's process failed at this request.", hint=f"Its log: {request_id.get()}.")
            self._fail(message.id, defect)

    async def _work(self, message: Request) -> None:
        match message:
            case m.Load():
                await self._load(message)
            case m.Unload():
                async with self._loading:
                    model = self._models.pop(message.uid, None)
                    if model is not None:
                        await _apart(model.close)
                await self._channel.send(m.Done(message.id))
            case m.Sleep():
                await self._turn(message, partial(self._model(message.uid).sleep, keep=message.keep))
            case m.Wake():
                await self._turn(message, self._model(message.uid).wake)
            case m.Generate():
                await self._generate(message)
            case m.Embed():
                await self._channel.send(
                    m.Vectors(message.id, await self._model(message.task.model).embed(message.task))
                )
            case m.Rerank():
                await self._channel.send(
                    m.Scores(message.id, await self._model(message.task.model).rerank(message.task))
                )
            case m.Spell():
                tokens = await self._model(message.task.model).tokens(message.task)
                await self._channel.send(m.Spelt(message.id, tokens))

    async def _load(self, message: m.Load) -> None:
        uid = message.request.spec.uid
        async with self._loading:
            if uid in self._models:
                raise UidTaken(f"{uid} is loaded here already.")
            _log.info("loading %s", message.request.facts.name)
            model = await _apart(partial(self._engine.load, message.request, self._progress(message.id)))
            self._models[uid] = model
        info = model.info
        parts = ", ".join(f"{part} {gib(size)}" for part, size in info.memory.items())
        _log.info("ready in %.1f s: %s, %d tokens, %s", info.load_seconds, info.dtype, info.context_length, parts)
        await self._channel.send(m.Loaded(message.id, info))

    async def _turn(self, message: m.Sleep | m.Wake, turn: Callable[[], None]) -> None:
        async with self._loading:
            start = time.monotonic()
            await _apart(turn)
            _log.info("%s in %.2f s", "asleep" if isinstance(message, m.Sleep) else "awake", time.monotonic() - start)
            held = {uid: model.memory() for uid, model in self._models.items()}
        await self._channel.send(m.Held(message.id, held))

    def _progress(self, load: int) -> Callable[[float], None]:
        """To be called from the loading thread; sends a frame for each new hundredth."""
        loop, last = asyncio.get_running_loop(), 0.0

        def report(fraction: float) -> None:
            nonlocal last
            if fraction - last >= 0.01:
                last = fraction
                loop.call_soon_threadsafe(self._channel.post, m.Progress(load, fraction))

        return report

    async def _generate(self, message: m.Generate) -> None:
        await self._model(message.task.model).generate_to(message.task, partial(self._put, message.id))

    def _put(self, id: int, delta: Delta) -> None:
        """Send with all that comes in this turn of the event loop. The gateway reads whatever its clients do, so this
        waits for nobody."""
        if not self._deltas:
            asyncio.get_running_loop().call_soon(self._flush)
        self._deltas.append((id, delta))

    def _flush(self) -> None:
        if self._deltas:
            deltas, self._deltas = self._deltas, []
            self._channel.post(m.Tokens(tuple(deltas)))

    def _fail(self, id: int, error: LodgerError) -> None:
        self._flush()
        self._channel.post(m.Failed(id, error.info()))

    def _model(self, uid: str) -> Model:
        if uid not in self._models:
            raise UnknownModel(f"{uid} is not loaded here.", param="model")
        return self._models[uid]

    async def _beat(self) -> None:
        while True:
            running = {uid: model.running() for uid, model in self._models.items()}
            self._channel.post(m.Heartbeat(self._engine.used(), running))
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    async def _cancel(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _close(self) -> None:
        for model in self._models.values():
            model.close()
        self._engine.close()


async def _apart(turn: Callable[[], Result]) -> Result:
    """In a thread that ends with it: what libraries of the GPU hold for each thread goes to the next one then."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="turn")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, copy_context().run, turn)
    finally:
        thread.shutdown(wait=False)


def _uid(message: Request) -> str:
    match message:
        case m.Load():
            return message.request.spec.uid
        case m.Unload() | m.Sleep() | m.Wake():
            return message.uid
        case _:
            return message.task.model
