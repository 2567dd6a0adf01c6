"""`RemoteWorker`: a worker process seen through its socket."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import msgspec

from lodger.engines.base import LoadedInfo, LoadRequest
from lodger.errors import ErrorInfo, InternalError, LodgerError, from_info
from lodger.ipc import messages as m
from lodger.ipc.channel import Channel
from lodger.tasks import Delta, EmbedResult, EmbedTask, GenerateTask, RerankResult, RerankTask, TokensTask

_log = logging.getLogger("lodger.supervisor")
Answer = m.Progress | m.Loaded | m.Vectors | m.Scores | m.Spelt | m.Done | m.Held | m.Failed
_Answers = asyncio.Queue["Answer"]


class _Deltas:
    """What one caller has not taken yet of its generation. Deltas of one choice that wait together become one: a caller
    that is behind gets longer pieces instead of more of them, and holds no more than the text of its answer."""

    def __init__(self) -> None:
        self._waiting: dict[int, Delta] = {}  # index of the choice -> its delta, the latest arrival last
        self._end: Answer | None = None
        self._caller: asyncio.Future[None] | None = None

    def put(self, delta: Delta) -> None:
        if (before := self._waiting.pop(delta.index, None)) is not None:
            delta = _joined(before, delta)
        self._waiting[delta.index] = delta
        self._wake()

    def put_nowait(self, answer: Answer) -> None:
        """It ends with this one."""
        self._end = answer
        self._wake()

    async def get(self) -> Delta | Answer:
        while not self._waiting:
            if self._end is not None:
                return self._end
            self._caller = asyncio.get_running_loop().create_future()
            await self._caller
        return self._waiting.pop(next(iter(self._waiting)))

    def _wake(self) -> None:
        if self._caller is not None and not self._caller.done():
            self._caller.set_result(None)


class RemoteWorker:
    """Requests out, answers back. Every method raises `WorkerDown` once the worker is known to be lost."""

    def __init__(self, channel: Channel[m.ToGateway]) -> None:
        self._channel = channel
        self._ids = itertools.count(1)
        self._calls: dict[int, _Answers | _Deltas] = {}
        self._lost: ErrorInfo | None = None
        self.used = 0  # bytes it holds, as it says
        self.memory: dict[str, dict[str, int]] = {}  # uid -> bytes by part, as last told
        self.heard = 0  # messages received
        self.loading = False

    @property
    def busy(self) -> bool:
        """Whether anybody waits for an answer."""
        return bool(self._calls)

    @property
    def lost(self) -> bool:
        """Whether `fail` was called."""
        return self._lost is not None

    async def greet(self) -> int | None:
        """Wait for the worker's Hello: the version of its messages; None when it ended before."""
        hello = await self._channel.receive()
        return hello.version if isinstance(hello, m.Hello) else None

    async def run(self) -> None:
        """Hand every answer to whoever waits for it, until the worker closes its end."""
        while True:
            try:
                message = await self._channel.receive()
            except LodgerError as error:
                _log.error("a frame of the worker was skipped: %s", error.text)
                continue
            if message is None:
                return
            self.heard += 1
            self._take(message)

    def _take(self, message: m.ToGateway) -> None:
        if isinstance(message, m.Tokens):
            self._hand_out(message)
        elif isinstance(message, m.Heartbeat):
            self.used = message.used
        elif not isinstance(message, m.Hello) and message.id in self._calls:  # else it crossed our Cancel
            self._calls[message.id].put_nowait(message)
            if not isinstance(message, m.Progress):
                del self._calls[message.id]

    def _hand_out(self, message: m.Tokens) -> None:
        for id, delta in message.deltas:
            deltas = self._calls.get(id)
            if isinstance(deltas, _Deltas):  # else it crossed our Cancel
                deltas.put(delta)
                if delta.usage is not None:
                    del self._calls[id]

    def fail(self, error: LodgerError) -> None:
        """The worker is lost: end everything in flight with `error`, and refuse what comes later."""
        self._lost = error.info()
        for id, answers in self._calls.items():
            answers.put_nowait(m.Failed(id, self._lost))
        self._calls.clear()

    def shutdown(self) -> None:
        """Ask it to end; `run` returns when it has."""
        self._channel.post(m.Shutdown())

    async def load(self, request: LoadRequest, progress: Callable[[float], None]) -> LoadedInfo:
        """Load a model; `progress` is told 0..1.

        Raises:
            ModelProblem, OutOfMemory, WorkerDown.
        """
        answers = _Answers()
        with self._call(answers) as id:
            self.loading = True
            try:
                await self._send(m.Load(id, request))
                while isinstance(answer := await answers.get(), m.Progress):
                    progress(answer.fraction)
            finally:
                self.loading = False
            if not isinstance(answer, m.Loaded):
                _refuse(answer)
            self.memory[request.spec.uid] = answer.info.memory
            return answer.info

    async def sleep(self, uid: str, *, keep: bool) -> None:
        """Returns when the model's bytes are back. `keep`: its weights may stay in RAM."""
        answers = _Answers()
        with self._call(answers) as id:
            await self._turn(m.Sleep(id, uid, keep), answers)

    async def wake(self, uid: str) -> None:
        """Returns when the model serves again.

        Raises:
            OutOfMemory, ModelProblem, WorkerDown.
        """
        answers = _Answers()
        with self._call(answers) as id:
            await self._turn(m.Wake(id, uid), answers)

    async def _turn(self, message: m.Sleep | m.Wake, answers: _Answers) -> None:
        self.loading = True  # without RAM for the weights, waking reads them like a load
        try:
            await self._send(message)
            answer = await answers.get()
        finally:
            self.loading = False
        if not isinstance(answer, m.Held):
            _refuse(answer)
        self.memory = answer.memory

    async def unload(self, uid: str) -> None:
        """Returns when the model's bytes are back."""
        answers = _Answers()
        with self._call(answers) as id:
            await self._send(m.Unload(id, uid))
            answer = await answers.get()
            if not isinstance(answer, m.Done):
                _refuse(answer)

    async def generate(self, task: GenerateTask) -> AsyncIterator[Delta]:
        """Closing the iterator cancels the request in the worker."""
        deltas = _Deltas()
        with self._call(deltas, cancel=True) as id:
            await self._send(m.Generate(id, task))
            while True:
                delta = await deltas.get()
                if not isinstance(delta, Delta):
                    _refuse(delta)
                yield delta
                if delta.usage is not None:
                    return

    async def embed(self, task: EmbedTask) -> EmbedResult:
        answers = _Answers()
        with self._call(answers, cancel=True) as id:
            await self._send(m.Embed(id, task))
            answer = await answers.get()
            return answer.result if isinstance(answer, m.Vectors) else _refuse(answer)

    async def rerank(self, task: RerankTask) -> RerankResult:
        answers = _Answers()
        with self._call(answers, cancel=True) as id:
            await self._send(m.Rerank(id, task))
            answer = await answers.get()
            return answer.result if isinstance(answer, m.Scores) else _refuse(answer)

    async def tokens(self, task: TokensTask) -> tuple[tuple[str, ...], ...]:
        answers = _Answers()
        with self._call(answers, cancel=True) as id:
            await self._send(m.Spell(id, task))
            answer = await answers.get()
            return answer.tokens if isinstance(answer, m.Spelt) else _refuse(answer)

    @contextmanager
    def _call(self, answers: _Answers | _Deltas, *, cancel: bool = False) -> Iterator[int]:
        """The id of a request whose answers go there. With `cancel`, leaving it unanswered cancels it."""
        if self._lost is not None:
            raise from_info(self._lost)
        id = next(self._ids)
        self._calls[id] = answers
        try:
            yield id
        finally:
            if self._calls.pop(id, None) is not None and cancel:
                self._channel.post(m.Cancel(id))

    async def _send(self, message: msgspec.Struct) -> None:
        with suppress(ConnectionResetError):  # `fail` follows, and says why, to whoever waits for the answer
            await self._channel.send(message)


def _joined(first: Delta, second: Delta) -> Delta:
    return Delta(
        second.index,
        first.text + second.text,
        second.finish_reason,
        second.usage,
        first.reasoning + second.reasoning,
        first.calls + second.calls,
        first.logprobs + second.logprobs,
        second.stopped_by,
    )


def _refuse(answer: Answer) -> NoReturn:
    """Raise what came instead of the answer expected."""
    if isinstance(answer, m.Failed):
        raise from_info(answer.error)
    raise InternalError(f"The worker sent a {type(answer).__name__} where another answer was due.")
