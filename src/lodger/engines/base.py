"""The contract of an engine: text in, text out, inside a budget, on one device.

An engine lives in a worker process and holds every model of that process. `load` and `close` block (the worker calls
them in a thread, `sleep` and `wake` too); the verbs are coroutines of the worker's event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from lodger.budget import Budget
from lodger.catalogue.facts import ModelFacts
from lodger.spec import ModelSpec
from lodger.tasks import Delta, EmbedResult, EmbedTask, GenerateTask, RerankResult, RerankTask, TokensTask


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """All that an engine needs to load one model; nothing else about it is decided in the worker."""

    spec: ModelSpec
    facts: ModelFacts
    budget: Budget
    device: str  # "cpu", "cuda:0"
    dtype: str | None  # None: the engine measures and chooses


class LoadedInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded model turned out to be."""

    dtype: str
    context_length: int
    memory: dict[str, int]  # measured bytes: weights, kv_cache
    load_seconds: float


class Model(Protocol):
    """One loaded model. The verb that does not match its kind raises `WrongKind`."""

    info: LoadedInfo

    def generate(self, task: GenerateTask) -> AsyncIterator[Delta]:
        """Closing the iterator cancels the request at the next step."""
        ...

    async def generate_to(self, task: GenerateTask, put: Callable[[Delta], None]) -> None:
        """The same for who serves many requests at once: `put` is called in the event loop, for all requests that a
        step of the device answered in one go, and nobody is woken for it. Cancelling it cancels the request."""
        ...

    async def embed(self, task: EmbedTask) -> EmbedResult: ...

    async def rerank(self, task: RerankTask) -> RerankResult: ...

    async def tokens(self, task: TokensTask) -> tuple[tuple[str, ...], ...]:
        """See `service.Service`. Every kind of model has this verb."""
        ...

    def running(self) -> int:
        """Requests in work or waiting."""
        ...

    def sleep(self, *, keep: bool) -> None:
        """Give the device's memory back; answers after `wake` are bit for bit those before. Blocking.

        Weights that another model uses too stay until that one sleeps as well. Requests still running end with
        `Cancelled`, and later ones with `ModelAsleep`.

        Args:
            keep: weights may stay in RAM, which makes waking quick; else they are read from the folder again.
        """
        ...

    def wake(self) -> None:
        """Blocking. What was granted must be free.

        Raises:
            OutOfMemory, ModelProblem: it sleeps on.
        """
        ...

    def memory(self) -> dict[str, int]:
        """Bytes held now by part, as in `LoadedInfo`; and as "host" those of weights kept in RAM."""
        ...

    def close(self) -> None:
        """Give every byte back. Requests still running end with `Cancelled`."""
        ...


class Engine(Protocol):
    """All models of one worker process."""

    def load(self, request: LoadRequest, progress: Callable[[float], None]) -> Model:
        """Blocking. `progress` is told 0..1 of the bytes read.

        Raises:
            ModelProblem, OutOfMemory.
        """
        ...

    def used(self) -> int:
        """Bytes this process holds on its device, measured."""
        ...

    def close(self) -> None: ...
