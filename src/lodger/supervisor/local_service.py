"""`LocalService`: the `Service` of one machine, made of a table of models, a plan and workers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import cast

import msgspec

import lodger
from lodger import log
from lodger.catalogue.registered import Registered, parse
from lodger.catalogue.registrable import catalogue_registrations
from lodger.engines import engine_name
from lodger.errors import (
    Cancelled,
    Draining,
    ModelFailed,
    ModelLoading,
    Overloaded,
    UidTaken,
    UnknownModel,
    WorkerDown,
    from_info,
)
from lodger.paths import Home
from lodger.plan.values import Plan
from lodger.service import ModelStatus, ServerStatus
from lodger.spec import ModelSpec, Registration, check_uid
from lodger.supervisor.launcher import Launcher
from lodger.supervisor.placement import Placement
from lodger.supervisor.record import Record
from lodger.supervisor.remote import RemoteWorker
from lodger.supervisor.replica import Replica
from lodger.supervisor.sleeper import Sleeper
from lodger.supervisor.supervisor import Supervisor
from lodger.tasks import Delta, EmbedResult, EmbedTask, GenerateTask, Kind, RerankResult, RerankTask, TokensTask

MAX_REQUESTS = 512  # of one replica of a model, in work or waiting
HANG_SECONDS = 20.0
_STOP_SECONDS = 10.0  # for a worker to give everything back before it is killed
_SEARCHED_LINES = 5000  # of a worker's log, for those of one model


class LocalService:
    """Serves the models of one home on this machine. Make it inside the event loop that serves.

    Args:
        address: where clients reach it, as `status` tells it.
        reserve: bytes to leave to others; None for the planner's own.
        device: "cpu", "cuda:0", "cuda" for any GPU, ...; None for every GPU that the machine has, else its CPU.
        engine: runs every model, whatever engine its spec names: a name of `lodger.engines` or "module:Class".
        placement: where it learns what fits; None for this machine's folders and devices.
        silence: seconds without a sign of a busy worker after which it is taken for hung and replaced.
    """

    def __init__(
        self,
        home: Home,
        *,
        address: str = "",
        reserve: int | None = None,
        device: str | None = None,
        engine: str | None = None,
        placement: Placement | None = None,
        silence: float = HANG_SECONDS,
    ) -> None:
        self._home = home
        self._address = address
        self._engine = engine
        self._started = time.time()
        self._records: dict[str, Record] = {}
        self._registered = Registered(home.registrations)
        self._supervisor = Supervisor(home, self._records, silence=silence)
        placement = placement or Placement(home, device=device, reserve=reserve)
        self._launcher = Launcher(self._records, placement, self._supervisor)
        self._sleeper = Sleeper(self._records, self._launcher, self._supervisor)
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    async def generate(self, task: GenerateTask) -> AsyncIterator[Delta]:
        async with (
            self._request(task.model) as remote,
            aclosing(cast("AsyncGenerator[Delta, None]", remote.generate(task))) as deltas,
        ):
            async for delta in deltas:
                yield delta

    async def embed(self, task: EmbedTask) -> EmbedResult:
        async with self._request(task.model) as remote:
            return await remote.embed(task)

    async def rerank(self, task: RerankTask) -> RerankResult:
        async with self._request(task.model) as remote:
            return await remote.rerank(task)

    async def tokens(self, task: TokensTask) -> tuple[tuple[str, ...], ...]:
        async with self._request(task.model) as remote:
            return await remote.tokens(task)

    async def launch(self, spec: ModelSpec, *, wait: bool = True) -> ModelStatus:
        """Plan and load a model. The uid of a failed model may be used again.

        With `wait`, returns when the model is ready; a model that is refused before anything of it is loaded leaves no
        trace. Without, returns at once and the model's status tells what becomes of it.
        """
        self._refuse_when_draining()
        check_uid(spec.uid)
        spec = self._registered.launched(spec)
        former = self._records.get(spec.uid)
        if former is not None and former.life.state != "failed":
            raise UidTaken(
                f"The uid {spec.uid!r} is taken: that model is {former.life.state}.",
                hint="Choose another uid, or terminate that model first.",
                param="model_uid",
            )
        record = self._records[spec.uid] = self._record(spec)
        self._launcher.wake()
        self._sleeper.watch()
        if wait:
            await self._until_ready(record, former)
        return record.status()

    def _record(self, spec: ModelSpec) -> Record:
        meant = engine_name(spec.engine)
        if spec.engine is not None and spec.engine.lower() != meant:
            note = f"The engine {spec.engine!r} changes nothing: Lodger's own runtime serves this model."
            spec = msgspec.structs.replace(spec, notes=(*spec.notes, note))
        return Record(spec, self._engine or meant)

    async def _until_ready(self, record: Record, former: Record | None) -> None:
        life = await record.settled()
        uid = record.spec.uid
        if life.state == "stopping":
            raise Cancelled(f"{uid} was terminated while it was loading.")
        if life.error is not None:
            if not record.replicas and self._records.get(uid) is record:
                del self._records[uid]
                if former is not None:
                    self._records[uid] = former
            raise from_info(life.error)

    async def terminate(self, uid: str) -> None:
        record = self._known(uid)
        await self._supervisor.unload(record)
        if self._records.get(uid) is record:
            del self._records[uid]
        await self._supervisor.release()

    async def sleep(self, uid: str) -> ModelStatus:
        record = self._serving(uid)
        await self._sleeper.sleep(record)
        return record.status()

    async def wake(self, uid: str) -> ModelStatus:
        record = self._serving(uid)
        await self._sleeper.wake(record)
        return record.status()

    def models(self) -> list[ModelStatus]:
        return [record.status() for record in self._records.values()]

    def model(self, uid: str) -> ModelStatus:
        return self._known(uid).status()

    async def status(self) -> ServerStatus:
        return ServerStatus(
            version=lodger.__version__,
            pid=os.getpid(),
            started=self._started,
            address=self._address,
            home=str(self._home.root),
            plan=await self._launcher.plans(),
            workers=self._supervisor.workers(),
            models=tuple(self.models()),
        )

    async def plan(self, specs: tuple[ModelSpec, ...]) -> tuple[Plan, ...]:
        return await self._launcher.plan(specs)

    async def registrations(self, kind: Kind) -> list[Registration]:
        known = await asyncio.to_thread(catalogue_registrations, kind, self._home.models)
        return known + self._registered.of(kind)

    async def register(self, kind: Kind, model: str, *, persist: bool) -> None:
        self._registered.add(await asyncio.to_thread(parse, kind, model), persist=persist)

    async def unregister(self, kind: Kind, name: str) -> None:
        self._registered.remove(kind, name)

    def logs(self, uid: str | None, lines: int) -> list[str]:
        """Last log lines of one model, from its worker's log, or of the server."""
        if uid is None:
            return log.tail(self._home.server_log, lines)
        record = self._known(uid)
        if lines <= 0:
            return []
        found = [
            log.concerning(uid, log.tail(file, max(lines, _SEARCHED_LINES)))[-lines:]
            for file in self._supervisor.log_files(record)
        ]
        return log.in_order(found)[-lines:]

    async def drain(self, timeout: float) -> None:
        """Take nothing new, let what runs finish for `timeout` seconds at most, then end the workers."""
        self._draining = True
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout)
        await self.close()

    async def close(self) -> None:
        """End the workers now; what still runs ends with `Draining`."""
        self._draining = True
        await self._sleeper.stop()
        await self._launcher.stop()
        await self._supervisor.stop(_STOP_SECONDS)

    @asynccontextmanager
    async def _request(self, uid: str) -> AsyncIterator[RemoteWorker]:
        """One request of a model that serves, counted. One that sleeps is woken for it."""
        self._refuse_when_draining()
        record = self._known(uid)
        if record.asking >= MAX_REQUESTS:
            raise _overloaded(record)
        self._idle.clear()
        try:
            await self._sleeper.rouse(record)
            replica, remote = self._admit(record)
            with record.counted(replica):
                yield remote
        except (Cancelled, Draining) as error:  # not by its caller: the model was closed under it, or its process was
            if self._draining and isinstance(error, Draining):
                raise
            raise UnknownModel(f"{uid} was terminated before this request was done.", param="model") from error
        finally:
            if not any(other.running for other in self._records.values()):
                self._idle.set()

    def _admit(self, record: Record) -> tuple[Replica, RemoteWorker]:
        """The replica with the least to do.

        Raises:
            UnknownModel, ModelLoading, ModelFailed, WorkerDown, Overloaded.
        """
        self._check(record)
        replica = record.pick()
        if replica is None or replica.remote is None:
            raise self._unknown(record.spec.uid)
        if replica.running >= MAX_REQUESTS:
            raise _overloaded(record)
        return replica, replica.remote

    def _check(self, record: Record) -> None:
        """
        Raises:
            ModelLoading, ModelFailed, WorkerDown.
        """
        uid, life = record.spec.uid, record.life
        if life.state == "loading":
            raise ModelLoading(f"{uid} is loading, {life.progress:.0%} done.", hint="Try again in a moment.")
        if life.state == "failed" and life.error is not None:
            raise ModelFailed(f"{uid} is not served: {life.error.message}", hint=life.error.hint)
        if life.state == "restarting" and life.error is not None:
            raise WorkerDown(
                f"{uid} is being restarted: {life.error.message}",
                hint=life.error.hint,
                retry_after=self._supervisor.retry_after(record),
            )

    def _serving(self, uid: str) -> Record:
        """A model that is ready or asleep."""
        self._refuse_when_draining()
        record = self._known(uid)
        self._check(record)
        return record

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise Draining("The server is stopping.", hint="Try again when it is back.")

    def _known(self, uid: str) -> Record:
        if uid not in self._records:
            raise self._unknown(uid)
        return self._records[uid]

    def _unknown(self, uid: str) -> UnknownModel:
        uids = ", ".join(uid for uid, record in self._records.items() if record.life.state != "stopping")
        return UnknownModel(
            f"There is no model with the uid {uid[:100]!r}.",
            hint=f"There are: {uids}." if uids else "None was launched yet.",
            param="model",
        )


def _overloaded(record: Record) -> Overloaded:
    return Overloaded(f"{record.running} requests are in work or waiting at {record.spec.uid}.", retry_after=1)
