"""`Supervisor`: puts models into workers, one worker per device and engine, and puts them back after a crash."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lodger import log
from lodger.engines.base import LoadedInfo
from lodger.errors import LodgerError, NotReady, WorkerDown
from lodger.paths import Home
from lodger.service import WorkerStatus
from lodger.supervisor.keeper import Hooks, Keeper
from lodger.supervisor.record import Record
from lodger.supervisor.remote import RemoteWorker
from lodger.supervisor.replica import Replica
from lodger.supervisor.state import Loaded, LoadFailed, Progressed, StopAsked, WorkerDied

_TAIL_LINES = 20
_UNLOAD_SECONDS = 10.0  # for a worker without models to end before it is killed


class Slot:
    """A worker and who is being loaded into it."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.loading: Replica | None = None
        self.loader: asyncio.Task[None] | None = None
        self.more = asyncio.Event()  # something to load, or the end of the worker

    def tail(self, start: int = 0) -> tuple[str, ...]:
        """Last lines of the worker's log since its start, or since byte `start`."""
        return tuple(log.tail(self.keeper.log_file, _TAIL_LINES, since=max(start, self.keeper.log_start)))


class Supervisor:
    """Loads and unloads what is in `records`, which belongs to the caller and is in the order of launching."""

    def __init__(self, home: Home, records: Mapping[str, Record], *, silence: float) -> None:
        self._home = home
        self._records = records
        self._silence = silence
        self._slots: dict[tuple[str, str], Slot] = {}
        self._releases: set[asyncio.Task[None]] = set()

    def prewarm(self, device: str, engine: str) -> None:
        """Start a worker ahead of its first model, so that its imports overlap with planning."""
        self._slot(device, engine).keeper.want()

    def load(self, record: Record) -> None:
        """Have a granted model loaded, after those that wait already. Its life tells what becomes of it."""
        for replica in record.replicas:
            self.load_one(replica)

    def load_one(self, replica: Replica) -> None:
        slot = self._slot(replica.device, replica.engine)
        slot.more.set()
        slot.keeper.want()

    async def unload(self, record: Record) -> None:
        """Returns when the model's bytes are back. A load under way is waited for: its thread cannot be stopped."""
        loaded = [(replica, replica.remote) for replica in record.replicas]
        record.move(StopAsked())
        await asyncio.gather(*(_unload(replica, remote) for replica, remote in loaded))

    async def release(self) -> None:
        """End the workers that nobody needs any more."""
        idle = [key for key, slot in self._slots.items() if not self.needs(slot)]
        await asyncio.gather(*(self._end(self._slots.pop(key), _UNLOAD_SECONDS) for key in idle))

    async def stop(self, timeout: float) -> None:
        """End every worker; what runs in them ends with `Draining`."""
        slots = list(self._slots.values())
        self._slots.clear()
        await asyncio.gather(*(self._end(slot, timeout) for slot in slots), *self._releases)

    def workers(self) -> tuple[WorkerStatus, ...]:
        return tuple(
            WorkerStatus(
                device=keeper.device,
                pid=keeper.pid,
                state=keeper.state,
                used=keeper.used,
                uptime=keeper.uptime,
                restarts=keeper.restarts,
            )
            for keeper in (slot.keeper for slot in self._slots.values())
        )

    def retry_after(self, record: Record) -> int | None:
        """Seconds until the first of the model's workers is started again; None when one runs."""
        keepers = [slot.keeper for slot in map(self._find, record.replicas) if slot]
        if any(keeper.state != "down" for keeper in keepers):
            return None
        return min((keeper.retry_after for keeper in keepers), default=None)

    def log_files(self, record: Record) -> list[Path]:
        """What the model's workers print; none before it has one."""
        return [self._home.worker_log(_worker_name(replica.device, replica.engine)) for replica in record.replicas]

    # What a slot and its keeper ask and tell.
    def needs(self, slot: Slot) -> bool:
        """Whether a model is in the slot or may come into it."""
        if any(record.waits and not record.replicas for record in self._records.values()):
            return True
        return any(replica.waits or replica.life.info is not None for replica in self._in(slot))

    def on_up(self, slot: Slot, remote: RemoteWorker) -> None:
        slot.loader = asyncio.create_task(self._load_all(slot, remote))

    def on_down(self, slot: Slot, error: WorkerDown, up: bool) -> None:
        tail = slot.tail()
        for replica in self._in(slot):
            if replica is not slot.loading:  # whose load ends with this error by itself
                replica.move(WorkerDied(error.info(), tail, culprit=not up))
        slot.more.set()

    async def _load_all(self, slot: Slot, remote: RemoteWorker) -> None:
        """Load what waits until the worker is lost. Models that it died with go last."""
        while not remote.lost:
            waiting = [replica for replica in self._in(slot) if replica.waits]
            if waiting:
                await self._load(slot, min(waiting, key=lambda replica: replica.life.strikes), remote)
                self._release_soon()
            else:
                slot.more.clear()
                await slot.more.wait()

    def _release_soon(self) -> None:
        """In a task of its own: it may end the worker of the very loader that asks, and waits for that loader."""
        task = asyncio.create_task(self.release())
        self._releases.add(task)
        task.add_done_callback(self._releases.discard)

    async def _load(self, slot: Slot, replica: Replica, remote: RemoteWorker) -> None:
        async with replica.lock:
            slot.loading = replica
            start = log.size(slot.keeper.log_file)
            try:
                info = await remote.load(replica.request(), lambda fraction: replica.move(Progressed(fraction)))
            except WorkerDown as error:
                replica.move(WorkerDied(error.info(), slot.tail(start), culprit=True))
            except LodgerError as error:
                replica.move(LoadFailed(error.info(), slot.tail(start)))
            else:
                await self._loaded(replica, remote, info)
            finally:
                slot.loading = None

    async def _loaded(self, replica: Replica, remote: RemoteWorker, info: LoadedInfo) -> None:
        if replica.waits:
            replica.move(Loaded(info))
            replica.remote = remote
        else:  # it was terminated meanwhile
            with suppress(NotReady):
                await remote.unload(replica.uid)

    def _slot(self, device: str, engine: str) -> Slot:
        if (device, engine) not in self._slots:
            log_file = self._home.worker_log(_worker_name(device, engine))
            hooks = Hooks(
                needed=lambda: self.needs(slot),
                up=lambda remote: self.on_up(slot, remote),
                down=lambda error, up: self.on_down(slot, error, up),
            )
            slot = Slot(Keeper(device, engine, log_file, self._home.cache, hooks, silence=self._silence))
            self._slots[device, engine] = slot
        return self._slots[device, engine]

    def _find(self, replica: Replica) -> Slot | None:
        return self._slots.get((replica.device, replica.engine))

    def _in(self, slot: Slot) -> list[Replica]:
        replicas = (replica for record in self._records.values() for replica in record.replicas)
        return [replica for replica in replicas if self._find(replica) is slot]

    async def _end(self, slot: Slot, timeout: float) -> None:
        await slot.keeper.stop(timeout)
        slot.more.set()
        if slot.loader is not None:
            await slot.loader


async def _unload(replica: Replica, remote: RemoteWorker | None) -> None:
    async with replica.lock:
        if remote is not None:
            with suppress(NotReady):  # the worker is gone, and the bytes with it
                await remote.unload(replica.uid)


def _worker_name(device: str, engine: str) -> str:
    """What a worker's log is named after."""
    return device if engine == "native" else f"{device}-{engine.partition(':')[0]}"
