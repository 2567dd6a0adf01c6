"""`Replica`: one copy of a model on one device, from its grant to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from lodger.engines.base import LoadRequest
from lodger.plan.values import Candidate, ModelPlan
from lodger.service import ReplicaStatus
from lodger.supervisor.state import Event, Life, step
from lodger.supervisor.visibility import as_seen

if TYPE_CHECKING:
    from lodger.supervisor.remote import RemoteWorker

_log = logging.getLogger("lodger.supervisor")


class Replica:
    """A model in the worker of one device.

    Args:
        candidate: the model, its folder read.
        engine: which engine its worker runs.
        changed: told of every change in its life.

    Attributes:
        remote: the worker that has it loaded, while it is ready or asleep.
        waking: it sleeps, and its memory is being taken again.
        running: requests in work or waiting.
        lock: held while it is being loaded or unloaded, put to sleep or woken.
    """

    def __init__(
        self, candidate: Candidate, engine: str, device: str, grant: ModelPlan, changed: Callable[[], None]
    ) -> None:
        self.engine = engine
        self.device = device
        self.grant = grant
        self.life = Life()
        self.remote: RemoteWorker | None = None
        self.waking = False
        self.running = 0
        self.lock = asyncio.Lock()
        self._candidate = candidate
        self._changed = changed

    @property
    def uid(self) -> str:
        return self._candidate.spec.uid

    @property
    def waits(self) -> bool:
        """Whether it is to be loaded, now or after its worker's restart."""
        return self.life.state in ("loading", "restarting")

    @property
    def held(self) -> Candidate | None:
        """The model as the plan of others on its device has to see it; None when it lost its memory or gave it back."""
        if self.life.state == "failed" or (self.life.state == "asleep" and not self.waking):
            return None
        return self.granted

    @property
    def granted(self) -> Candidate:
        return Candidate(self._candidate.spec, self._candidate.facts, held=self.grant)

    def move(self, event: Event) -> None:
        """Take `event` into its life."""
        before, self.life = self.life, step(self.life, event)
        if self.life is before:
            return
        if self.life.info is None:
            self.remote = None
        if self.life.state != before.state:
            reason = f": {self.life.error.message}" if self.life.error else ""
            _log.info("%s on %s: %s -> %s%s", self.uid, self.device, before.state, self.life.state, reason)
        self._changed()

    def request(self) -> LoadRequest:
        """What its worker is to load. On a CPU the engine measures which dtype is faster unless one is asked for."""
        spec = self._candidate.spec
        return LoadRequest(
            spec=spec,
            facts=self._candidate.facts,
            budget=self.grant.budget,
            device=as_seen(self.device),
            dtype=spec.dtype if self.device == "cpu" else self.grant.dtype,
        )

    def status(self) -> ReplicaStatus:
        life = self.life
        return ReplicaStatus(
            device=self.device,
            state=life.state,
            progress=life.progress,
            error=life.error,
            log_tail=life.log_tail,
            memory=self.remote.memory.get(self.uid, {}) if self.remote else {},
            running=self.running,
            restarts=life.restarts,
        )
