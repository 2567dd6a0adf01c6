"""Limits that hold before a body is parsed or believed."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lodger.api.aborts import NAME, name_in
from lodger.errors import BodyTooLarge, Cancelled, MalformedBody
from lodger.units import MIB, gib

BODY_BYTES = 32 * MIB
JSON_DEPTH = 64
INPUTS = 2048  # texts of one embeddings request (OpenAI's limit)
DOCUMENTS = 2048  # of one rerank request
PROMPTS = 64  # of one completions request
CHOICES = 16  # `n`
STOPS = 16  # stop strings, and as many stop tokens
STOP_CHARACTERS = 512  # of one stop string
BIASES = 1024  # tokens of one `logit_bias`
ALTERNATIVES = 20  # `top_logprobs` (OpenAI's limit)
NUMBERS_BYTES = 32 * MIB  # of token vectors in one answer, as float32: bge-m3's of one text of 8,192 tokens
NOTES = 64  # unknown options of one launch that are answered one by one

_LONG_NUMBER = re.compile(rb"\d{19}")


class BodyLimit:
    """Reads a body whole, refuses what is too large or not sane JSON, and hands the rest on as JSON.

    Clients that forget the content type are understood; a form is not something that any route takes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(scope):
            await self._app(scope, receive, send)
            return
        body = await _read(scope, receive)
        name = name_in(parse_json(body)) if body else None
        scope = {**scope, "headers": list(scope["headers"]), NAME: name}
        MutableHeaders(scope=scope)["content-type"] = "application/json"
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)


def parse_json(body: bytes) -> Any:
    """
    Raises:
        MalformedBody: not UTF-8 JSON (NaN and lone surrogates are not), nested deeper than JSON_DEPTH, or with an
            integer beyond 64 bits, which no later step could carry.
    """
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise MalformedBody(f"The JSON is nested deeper than {JSON_DEPTH} levels.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedBody(f"The body is not JSON: {error}.") from None
    if body.count(b"[") + body.count(b"{") > JSON_DEPTH and _depth_exceeds(value, JSON_DEPTH):
        raise MalformedBody(f"The JSON is nested deeper than {JSON_DEPTH} levels.")
    if _LONG_NUMBER.search(body) and any(_is_wide(item) for item in _walk(value)):
        raise MalformedBody("An integer in the JSON does not fit into 64 bits.")
    return value


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


async def _read(scope: Scope, receive: Receive) -> bytes:
    declared = Headers(scope=scope).get("content-length", "")
    if declared.isdigit() and int(declared) > BODY_BYTES:
        raise BodyTooLarge(f"The body has {gib(int(declared))}; the limit is {gib(BODY_BYTES)}.")
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("The client went away before its body was read.")
        part = message.get("body", b"")
        size += len(part)
        if size > BODY_BYTES:
            raise BodyTooLarge(f"The body is larger than the limit of {gib(BODY_BYTES)}.")
        parts.append(part)
        more = message.get("more_body", False)
    return b"".join(parts)


def _children(value: Any) -> list[Any]:
    if type(value) is dict:
        return list(value.values())
    return value if type(value) is list else []


def _depth_exceeds(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for item in level for child in _children(item) if type(child) in (dict, list)]
    return bool(level)


def _walk(value: Any) -> list[Any]:
    found, level = [value], [value]
    while level:
        level = [child for item in level for child in _children(item)]
        found += level
    return found


def _is_wide(value: Any) -> bool:
    return type(value) is int and not -(2**63) <= value < 2**63
