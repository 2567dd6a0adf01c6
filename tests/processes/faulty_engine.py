"""The echo engine with faults: what a model is called, or what is said to it, says what goes wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from lodger.engines.base import LoadRequest
from lodger.engines.echo import EchoEngine, EchoModel
from lodger.errors import Cancelled, DamagedWeights, InternalError
from lodger.tasks import ChatTask, Delta, GenerateTask

_log = logging.getLogger("faulty")


class FaultyModel(EchoModel):
    async def generate(self, task: GenerateTask) -> AsyncIterator[Delta]:
        assert isinstance(task, ChatTask)
        text = str(task.messages[-1]["content"])
        if text == "poison":
            FaultyEngine.poisoned = True
        if text == "defect":
            raise KeyError("/secret/path")
        said = 0
        try:
            async for delta in super().generate(task):
                yield delta
                said += 1
                if "crash" in delta.text:
                    _log.error("the device fell off the bus at /secret/folder/model")
                    os.kill(os.getpid(), signal.SIGSEGV)
                if "hang" in delta.text:
                    time.sleep(60)
        except Cancelled:
            if text.startswith("stubborn"):
                await asyncio.Event().wait()  # until its process ends
            raise
        finally:
            _log.info("left after %d deltas", said)


class FaultyEngine(EchoEngine):
    poisoned = False

    def __init__(self, device: str) -> None:
        super().__init__(device, word_seconds=0.01)

    def load(self, request: LoadRequest, progress: Callable[[float], None]) -> FaultyModel:
        uid = request.spec.uid
        if uid.startswith("damaged"):
            _log.error("tensor 7 of %s ends early", uid)
            raise DamagedWeights("model.safetensors ends 4 bytes early.", hint="Fetch it again.")
        if uid.startswith("deadly"):
            _log.error("about to die for %s", uid)
            os._exit(7)
        if uid.startswith("slow"):
            progress(0.25)
            gate = Path(request.spec.description or "")
            while not gate.exists():
                time.sleep(0.01)
        progress(1.0)
        return FaultyModel(request, self._word_seconds)

    def used(self) -> int:
        if self.poisoned:
            raise InternalError("the device's thread has ended.")
        return super().used()


class UnstartableEngine(EchoEngine):
    def __init__(self, device: str) -> None:
        raise ImportError(f"no library for {device}")
