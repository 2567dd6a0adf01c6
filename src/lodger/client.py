"""Which server runs for a home, and a small HTTP client of its admin API, for the command line and the checks."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

import msgspec
from msgspec.json import Decoder, decode

from lodger.errors import BY_CODE, ConfigProblem, KeyRequired, LodgerError, NotReady, NotRunning
from lodger.paths import Home
from lodger.plan.values import Plan
from lodger.process import Identity, alive
from lodger.service import ModelStatus, ServerStatus
from lodger.spec import ModelSpec

_TURN_SECONDS = 600.0  # a long answer may have to end before its model sleeps


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class ServerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The running server of a home, as run/server.json tells it (0600: it may hold the key)."""

    process: Identity
    host: str
    port: int
    api_key: str | None = None

    @property
    def address(self) -> str:
        """Where a client on this machine reaches it."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


# Made with the module: msgspec looks at a type when it is first decoded, and crashes where two threads do that at once.
_RECORD = Decoder(ServerRecord)
_STATUS, _MODEL, _MODELS = Decoder(ServerStatus), Decoder(ModelStatus), Decoder(list[ModelStatus])
_PLANS = Decoder(tuple[Plan, ...])


def running_server(home: Home) -> ServerRecord | None:
    """The server that runs for this home now. A record whose process is gone, or is another one, is no server."""
    try:
        record = _RECORD.decode(home.server_record.read_bytes())
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return record if alive(record.process) else None


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would carry the key to another host; Lodger never sends one, so none is followed."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Client:
    """Talks to one server.

    Args:
        base_url: the server's root, with or without a trailing ``/v1``.
        api_key: sent as a bearer token when given.
        timeout: seconds without a byte after which a request is given up.

    Raises (every method):
        NotRunning: nothing answers there.
        LodgerError: what the server said, rebuilt.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout: float = 60.0) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigProblem(f"{base_url!r} is not the address of a server.", hint="Write it like http://host:9997.")
        self.api_key = api_key
        self.timeout = timeout
        self.local = is_loopback(parts.hostname)
        self._opener = plain_opener(direct=self.local)

    def healthy(self) -> bool:
        """Whether a server answers at all, whatever its models do."""
        try:
            self._send("GET", "/healthz", timeout=2.0)
        except LodgerError:
            return False
        return True

    def status(self) -> ServerStatus:
        return _STATUS.decode(self._send("GET", "/lodger/status"))

    def models(self) -> list[ModelStatus]:
        return _MODELS.decode(self._send("GET", "/lodger/models"))

    def model(self, uid: str) -> ModelStatus:
        return _MODEL.decode(self._send("GET", f"/lodger/models/{quote(uid, safe='')}"))

    def launch(self, spec: ModelSpec, *, wait: bool = False) -> ModelStatus:
        """Ask for a model; without `wait` this returns as soon as the plan has granted it."""
        return _MODEL.decode(self._send("POST", f"/lodger/models?wait={str(wait).lower()}", spec))

    def terminate(self, uid: str) -> None:
        """Returns when the model's memory is back."""
        self._send("DELETE", f"/lodger/models/{quote(uid, safe='')}", timeout=120.0)

    def sleep(self, uid: str) -> ModelStatus:
        """Returns when the requests in work are done and the model's memory is back."""
        return self._turn(uid, "sleep")

    def wake(self, uid: str) -> ModelStatus:
        """Returns when the model serves."""
        return self._turn(uid, "wake")

    def _turn(self, uid: str, verb: str) -> ModelStatus:
        path = f"/lodger/models/{quote(uid, safe='')}/{verb}"
        return _MODEL.decode(self._send("POST", path, timeout=_TURN_SECONDS))

    def plan(self, specs: tuple[ModelSpec, ...]) -> tuple[Plan, ...]:
        """What would happen if these were launched beside what runs now: one plan for each device in use then."""
        return _PLANS.decode(self._send("POST", "/lodger/plan", {"models": specs}))

    def logs(self, uid: str | None, lines: int) -> list[str]:
        query = urlencode({"lines": lines} | ({"uid": uid} if uid else {}))
        return decode(self._send("GET", f"/lodger/logs?{query}"), type=list[str])

    def get(self, path: str) -> Any:
        """What a path says, as JSON."""
        body = self._send("GET", path)
        try:
            return json.loads(body)
        except ValueError:
            raise LodgerError(f"{self.base_url}{path} is no JSON: {body[:80].decode(errors='replace')}") from None

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Any JSON request, as a client of the server would send it."""
        return decode(self._send("POST", path, body), type=dict[str, Any])

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON events of a server-sent stream, up to ``[DONE]``; an error event is raised."""
        with self._answer("POST", path, body) as response:
            for raw in response:
                data = raw.decode().removeprefix("data:").strip() if raw.startswith(b"data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    event = json.loads(data)
                    if "error" in event:
                        raise _error(500, data.encode())
                    yield event

    def _send(self, method: str, path: str, body: Any = None, *, timeout: float | None = None) -> bytes:
        with self._answer(method, path, body, timeout) as response:
            return response.read()

    @contextmanager
    def _answer(self, method: str, path: str, body: Any = None, timeout: float | None = None) -> Iterator[HTTPResponse]:
        headers = {"content-type": "application/json"} if body is not None else {}
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else msgspec.json.encode(body)
        request = Request(self.base_url + path, data, headers, method=method)
        try:
            with self._opener.open(request, timeout=timeout or self.timeout) as response:
                yield response
        except HTTPError as error:
            with error:
                raise _error(error.code, error.read()) from None
        except TimeoutError:
            raise NotReady(f"{self.base_url} did not answer within {timeout or self.timeout:.0f} s.") from None
        except (URLError, HTTPException, ConnectionError) as error:
            if isinstance(error, URLError) and isinstance(error.reason, TimeoutError):
                raise NotReady(f"{self.base_url} did not answer within {timeout or self.timeout:.0f} s.") from None
            reason = getattr(error, "reason", error)
            raise NotRunning(
                f"No server answers at {self.base_url} ({getattr(reason, 'strerror', None) or reason}).",
                hint="Start one with `lodger up`, or name a running one with --endpoint http://host:port.",
            ) from None


def plain_opener(*, direct: bool) -> OpenerDirector:
    """Follows no redirect; without proxies for this machine's own addresses, which a proxy cannot reach."""
    return build_opener(_NoRedirect, ProxyHandler({})) if direct else build_opener(_NoRedirect)


def _error(status: int, body: bytes) -> LodgerError:
    """The error that a body describes, whichever server wrote it."""
    if status == 401:
        return KeyRequired("The server wants its API key.", hint="Give it with --api-key KEY or LODGER_API_KEY.")
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    error = answer.get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict) and error.get("code") in BY_CODE:
        hint = error.get("hint") or None
        message = str(error.get("message")).removesuffix(hint or "").rstrip()
        return BY_CODE[error["code"]](message, hint=hint, param=error.get("param"))
    said = answer.get("detail") if isinstance(answer, dict) else None
    return LodgerError(f"The server answered {status}: {said or body[:200].decode(errors='replace')}")
