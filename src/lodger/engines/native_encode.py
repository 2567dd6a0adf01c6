"""What the embedding and rerank models of the native engine have in common: whole texts in, rows of numbers out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from lodger.engines.native_model import ServedModel, Serving
from lodger.errors import EmptyInput, LodgerError
from lodger.runtime.encoding import EncodeLane, Outcome
from lodger.runtime.heads import Head
from lodger.runtime.partition import Partition
from lodger.runtime.runner import Heads, Rows, Runner
from lodger.sched.encode import EncodeLane as LaneName
from lodger.sched.encode import Job
from lodger.sched.step import Item
from lodger.text.frame import Encoded


class EncodingModel(ServedModel):
    """Base of the models that compute whole texts."""

    lane_name: LaneName

    def __init__(self, serving: Serving, runner: Runner, step_tokens: int, beside: Partition | None = None) -> None:
        self._lane = EncodeLane(serving.uid, runner, self.lane_name, step_tokens, beside)
        super().__init__(serving, self._lane)

    @property
    def _heads(self) -> Mapping[str, Head]:
        """
        Raises:
            ModelAsleep.
        """
        return self._lane.runner.heads

    async def _encode(self, texts: Sequence[Encoded], heads: Heads) -> list[Rows]:
        """For each text what `heads` make of it, in order.

        Raises:
            EmptyInput: a text of no tokens.
            OutOfMemory, Cancelled, InternalError.
        """
        if not all(text.tokens for text in texts):
            raise EmptyInput("a text has no tokens: there is nothing to compute.")
        job_id = next(self._ids)
        items = tuple(Item(job_id, at, text.tokens, text.token_types) for at, text in enumerate(texts))
        job = Job(job_id, self.lane_name, items)
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        deliver = _deliver_to(outcome)
        self._serving.loop.post(lambda: self._lane.add(job, heads, deliver))
        try:
            found = await outcome
        finally:  # the client went away
            self._serving.loop.post(lambda: self._lane.cancel(job_id))
        if isinstance(found, LodgerError):
            raise found
        return found


def _deliver_to(outcome: asyncio.Future[Outcome]) -> Callable[[Outcome], None]:
    """From the device's thread into the event loop that waits."""
    loop = asyncio.get_running_loop()

    def settle(found: Outcome) -> None:
        if not outcome.done():
            outcome.set_result(found)

    def deliver(found: Outcome) -> None:
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, found)

    return deliver
