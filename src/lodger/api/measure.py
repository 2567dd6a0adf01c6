"""What `/metrics` knows of requests: each is counted once, with its outcome, its time and its own tokens."""

from __future__ import annotations

import time
from asyncio import CancelledError
from types import TracebackType

from lodger import metrics
from lodger.errors import Cancelled, InternalError, LodgerError, UnknownModel
from lodger.tasks import Delta, Usage


class Measured:
    """Context of one request to one model."""

    def __init__(self, verb: str, model: str) -> None:
        self._verb, self._model = verb, model
        self._began = time.perf_counter()
        self._first = True

    def __enter__(self) -> Measured:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome = _outcome(error)
        # Callers can send any name: one that is no model must not make a time series of its own.
        model = "" if outcome == UnknownModel.code else self._model
        metrics.requests.labels(self._verb, model, outcome).inc()
        metrics.request_seconds.labels(self._verb, model).observe(time.perf_counter() - self._began)

    def delta(self, delta: Delta) -> None:
        """One more increment of a generation has come."""
        if self._first:
            self._first = False
            metrics.first_token_seconds.labels(self._model).observe(time.perf_counter() - self._began)
        if delta.usage is not None:
            self.usage(delta.usage)

    def usage(self, usage: Usage) -> None:
        metrics.prompt_tokens.labels(self._model).inc(usage.prompt_tokens)
        metrics.completion_tokens.labels(self._model).inc(usage.completion_tokens)


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    if isinstance(error, LodgerError):
        return error.code
    return Cancelled.code if isinstance(error, (CancelledError, GeneratorExit)) else InternalError.code
