"""`Record`: one model that was asked for, with all that is known of it now."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from lodger.plan.values import Candidate, ModelPlan
from lodger.service import ModelStatus
from lodger.spec import ModelSpec
from lodger.supervisor.replica import Replica
from lodger.supervisor.state import Event, Life, step, together

_log = logging.getLogger("lodger.supervisor")


class Record:
    """One entry in the table of models.

    Attributes:
        candidate: what its folder says; None until that was read.
        replicas: its copies, one on each device that the plan gave it; none until it did.
        asking: requests that wait for it to wake.
        resting: it is to sleep when the requests in work are done; later ones wait, and wake it.
        idle_since: when it last changed or a request ended, by `time.monotonic`.
    """

    def __init__(self, spec: ModelSpec, engine: str) -> None:
        self.spec = spec
        self.engine = engine
        self.created = time.time()
        self.candidate: Candidate | None = None
        self.replicas: tuple[Replica, ...] = ()
        self.asking = 0
        self.resting = False
        self.idle_since = time.monotonic()
        self._unplaced = Life()  # until there are replicas
        self._turn = 0
        self._changed = asyncio.Event()

    @property
    def life(self) -> Life:
        return together([replica.life for replica in self.replicas]) if self.replicas else self._unplaced

    @property
    def waits(self) -> bool:
        """Whether it is to be loaded, now or after its workers' restart."""
        return self.life.state in ("loading", "restarting")

    @property
    def sleeps(self) -> bool:
        """Whether who wants it has to wake it first."""
        return self.resting or self.life.state == "asleep"

    @property
    def working(self) -> int:
        """Requests that a replica has."""
        return sum(replica.running for replica in self.replicas)

    @property
    def running(self) -> int:
        """Requests in work or waiting."""
        return self.working + self.asking

    @contextmanager
    def counted(self, replica: Replica) -> Iterator[None]:
        """One more request that `replica` has."""
        replica.running += 1
        try:
            yield
        finally:
            replica.running -= 1
            self.tell()

    def place(self, grants: Mapping[str, ModelPlan]) -> None:
        """It goes on the devices that `grants` names. Its candidate is known by now."""
        assert self.candidate is not None
        one, engine = self.candidate, self.engine
        self.replicas = tuple(Replica(one, engine, device, grant, self.tell) for device, grant in grants.items())

    def pick(self) -> Replica | None:
        """The ready replica with the fewest requests; of equals, each in its turn. None when none is ready."""
        count = len(self.replicas)
        turns = [(self._turn + ahead) % count for ahead in range(count)]
        ready = [turn for turn in turns if self.replicas[turn].life.state == "ready"]
        if not ready:
            return None
        chosen = min(ready, key=lambda turn: self.replicas[turn].running)
        self._turn = chosen + 1
        return self.replicas[chosen]

    def move(self, event: Event) -> None:
        """Take `event` into its life, or into those of all its replicas; who waits in `until` hears of it."""
        for replica in self.replicas:
            replica.move(event)
        before, self._unplaced = self._unplaced, step(self._unplaced, event)
        if self.replicas or self._unplaced is before:
            return
        if self._unplaced.state != before.state:
            reason = f": {self._unplaced.error.message}" if self._unplaced.error else ""
            _log.info("%s: %s -> %s%s", self.spec.uid, before.state, self._unplaced.state, reason)
        self.tell()

    def tell(self) -> None:
        """Something has changed that somebody may wait for in `until`."""
        self.idle_since = time.monotonic()
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()

    async def settled(self) -> Life:
        """Its life once it no longer waits to be loaded."""
        await self.until(lambda: not self.waits)
        return self.life

    def status(self) -> ModelStatus:
        life, info = self.life, self.life.info
        budget = self.replicas[0].grant.budget if self.replicas else None
        replicas = tuple(replica.status() for replica in self.replicas)
        return ModelStatus(
            spec=self.spec,
            state=life.state,
            created=self.created,
            facts=self.candidate.facts if self.candidate else None,
            device=replicas[0].device if replicas else None,
            dtype=info.dtype if info else None,
            context_length=info.context_length if info else budget.context_length if budget else None,
            progress=life.progress,
            error=life.error,
            log_tail=life.log_tail,
            memory=_sums(replica.memory for replica in replicas),
            running=self.running,
            restarts=life.restarts,
            replicas=replicas,
        )


def _sums(memories: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Bytes by part, those of no bytes too."""
    found: dict[str, int] = {}
    for memory in memories:
        for part, size in memory.items():
            found[part] = found.get(part, 0) + size
    return found
