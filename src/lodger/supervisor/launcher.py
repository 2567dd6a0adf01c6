"""`Launcher`: from a model that was asked for to one that its workers may load. One plan for all that wait."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import TypeVar

from lodger.device.view import DeviceView
from lodger.errors import Cancelled, InternalError, LodgerError
from lodger.hub.base import Report, Work
from lodger.plan import planner
from lodger.plan.demand import steps
from lodger.plan.spread import likely, meant
from lodger.plan.values import Candidate, Plan
from lodger.spec import ModelSpec
from lodger.supervisor.placement import Placement
from lodger.supervisor.record import Record
from lodger.supervisor.replica import Replica
from lodger.supervisor.state import LoadFailed, Progressed
from lodger.supervisor.supervisor import Supervisor

_log = logging.getLogger("lodger.supervisor")
Result = TypeVar("Result")


class Launcher:
    """Reads folders, measures the devices, plans, and hands what fits to the supervisor.

    Models that are asked for together are planned together, so that the order in which they come does not matter.
    """

    def __init__(self, records: Mapping[str, Record], placement: Placement, supervisor: Supervisor) -> None:
        self._records = records
        self._placement = placement
        self._supervisor = supervisor
        self._process: dict[str, int] = {}  # device -> bytes of its worker itself, as last planned
        self._work: asyncio.Task[None] | None = None
        self._stopped = False
        self._planning = asyncio.Lock()  # from measuring what is free until it is counted as granted

    def wake(self) -> None:
        """There is a new record."""
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._place())

    async def stop(self) -> None:
        self._stopped = True
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])

    async def views(self) -> tuple[DeviceView, ...]:
        pids = [worker.pid for worker in self._supervisor.workers() if worker.pid is not None]
        return await asyncio.to_thread(self._placement.devices, pids)

    async def plan(self, specs: Sequence[ModelSpec]) -> tuple[Plan, ...]:
        """What would be granted to `specs` beside what is here, on every device in use then. Those that are here
        already keep what they have.

        Raises:
            ModelProblem, DoesNotFit, Unsupported.
        """
        views = await self._usable()
        held = {view.id: self._held(view) for view in views}
        here = {candidate.spec.uid for on_one in held.values() for candidate in on_one}
        new = [await asyncio.to_thread(self._placement.candidate, spec) for spec in specs if spec.uid not in here]
        return await asyncio.to_thread(self._placement.plan, views, held, new)

    async def again(self, replica: Replica) -> None:
        """Count a replica that wakes as having again what it was granted, if that is still free.

        Raises:
            DoesNotFit: somebody else has taken it.
        """
        async with self._planning:
            view = next(view for view in await self.views() if view.id == replica.device)
            candidates = (*self._held(view), replica.granted)
            await asyncio.to_thread(planner.plan, view, candidates, reserve=self._placement.reserve(view))
            replica.waking = True

    async def plans(self) -> tuple[Plan, ...]:
        """What is granted now, on every device in use; on all that would be used, when none is."""
        views = await self.views()
        used = [view for view in views if self._held(view)] or self._placement.usable(views)
        return tuple(self._plan_now(view) for view in used)

    def _plan_now(self, view: DeviceView) -> Plan:
        models = tuple(candidate.held for candidate in self._held(view) if candidate.held is not None)
        return Plan(
            device=view,
            reserve=self._placement.reserve(view),
            process=self._process.get(view.id, 0),
            steps=steps(view, [model.budget for model in models]),
            models=models,
        )

    async def _place(self) -> None:
        """Until nobody waits for a grant. Who comes while folders are read is planned with those who came before."""
        while waiting := [record for record in self._records.values() if record.waits and not record.replicas]:
            views = await _attempt(self._usable())
            if isinstance(views, LodgerError):
                for record in waiting:
                    record.move(LoadFailed(views.info()))
            elif unread := [record for record in waiting if record.candidate is None]:
                for record in unread:
                    for device in likely(views, record.spec):
                        self._supervisor.prewarm(device, record.engine)
                await asyncio.gather(*map(self._read, unread))
            else:
                async with self._planning:
                    await self._grant(views, waiting)
            await self._supervisor.release()  # inside the loop: who comes meanwhile is still seen by it

    async def _usable(self) -> tuple[DeviceView, ...]:
        return self._placement.usable(await self.views())

    async def _read(self, record: Record) -> None:
        found = await _attempt(asyncio.to_thread(self._placement.loadable, record.spec, self._converting(record)))
        if isinstance(found, LodgerError):
            record.move(LoadFailed(found.info()))
        else:
            record.candidate, record.spec = found, found.spec

    def _converting(self, record: Record) -> Report:
        """Told in a thread how far the conversion of the model's weights is; raises when nobody wants it any more."""
        loop = asyncio.get_running_loop()
        told = False

        def report(work: Work) -> None:
            nonlocal told
            if self._stopped or not record.waits:
                raise Cancelled(f"{record.spec.uid} was terminated while its weights were converted.")
            if not told:
                _log.info("%s: %s to safetensors, once", record.spec.uid, work.title)
                told = True
            half = 0.5 * work.done / max(work.total, 1)  # the other half is loading
            loop.call_soon_threadsafe(record.move, Progressed(half))

        return report

    async def _grant(self, views: Sequence[DeviceView], waiting: Sequence[Record]) -> None:
        """Plan as many of them as fit, first come, first served; then have them loaded."""
        held = {view.id: self._held(view) for view in views}
        accepted: dict[str, Candidate] = {}
        plans: tuple[Plan, ...] = ()
        for record in waiting:
            assert record.candidate is not None
            asked = [*accepted.values(), record.candidate]
            tried = await _attempt(asyncio.to_thread(self._placement.plan, views, held, asked))
            if isinstance(tried, LodgerError):
                record.move(LoadFailed(tried.info()))
            else:
                plans, accepted[record.spec.uid] = tried, record.candidate
        for plan in plans:
            self._process[plan.device.id] = plan.process
        for record in waiting:
            if record.waits and record.spec.uid in accepted:
                self._place_one(record, plans)

    def _place_one(self, record: Record, plans: Sequence[Plan]) -> None:
        uid = record.spec.uid
        grants = [(plan.device, model) for plan in plans for model in plan.models if model.uid == uid]
        assert record.candidate is not None
        record.candidate = meant(record.candidate, grants[0][0])
        record.spec = record.candidate.spec
        record.place({device.id: grant for device, grant in grants})
        self._supervisor.load(record)

    def _held(self, view: DeviceView) -> list[Candidate]:
        replicas = (replica for record in self._records.values() for replica in record.replicas)
        return [replica.held for replica in replicas if replica.device == view.id and replica.held is not None]


async def _attempt(work: Awaitable[Result]) -> Result | LodgerError:
    """What `work` gives, or the error it ends with: a defect while one folder is read must not make all others wait."""
    [result] = await asyncio.gather(work, return_exceptions=True)
    if not isinstance(result, BaseException):
        return result
    if isinstance(result, LodgerError):
        return result
    _log.error("a defect of ours while planning", exc_info=result)
    return InternalError("Lodger failed inside while planning this model.", hint="The server's log says where.")
