"""Event streams: an event per delta as it comes, pings while none comes, and no work for a client that has left."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import msgspec
from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lodger.api.disconnect import gone, stop
from lodger.errors import Cancelled
from lodger.tasks import Delta

PING_SECONDS = 5.0  # proxies and clients give up on a silent connection after 30 s or more
_PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
SLOT = uuid.uuid4().hex  # what no caller can have sent
_encode = msgspec.json.Encoder().encode
_JSON_SLOT = _encode(SLOT)


def event(value: Any, name: str | None = None) -> bytes:
    """One event whose data is `value` as JSON."""
    head = b"data: " if name is None else f"event: {name}\ndata: ".encode()
    return head + _encode(value) + b"\n\n"


class EventTemplate:
    """An event of which one string changes, encoded once. The value has SLOT where that string stands."""

    def __init__(self, value: Any, name: str | None = None) -> None:
        self._before, self._after = event(value, name).split(_JSON_SLOT)

    def fill(self, text: str) -> bytes:
        return self._before + _encode(text) + self._after


class Renderer(Protocol):
    """Turns deltas into the bytes of a dialect's events. It keeps state, and does no input or output."""

    def feed(self, delta: Delta) -> bytes: ...

    def end(self) -> bytes: ...


async def open_stream(request: Request, deltas: AsyncGenerator[Delta, None], renderer: Renderer) -> Response:
    """The response that sends `deltas`, once the first of them is there.

    An error before the first delta is raised, so that it still becomes a proper HTTP status. A delta that takes longer
    than PING_SECONDS is not waited for: the stream starts with pings, and a later error goes into it.

    Raises:
        LodgerError: the generation failed at once.
    """
    first, watch = asyncio.ensure_future(anext(deltas)), asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({first, watch}, timeout=PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not first.done() and watch.done():
            raise Cancelled("The client went away.")
        if first.done():
            first.result()
    except BaseException:
        await stop(first)
        await deltas.aclose()
        raise
    finally:
        await stop(watch)
    return EventStream(first, deltas, renderer)


class EventStream(Response):
    """Sends what `renderer` makes of `first` and of the `deltas` after it, and closes `deltas` whatever happens.

    An error in mid-stream is raised; `lodger.api.border` makes it the stream's last event.
    """

    media_type = "text/event-stream"

    def __init__(self, first: asyncio.Future[Delta], deltas: AsyncGenerator[Delta, None], renderer: Renderer) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first, self._deltas, self._renderer = first, deltas, renderer
        self._quiet = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = asyncio.ensure_future(self._send_all(send))
        watch, pings = asyncio.ensure_future(gone(receive)), asyncio.ensure_future(self._ping(send))
        try:
            await asyncio.wait({body, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await stop(pings, watch, body, self._first)
            await self._deltas.aclose()
        if not body.cancelled():
            body.result()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            delta = await self._first
            while True:
                await self._send(send, self._renderer.feed(delta))
                delta = await anext(self._deltas)
        except StopAsyncIteration:
            await send({"type": "http.response.body", "body": self._renderer.end(), "more_body": False})

    async def _send(self, send: Send, data: bytes) -> None:
        if data:
            self._quiet = False
            await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _ping(self, send: Send) -> None:
        while True:
            await asyncio.sleep(PING_SECONDS)
            if self._quiet:
                await send({"type": "http.response.body", "body": _PING, "more_body": True})
            self._quiet = True
