"""What every model of the native engine has, whatever its kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from lodger.catalogue.facts import ModelFacts
from lodger.engines.base import LoadedInfo
from lodger.errors import InvalidRequest, WrongKind
from lodger.runtime.device_loop import DeviceLoop, ModelLane
from lodger.tasks import Delta, EmbedResult, EmbedTask, GenerateTask, RerankResult, RerankTask
from lodger.text.tokenizer import Tokenizer

Result = TypeVar("Result")


@dataclass(frozen=True)
class Serving:
    """A loaded model and where its work goes."""

    uid: str
    facts: ModelFacts
    info: LoadedInfo
    tokenizer: Tokenizer
    loop: DeviceLoop
    pool: ThreadPoolExecutor  # for tokenising
    release: Callable[[], None]  # gives the weights back


class ServedModel:
    """Base of the models. A kind overrides its own verb; the others refuse."""

    def __init__(self, serving: Serving, lane: ModelLane) -> None:
        self.info = serving.info
        self._serving = serving
        self._running = 0
        self._ids = count(1)
        serving.loop.add(lane)

    def generate(self, task: GenerateTask) -> AsyncIterator[Delta]:
        raise self._wrong_kind("chat")

    async def embed(self, task: EmbedTask) -> EmbedResult:
        raise self._wrong_kind("embeddings")

    async def rerank(self, task: RerankTask) -> RerankResult:
        raise self._wrong_kind("rerank")

    def running(self) -> int:
        """Requests in work or waiting."""
        return self._running

    def close(self) -> None:
        """Give every byte back. Requests still running end with `Cancelled`."""
        self._serving.loop.remove(self._serving.uid)
        self._serving.release()

    def _wrong_kind(self, asked: str) -> WrongKind:
        kind = self._serving.facts.kind
        return WrongKind(
            f"{self._serving.uid} is a model for {kind}, not for {asked}.",
            hint="GET /v1/models lists the models and what each is for.",
            param="model",
        )

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """One more request in work."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _in_pool(self, function: Callable[[], Result]) -> Result:
        """Tokenising releases the GIL, so it runs beside the device's thread and the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._serving.pool, function)


def check_ids(ids: tuple[int, ...], facts: ModelFacts, *, param: str) -> list[int]:
    """Token ids that a caller sent.

    Raises:
        InvalidRequest: one is not in the model's vocabulary.
    """
    wrong = next((id for id in ids if not 0 <= id < facts.vocab_size), None)
    if wrong is not None:
        raise InvalidRequest(f"token id {wrong} is not in the vocabulary of {facts.vocab_size} tokens.", param=param)
    return list(ids)
