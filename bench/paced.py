"""`PacedEngine`: a chat model without weights whose device makes a step every so often, however many chats there are.

All but the device is Lodger's own: the prompt is tokenised, a thread delivers tokens as the device's thread does, and
what it costs to bring them to the clients can be measured on a machine without a GPU. The thread sleeps for the time
that a GPU would compute, and keeps Python busy for the time that launching takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any, cast

import psutil

from bench.load import text
from lodger.engines.base import LoadedInfo, LoadRequest
from lodger.engines.native_generate import GenerateModel
from lodger.engines.native_model import ServedModel, Serving
from lodger.runtime.device_loop import DeviceLoop
from lodger.runtime.generating import Generation, Made
from lodger.sched.arbiter import Claim
from lodger.text.template import ChatTemplate
from lodger.text.tokenizer import Tokenizer

NAME = "bench.paced:paced"  # under which a worker process finds it
STEP, BUSY = 0.0070, 0.0015  # seconds of a step, and of Python's time in it: Qwen3-4B with 128 chats on an H100
WORDS = 4000  # of text that the answers are made of


class PacedLane:
    """One token of every chat in each step. Called by the device's thread only."""

    step_tokens, paced, launched = 512, False, False

    def __init__(self, name: str, tokens: list[int]) -> None:
        self.name = name
        self._tokens = tokens
        self._chats: dict[int, tuple[Generation, list[int]]] = {}
        self._next = 0.0

    @property
    def decoding(self) -> bool:
        return bool(self._chats)

    def add(self, generation: Generation) -> None:
        self._chats[generation.sequence.id] = generation, [0]

    def cancel(self, sequence_id: int) -> None:
        self._chats.pop(sequence_id, None)

    def decode(self) -> None:
        end = max(time.perf_counter(), self._next) + BUSY
        while time.perf_counter() < end:
            pass
        time.sleep(max(self._next - time.perf_counter(), 0))
        self._next = max(self._next, time.perf_counter() - STEP) + STEP
        for id, (generation, made) in list(self._chats.items()):
            token = self._tokens[(17 * id + made[0]) % len(self._tokens)]
            made[0] += 1
            if made[0] >= generation.sequence.max_new_tokens:
                del self._chats[id]
                generation.deliver(Made(token, finish="length"))
            else:
                generation.deliver(Made(token))

    def claims(self, budget: int) -> Iterable[Claim]:
        return ()

    def deliver(self, *, wait: bool) -> None:
        """`decode` has done it."""

    def close(self) -> None:
        self._chats.clear()

    sleep = forget = close


class PacedModel(GenerateModel):
    def __init__(self, serving: Serving) -> None:
        tokens = serving.tokenizer.encode(text(WORDS, 1), special=False)
        self._lane = cast(Any, PacedLane(serving.uid, tokens))
        self._template = ChatTemplate.load(serving.facts.path)
        self._device = cast(Any, None)
        self._arrivals = None
        ServedModel.__init__(self, serving, cast(Any, self._lane))


class PacedEngine:
    def __init__(self, device: str) -> None:
        self._loop = DeviceLoop(device)
        self._pool = ThreadPoolExecutor(2)

    def load(self, request: LoadRequest, progress: Callable[[float], None]) -> PacedModel:
        facts = request.facts
        info = LoadedInfo(
            dtype="float32", context_length=request.budget.context_length or 4096, memory={}, load_seconds=0
        )
        tokenizer = Tokenizer.load(facts.path)
        own = {"uid": request.spec.uid, "facts": facts, "info": info, "tokenizer": tokenizer}
        missing = dict.fromkeys(field.name for field in fields(Serving))  # of the device
        return PacedModel(Serving(**cast(Any, missing | own | {"loop": self._loop, "pool": self._pool})))

    def used(self) -> int:
        return int(psutil.Process().memory_info().rss)

    def close(self) -> None:
        self._loop.close()


paced = PacedEngine


def main() -> None:
    """`lodger` with this engine in its table."""
    from lodger import engines
    from lodger.cli import main

    engines.TABLE[NAME] = NAME
    main()


if __name__ == "__main__":
    main()
