"""How an error looks over HTTP: one body that OpenAI's, Anthropic's, Xinference's and Cohere's clients all read."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lodger.api.sse import event
from lodger.errors import InternalError, LodgerError, MalformedBody
from lodger.log import request_id

log = logging.getLogger(__name__)

_NO_RETRY_HELPS = {413, 507}  # the OpenAI SDK repeats every 5xx unless told otherwise
# RAGFlow looks for words in whole bodies, and repeats for minutes where it meets "server" or "rate limit" before
# "invalid", "permission" or "capacity": what cannot succeed the second time has to say one of these.
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    507: "insufficient_capacity_error",
}


def error_value(error: LodgerError, status: int | None = None) -> dict[str, Any]:
    """The value of ``error`` in bodies and in event streams; `status` where it is not the error's own."""
    kind = error_type(status or error.status)
    return {"message": error.text, "type": kind, "code": error.code, "param": error.param, "hint": error.hint}


def error_type(status: int) -> str:
    """OpenAI's word for errors of this status, and ours where it has none."""
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


def error_event(error: LodgerError, path: str) -> bytes:
    """What ends a stream that fails. Anthropic's clients pass over events without a name; others may trip over one."""
    named = path.rstrip("/").endswith("/messages")
    return event({"type": "error", "error": error_value(error)}, "error" if named else None)


def error_response(error: LodgerError, *, status: int | None = None) -> Response:
    """`error` as a response; `status` overrides its own where a dialect has another convention."""
    status = status or error.status
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if status in _NO_RETRY_HELPS:
        headers["x-should-retry"] = "false"
    return _render(status, error.text, error_value(error, status), headers)


def answerable(error: BaseException) -> LodgerError:
    """What the caller may see of `error`; what is not ours to show goes to the log, under the request's id."""
    if isinstance(error, LodgerError):
        return error
    log.error("a request met a defect", exc_info=error)
    return InternalError(
        f"Lodger failed inside on request {request_id.get()}.", hint="Its log has the details under this id."
    )


# What Xinference has and Lodger has elsewhere or not at all, by the first segment after the version.
_ELSEWHERE = {
    "clusters": "Lodger is stopped on its own machine, by `lodger down`.",
    "virtualenvs": "Lodger makes no virtual environments and installs nothing.",
    "autostart": "What starts with Lodger stands in lodger.yaml.",
    "downloads": "Models are fetched on Lodger's own machine, by `lodger pull`.",
    "admin": "Lodger has one key and no users.",
    "auth": "Lodger has one key and no users.",
}


def _no_route(method: str, path: str) -> str:
    first = next((part for part in path.split("/") if part not in ("", "v1")), "")
    why = _ELSEWHERE.get(first, "Lodger serves chat, embeddings and rerank.")
    return f"No route {method} {path[:200]}. {why}"


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Unknown routes and methods, in the shape of every other error."""
    assert isinstance(error, HTTPException)
    codes = {404: "route_not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    texts = {
        404: _no_route(request.method, request.url.path),
        405: f"{request.method} is not for {request.url.path[:200]}.",
    }
    text = texts.get(error.status_code, str(error.detail))
    value = {"message": text, "type": error_type(error.status_code), "code": code, "param": None}
    return _render(error.status_code, text, value, dict(error.headers or {}))


async def on_invalid_body(request: Request, error: Exception) -> Response:
    """The first field that does not fit, by name, as 400."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place, *path = [str(part) for part in first["loc"]]
    if not path:
        return error_response(MalformedBody("The body must be a JSON object with the fields of this route."))
    field = ".".join(path)
    text = f"{field}: {first['msg']}" if place == "body" else f"{place} parameter {field}: {first['msg']}"
    return error_response(MalformedBody(f"{text}.", param=path[0]))


def _render(status: int, text: str, value: dict[str, Any], headers: dict[str, str]) -> Response:
    body = msgspec.json.encode({"type": "error", "detail": text, "error": value})
    return Response(body, status, headers, media_type="application/json")
