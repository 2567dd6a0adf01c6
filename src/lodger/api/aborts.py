"""Requests that carry a `request_id`, and that another request can abort by it, as Xinference's clients do.

To whoever answers, an aborted request is one whose client went away: that is understood everywhere already. The client
is still there, and is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lodger.api.disconnect import stop
from lodger.api.errors import error_event
from lodger.errors import Cancelled

NAME = "lodger.name"  # where `BodyLimit` leaves a request's name in its scope
_MOST_AWAITED = 1024  # ids that were aborted before their requests came


class Name(NamedTuple):
    """What a request is aborted by."""

    model: str
    request_id: str


class Running:
    """Requests in work, by what they can be aborted by."""

    def __init__(self) -> None:
        self._aborts: dict[Name, list[asyncio.Event]] = {}
        self._awaited: dict[Name, float] = {}  # until when one that comes is aborted at once

    def abort(self, name: Name, block_seconds: float) -> bool:
        """Abort every request of this name. If there is none, those that come within `block_seconds` will be.

        Returns:
            whether there was one.
        """
        found = self._aborts.get(name, [])
        for aborted in found:
            aborted.set()
        now = time.monotonic()
        self._awaited = {other: until for other, until in self._awaited.items() if until > now}
        if not found and block_seconds > 0 and len(self._awaited) < _MOST_AWAITED:
            self._awaited[name] = now + block_seconds
        return bool(found)

    @contextmanager
    def entered(self, name: Name) -> Iterator[asyncio.Event]:
        """One more request; the event is set when it is aborted."""
        aborted = asyncio.Event()
        if self._awaited.pop(name, 0.0) > time.monotonic():
            aborted.set()
        self._aborts.setdefault(name, []).append(aborted)
        try:
            yield aborted
        finally:
            self._aborts[name].remove(aborted)
            if not self._aborts[name]:
                del self._aborts[name]


class Abortable:
    """Middleware behind `BodyLimit`, which has read the body."""

    def __init__(self, app: ASGIApp, running: Running) -> None:
        self._app = app
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope.get(NAME)
        if name is None:
            await self._app(scope, receive, send)
            return
        with self._running.entered(name) as aborted:
            await _Request(receive, send, aborted).run(self._app, scope)


class _Request:
    """One request that may be aborted."""

    def __init__(self, receive: Receive, send: Send, aborted: asyncio.Event) -> None:
        self._receive, self._send, self._aborted = receive, send, aborted
        self._read = self._begun = self._ended = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        error = Cancelled("The request was aborted.")
        try:
            if self._aborted.is_set():
                raise error
            await app(scope, self.receive, self.send)
        except Cancelled:
            if self._aborted.is_set():
                raise error from None
            raise
        if self._aborted.is_set() and self._begun and not self._ended:
            await self._send({"type": "http.response.body", "body": error_event(error, scope["path"])})

    async def receive(self) -> Message:
        """The body, and then whichever comes first, the client's leaving or the abort, as the same message."""
        if not self._read:
            self._read = True
            return await self._receive()
        leaving, abort = asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._aborted.wait())
        try:
            await asyncio.wait({leaving, abort}, return_when=asyncio.FIRST_COMPLETED)
            return leaving.result() if leaving.done() else {"type": "http.disconnect"}
        finally:
            await stop(leaving, abort)

    async def send(self, message: Message) -> None:
        self._begun = True
        self._ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)


def name_in(body: Any) -> Name | None:
    """What the request with this JSON can be aborted by."""
    if not isinstance(body, dict):
        return None
    model, request_id = body.get("model"), body.get("request_id")
    if isinstance(model, str) and isinstance(request_id, str) and request_id:
        return Name(model, request_id)
    return None
