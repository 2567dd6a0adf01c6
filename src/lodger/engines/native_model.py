"""What every model of the native engine has, whatever its kind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from traceback import clear_frames
from typing import TypeVar

from lodger.catalogue.facts import ModelFacts
from lodger.engines.base import LoadedInfo
from lodger.engines.native_weights import Weights
from lodger.errors import InvalidRequest, ModelAsleep, OutOfMemory, WrongKind
from lodger.runtime.allocator import trim
from lodger.runtime.device_loop import DeviceLoop, ModelLane
from lodger.runtime.kv import KVCache
from lodger.runtime.recovery import is_out_of_memory
from lodger.tasks import Delta, EmbedResult, EmbedTask, GenerateTask, RerankResult, RerankTask, TokensTask
from lodger.text.grammar import GrammarThreads
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
    grammars: GrammarThreads
    weights: Weights
    asleep: Callable[[], None]  # is told that it sleeps
    waking: Callable[[], AbstractContextManager[None]]  # around whatever wakes it
    release: Callable[[], None]  # gives the weights back


class ServedModel:
    """Base of the models. A kind overrides its own verb; the others refuse."""

    def __init__(self, serving: Serving, lane: ModelLane, cache: KVCache | None = None) -> None:
        self.info = serving.info
        self._served, self._cache = lane, cache
        self._asleep = False
        self._serving = serving
        self._running = 0
        self._ids = count(1)
        serving.loop.add(lane)

    def generate(self, task: GenerateTask) -> AsyncIterator[Delta]:
        raise self._wrong_kind("chat")

    async def generate_to(self, task: GenerateTask, put: Callable[[Delta], None]) -> None:
        raise self._wrong_kind("chat")

    async def embed(self, task: EmbedTask) -> EmbedResult:
        raise self._wrong_kind("embeddings")

    async def rerank(self, task: RerankTask) -> RerankResult:
        raise self._wrong_kind("rerank")

    async def tokens(self, task: TokensTask) -> tuple[tuple[str, ...], ...]:
        tokenizer = self._serving.tokenizer
        return await self._in_pool(lambda: tuple(tuple(tokenizer.tokens_of(ids)) for ids in task.ids))

    def running(self) -> int:
        """Requests in work or waiting."""
        return self._running

    def sleep(self, *, keep: bool) -> None:
        """See `engines.base.Model`."""
        if self._asleep:
            return
        self._asleep = True
        self._serving.loop.remove(self._serving.uid)
        self._served.sleep()
        if self._cache is not None:
            self._cache.sleep()
        self._serving.weights.sleep(self._serving.uid, keep=keep)
        trim()  # activations of its steps
        self._serving.asleep()

    def wake(self) -> None:
        """See `engines.base.Model`."""
        if not self._asleep:
            return
        uid, weights = self._serving.uid, self._serving.weights
        with out_of_memory(f"{uid} was woken"), self._serving.waking(), ExitStack() as undo:
            runner = weights.wake(uid)  # what reading them takes in passing is there while the cache is not
            undo.callback(weights.sleep, uid, keep=True)
            if self._cache is not None:
                undo.callback(self._cache.sleep)
                self._cache.wake()
            self._served.wake(runner)
            undo.pop_all()
        self._serving.loop.add(self._served)
        self._asleep = False

    def memory(self) -> dict[str, int]:
        """Bytes held now by part; shared weights count for one of the models that use them."""
        held = self._serving.weights.held(self._serving.uid)
        if self._cache is not None:
            held["kv_cache"] = self._cache.nbytes
        return held

    def close(self) -> None:
        """Give every byte back. Requests still running end with `Cancelled`."""
        self.sleep(keep=False)
        self._served.forget()
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
        """One more request in work.

        Raises:
            ModelAsleep.
        """
        if self._asleep:
            raise ModelAsleep(f"{self._serving.uid} sleeps.", hint="Try again in a moment.")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _in_pool(self, function: Callable[[], Result]) -> Result:
        """Tokenising releases the GIL, so it runs beside the device's thread and the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._serving.pool, function)


@contextmanager
def out_of_memory(meanwhile: str) -> Iterator[None]:
    """The device's refusal as an error that a person can use."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        clear_frames(error.__traceback__)  # they hold on to what was made so far
        raise OutOfMemory(
            f"the device ran out of memory while {meanwhile}.",
            hint="Free memory on the device, or choose a smaller model.",
        ) from None


def check_ids(ids: tuple[int, ...], facts: ModelFacts, *, param: str) -> list[int]:
    """Token ids that a caller sent.

    Raises:
        InvalidRequest: one is not in the model's vocabulary.
    """
    wrong = next((id for id in ids if not 0 <= id < facts.vocab_size), None)
    if wrong is not None:
        raise InvalidRequest(f"token id {wrong} is not in the vocabulary of {facts.vocab_size} tokens.", param=param)
    return list(ids)
