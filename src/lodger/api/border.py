"""The HTTP border: every request gets an id, and every exception becomes an answer here or nowhere."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lodger.api.errors import answerable, error_event, error_response
from lodger.log import request_id

_ID = re.compile(r"[\w.:@+/=-]{1,128}", re.ASCII)


class Border:
    """Outermost middleware. Takes a sane ``x-request-id`` from the caller, or makes one, and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope).get("x-request-id", "")
        given = asked if _ID.fullmatch(asked) else uuid.uuid4().hex
        request_id.set(given)  # every request runs in a task, and so a context, of its own
        begun: MutableHeaders | None = None  # headers of the answer that is already on its way

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = MutableHeaders(scope=message)
                begun["x-request-id"] = given
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:  # the HTTP border: `answerable` logs what is not a LodgerError under the request id
            shown = answerable(error)
            if begun is None:
                await error_response(shown)(scope, receive, send_with_id)
            elif begun.get("content-type", "").startswith("text/event-stream"):
                await send({"type": "http.response.body", "body": error_event(shown, scope["path"])})
            else:
                raise  # half an answer is out; only closing the connection tells the caller so
