"""`Record`: one model that was asked for, with all that is known of it now."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from lodger.engines.base import LoadRequest
from lodger.plan.values import Candidate, ModelPlan
from lodger.service import ModelStatus
from lodger.spec import ModelSpec
from lodger.supervisor.state import Event, Life, step

if TYPE_CHECKING:
    from lodger.supervisor.remote import RemoteWorker

_log = logging.getLogger("lodger.supervisor")


class Record:
    """One entry in the table of models.

    Attributes:
        candidate: what its folder says; None until that was read.
        grant: what the plan gave it; None until it did.
        remote: the worker that has it loaded, while it is ready.
        running: requests in work or waiting.
        lock: held while it is being loaded or unloaded.
    """

    def __init__(self, spec: ModelSpec, engine: str) -> None:
        self.spec = spec
        self.engine = engine
        self.created = time.time()
        self.life = Life()
        self.candidate: Candidate | None = None
        self.device: str | None = None
        self.grant: ModelPlan | None = None
        self.remote: RemoteWorker | None = None
        self.running = 0
        self.lock = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def waits(self) -> bool:
        """Whether it is to be loaded, now or after its worker's restart."""
        return self.life.state in ("loading", "restarting")

    @property
    def held(self) -> Candidate | None:
        """The model as the plan of others has to see it; None when it has no memory or has lost it."""
        if self.candidate is None or self.grant is None or self.life.state == "failed":
            return None
        return Candidate(self.spec, self.candidate.facts, held=self.grant)

    def move(self, event: Event) -> None:
        """Take `event` into its life; who waits in `settled` hears of it."""
        before, self.life = self.life, step(self.life, event)
        if self.life is before:
            return
        if self.life.state != "ready":
            self.remote = None
        if self.life.state != before.state:
            reason = f": {self.life.error.message}" if self.life.error else ""
            _log.info("%s: %s -> %s%s", self.spec.uid, before.state, self.life.state, reason)
        self._changed.set()
        self._changed = asyncio.Event()

    async def settled(self) -> Life:
        """Its life once it no longer waits to be loaded."""
        while self.waits:
            await self._changed.wait()
        return self.life

    def request(self) -> LoadRequest:
        """What its worker is to load. On a CPU the engine measures which dtype is faster unless one is asked for."""
        assert self.candidate is not None
        assert self.grant is not None
        assert self.device is not None
        dtype = self.spec.dtype if self.device == "cpu" else self.grant.dtype
        return LoadRequest(
            spec=self.spec, facts=self.candidate.facts, budget=self.grant.budget, device=self.device, dtype=dtype
        )

    def status(self) -> ModelStatus:
        life, info = self.life, self.life.info
        budget = self.grant.budget if self.grant else None
        return ModelStatus(
            spec=self.spec,
            state=life.state,
            created=self.created,
            facts=self.candidate.facts if self.candidate else None,
            device=self.device,
            dtype=info.dtype if info else None,
            context_length=info.context_length if info else budget.context_length if budget else None,
            progress=life.progress,
            error=life.error,
            log_tail=life.log_tail,
            memory=info.memory if info else {},
            running=self.running,
            restarts=life.restarts,
        )
