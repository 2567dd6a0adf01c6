"""`Sleeper`: gives the memory of models back that nobody uses, and takes it again for who wants them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial

from lodger.errors import DoesNotFit, LodgerError, ModelAsleep, NotReady, OutOfMemory, from_info
from lodger.plan.planner import default_reserve
from lodger.supervisor.launcher import Launcher
from lodger.supervisor.record import Record
from lodger.supervisor.replica import Replica
from lodger.supervisor.state import LoadAsked, Slept, Woken
from lodger.supervisor.supervisor import Supervisor

_LOOK_SECONDS = 1.0  # between two looks at who is idle, at most
_log = logging.getLogger("lodger.supervisor")
_Turns = dict[Record, "asyncio.Task[None]"]


class Sleeper:
    """Puts models to sleep and wakes them, all their replicas together.

    Whoever asks for the same turn of the same model waits for one and the same; who stops waiting does not end it.
    """

    def __init__(self, records: Mapping[str, Record], launcher: Launcher, supervisor: Supervisor) -> None:
        self._records = records
        self._launcher = launcher
        self._supervisor = supervisor
        self._sleeping: _Turns = {}
        self._waking: _Turns = {}
        self._watching: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """There is a new record; look after it if it is to sleep by itself."""
        wanted = any(record.spec.sleep_after is not None for record in self._records.values())
        if wanted and self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        tasks = [*self._sleeping.values(), *self._waking.values(), *filter(None, [self._watching])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def sleep(self, record: Record) -> None:
        """Let the requests in work finish, then put it to sleep. Nothing to do for one that sleeps.

        Raises:
            WorkerDown.
        """
        await _join(self._sleeping, record, self._sleep)

    async def wake(self, record: Record) -> None:
        """Have it serve again. Nothing to do for one that serves.

        Raises:
            DoesNotFit, OutOfMemory: its memory was taken meanwhile; it sleeps on.
            ModelProblem, WorkerDown, ModelFailed.
        """
        await _join(self._waking, record, self._wake)

    async def rouse(self, record: Record) -> None:
        """The same for a request, which may come again later.

        Raises:
            ModelAsleep: its memory was taken meanwhile; with the numbers.
        """
        record.asking += 1
        try:
            while record.sleeps:  # it may be put to sleep again before this hears that it woke
                await self.wake(record)
        except (DoesNotFit, OutOfMemory) as error:
            raise ModelAsleep(f"{record.spec.uid} sleeps and cannot wake: {error.message}", hint=error.hint) from error
        finally:
            record.asking -= 1

    async def _sleep(self, record: Record) -> None:
        record.resting = True
        try:
            await record.until(lambda: not record.working)
            await _all(self._rest, [replica for replica in record.replicas if replica.life.state == "ready"])
        finally:
            record.resting = False
            record.tell()

    async def _rest(self, replica: Replica) -> None:
        keep = await self._fits_ram(replica)
        async with replica.lock:
            if replica.life.state == "ready" and replica.remote is not None:
                await replica.remote.sleep(replica.uid, keep=keep)
                replica.move(Slept())

    async def _fits_ram(self, replica: Replica) -> bool:
        """Whether RAM has room for the weights of a model on a GPU. On a CPU they are what is to be given back."""
        if replica.device == "cpu":
            return False
        ram = next(view for view in await self._launcher.views() if view.kind == "cpu")
        return replica.grant.budget.weights <= ram.free - default_reserve(ram)

    async def _wake(self, record: Record) -> None:
        await record.until(lambda: not record.resting)
        if record.life.state == "asleep":
            await _all(
                partial(self._return, record),
                [replica for replica in record.replicas if replica.life.state == "asleep"],
            )

    async def _return(self, record: Record, replica: Replica) -> None:
        await self._launcher.again(replica)
        try:
            async with replica.lock:
                if replica.remote is not None:
                    await replica.remote.wake(replica.uid)
                    replica.move(Woken())
                else:  # its worker died while it slept
                    replica.move(LoadAsked())
        finally:
            replica.waking = False
        if replica.waits:
            self._supervisor.load_one(replica)
            await record.until(lambda: not replica.waits)
            if replica.life.error is not None:
                raise from_info(replica.life.error)

    async def _watch(self) -> None:
        """From one look to the next."""
        while True:
            records, now = list(self._records.values()), time.monotonic()
            await asyncio.gather(*(self._doze(record) for record in records if _idle(record, now)))
            shortest = min((record.spec.sleep_after or _LOOK_SECONDS for record in records), default=_LOOK_SECONDS)
            await asyncio.sleep(min(_LOOK_SECONDS, shortest / 2))

    async def _doze(self, record: Record) -> None:
        try:
            await self.sleep(record)
        except NotReady as error:
            _log.warning("%s was not put to sleep: %s", record.spec.uid, error.text)


def _idle(record: Record, now: float) -> bool:
    after = record.spec.sleep_after
    unused = record.life.state == "ready" and not record.running
    return unused and after is not None and now - record.idle_since >= after


async def _join(turns: _Turns, record: Record, turn: Callable[[Record], Coroutine[None, None, None]]) -> None:
    """Wait for the record's turn, which begins now unless it has begun."""
    if record not in turns:
        turns[record] = asyncio.create_task(turn(record))
        turns[record].add_done_callback(partial(_done, turns, record))
    await asyncio.shield(turns[record])


def _done(turns: _Turns, record: Record, task: asyncio.Task[None]) -> None:
    del turns[record]
    if not task.cancelled():
        task.exception()  # whoever still waits gets it; nobody has to


async def _all(turn: Callable[[Replica], Coroutine[None, None, None]], replicas: Sequence[Replica]) -> None:
    """Turn all of them; the first error is raised if it became true of none."""
    outcomes = await asyncio.gather(*map(turn, replicas), return_exceptions=True)
    errors = [outcome for outcome in outcomes if outcome is not None]
    for error in errors:
        if not isinstance(error, LodgerError) or len(errors) == len(replicas):
            raise error
