"""The verbs: the narrow waist between HTTP and whoever runs models.

`api` may import this module and `tasks`, and nothing behind it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

import msgspec

from lodger.catalogue.facts import ModelFacts
from lodger.errors import ErrorInfo
from lodger.plan.values import Plan
from lodger.spec import ModelSpec, Registration
from lodger.tasks import Delta, EmbedResult, EmbedTask, GenerateTask, Kind, RerankResult, RerankTask, TokensTask

State = Literal["loading", "ready", "asleep", "restarting", "failed", "stopping"]


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One copy of a model, on one device."""

    device: str
    state: State
    progress: float = 0.0  # of loading, 0..1
    error: ErrorInfo | None = None
    log_tail: tuple[str, ...] = ()
    memory: dict[str, int] = {}  # measured bytes by part
    running: int = 0  # requests in work or waiting
    restarts: int = 0


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model as it is now, all its replicas together: it is ready when one of them is. A failed model keeps its
    place here, with its reason and its last log lines."""

    spec: ModelSpec
    state: State
    created: float  # Unix seconds
    facts: ModelFacts | None = None
    device: str | None = None  # of the first replica
    dtype: str | None = None
    context_length: int | None = None  # tokens really served
    progress: float = 0.0  # of loading, 0..1
    error: ErrorInfo | None = None
    log_tail: tuple[str, ...] = ()
    memory: dict[str, int] = {}  # measured bytes by part: weights, kv_cache; of one asleep "host" as well, in RAM
    running: int = 0  # requests in work or waiting
    restarts: int = 0
    replicas: tuple[ReplicaStatus, ...] = ()  # none before it has a place

    @property
    def uid(self) -> str:
        return self.spec.uid

    @property
    def serves(self) -> bool:
        """Whether it answers who asks now; one that sleeps wakes for that."""
        return self.state in ("ready", "asleep")

    @property
    def devices(self) -> tuple[str, ...]:
        """Where it is, one for each replica."""
        return tuple(replica.device for replica in self.replicas) or ((self.device,) if self.device else ())


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process."""

    device: str
    pid: int | None
    state: Literal["starting", "up", "down"]
    used: int = 0  # bytes it holds, measured
    uptime: float = 0.0  # seconds
    restarts: int = 0


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The whole server, as `lodger status` and `GET /lodger/status` show it."""

    version: str
    pid: int
    started: float
    address: str
    home: str
    plan: tuple[Plan, ...]
    workers: tuple[WorkerStatus, ...]
    models: tuple[ModelStatus, ...]


class Service(Protocol):
    """Who can be asked. Every method raises `LodgerError` and nothing else."""

    def generate(self, task: GenerateTask) -> AsyncIterator[Delta]:
        """Deltas as they are made. Closing the iterator cancels the request at the model's next step."""
        ...

    async def embed(self, task: EmbedTask) -> EmbedResult: ...

    async def rerank(self, task: RerankTask) -> RerankResult: ...

    async def tokens(self, task: TokensTask) -> tuple[tuple[str, ...], ...]:
        """Each token as the vocabulary of a model of any kind spells it; empty for an id that it does not have."""
        ...

    async def launch(self, spec: ModelSpec, *, wait: bool = True) -> ModelStatus:
        """Plan and load a model. With `wait`, returns when it is ready; otherwise once it is accepted.

        Raises:
            UidTaken, ModelProblem, DoesNotFit, OutOfMemory, ModelFailed.
        """
        ...

    async def terminate(self, uid: str) -> None:
        """Unload a model, or forget a failed one. Returns when its memory is back.

        Raises:
            UnknownModel.
        """
        ...

    async def sleep(self, uid: str) -> ModelStatus:
        """Let the model's requests finish, then give its memory back. The next request, or `wake`, brings it back.

        Raises:
            UnknownModel, NotReady: it is neither ready nor asleep.
        """
        ...

    async def wake(self, uid: str) -> ModelStatus:
        """Bring a model back that sleeps, with what it was granted. Returns when it serves.

        Raises:
            UnknownModel, NotReady.
            DoesNotFit, OutOfMemory: its memory was taken meanwhile; it sleeps on.
        """
        ...

    def models(self) -> list[ModelStatus]:
        """Every model that was asked for, in the order of launching, whatever its state."""
        ...

    def model(self, uid: str) -> ModelStatus:
        """
        Raises:
            UnknownModel: names the uids there are.
        """
        ...

    async def status(self) -> ServerStatus: ...

    async def plan(self, specs: tuple[ModelSpec, ...]) -> tuple[Plan, ...]:
        """What would happen if these were launched beside what runs now: one plan for each device in use then.

        Raises:
            ModelProblem, DoesNotFit.
        """
        ...

    async def registrations(self, kind: Kind) -> list[Registration]:
        """Names that a model of this kind can be launched by: the catalogue's first, then those of users."""
        ...

    async def register(self, kind: Kind, model: str, *, persist: bool) -> None:
        """Give a folder a name that it can be launched by. With `persist` a restart keeps it.

        Args:
            model: Xinference's JSON of a custom model.

        Raises:
            InvalidRequest, FolderMissing.
        """
        ...

    async def unregister(self, kind: Kind, name: str) -> None:
        """
        Raises:
            InvalidRequest: nobody registered that name.
        """
        ...

    def logs(self, uid: str | None, lines: int) -> list[str]:
        """Last log lines of one model, or of the whole server."""
        ...
