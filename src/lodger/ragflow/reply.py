"""A request as RAGFlow sends it, and how it is sent: from here, or from inside of RAGFlow's container."""

from __future__ import annotations

import json
import re
import time
from http.client import HTTPException, HTTPResponse
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request

import msgspec

from lodger.client import is_loopback, plain_opener
from lodger.errors import LodgerError
from lodger.process import run_program

_PIECE = 65536
_WORDS = re.compile(rb'"(reasoning_)?content": ?"[^"]')


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came back. `unreached` says why nothing did."""

    status: int = 0
    body: bytes = b""
    seconds: float = 0.0
    unreached: str | None = None
    in_time: bool = True  # False: cut off at the limit, or where it was enough, with what had come by then

    def json(self) -> Any:
        """
        Raises:
            ValueError: it is none.
        """
        return json.loads(self.body)


class Sender(Protocol):
    """Sends one request and never raises for what the other side does."""

    where: str

    def send(
        self, method: str, url: str, headers: dict[str, str], body: Any, limit: float, *, words: bool = False
    ) -> Reply:
        """`words`: the first words of a stream are enough, as RAGFlow hangs up then too."""


class Direct:
    """From this machine."""

    where = "host"

    def send(
        self, method: str, url: str, headers: dict[str, str], body: Any, limit: float, *, words: bool = False
    ) -> Reply:
        data = None if body is None else json.dumps(body).encode()
        sent = {"content-type": "application/json", "accept": "*/*"} | headers
        opener = plain_opener(direct=is_loopback(urlsplit(url).hostname or ""))
        started = time.perf_counter()
        try:
            with opener.open(Request(url, data, sent, method=method), timeout=limit) as response:
                return _read(response, started, limit, words)
        except HTTPError as error:
            with error:
                return Reply(status=error.code, body=error.read(), seconds=time.perf_counter() - started)
        except TimeoutError:
            return Reply(seconds=limit, in_time=False)
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                return Reply(seconds=limit, in_time=False)
            return Reply(unreached=str(getattr(reason, "strerror", None) or reason))


def _read(response: HTTPResponse, started: float, limit: float, words: bool) -> Reply:
    """The body, or what of it had come at the limit: a stream may go on for long."""
    body = b""
    while piece := response.read1(_PIECE):
        body += piece
        seconds = time.perf_counter() - started
        if seconds > limit or (words and _WORDS.search(body)):
            return Reply(status=response.status, body=body, seconds=seconds, in_time=False)
    return Reply(status=response.status, body=body, seconds=time.perf_counter() - started)


class Container:
    """From inside a container, by curl, which RAGFlow's image has."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.where = name

    def send(
        self, method: str, url: str, headers: dict[str, str], body: Any, limit: float, *, words: bool = False
    ) -> Reply:
        command = ["docker", "exec", "-i", self.name, "curl", "--config", "-"]  # the key is in no list of processes
        config = _curl(method, url, headers, body, limit)
        try:
            done = run_program(command, given=config.encode(), timeout=limit + 15)
        except LodgerError as error:
            return Reply(unreached=error.message)
        answer, _, numbers = done.output.rpartition(b"\n")
        status, seconds, connected = (numbers.decode(errors="replace").split() + ["", "", ""])[:3]
        if done.returncode == _CUT and connected.strip("0."):  # it was reached, and is slow
            return Reply(status=int(status), body=answer, seconds=limit, in_time=False)
        if done.returncode:
            why = _CURL.get(done.returncode) or done.errors or f"curl exited with {done.returncode}"
            return Reply(unreached=why, in_time=done.returncode != _CUT)
        return Reply(status=int(status), body=answer, seconds=float(seconds))


_CUT = 28  # curl's exit code at --max-time
_CURL = {
    6: "its name is not known there",
    7: "connection refused",
    _CUT: "no answer in time",
    126: "there is no curl in the container",
    127: "there is no curl in the container",
}


def _curl(method: str, url: str, headers: dict[str, str], body: Any, limit: float) -> str:
    """curl's config file; a quoted value knows backslashes."""
    options: list[tuple[str, str]] = [("request", method), ("url", url), ("max-time", f"{limit:g}")]
    options += [
        ("header", f"{name}: {value}") for name, value in {"content-type": "application/json", **headers}.items()
    ]
    if body is not None:
        options.append(("data-binary", json.dumps(body)))
    options.append(("write-out", "\\n%{http_code} %{time_total} %{time_connect}"))
    lines = [f'{name} = "{_quoted(value, raw=name == "write-out")}"' for name, value in options]
    return "\n".join(["silent", "show-error", "no-buffer", "globoff", 'noproxy = "*"', *lines, ""])


def _quoted(value: str, *, raw: bool) -> str:
    return value if raw else value.replace("\\", "\\\\").replace('"', '\\"')
