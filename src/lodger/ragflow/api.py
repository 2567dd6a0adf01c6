"""RAGFlow's own HTTP: a code and a message in every answer, mostly under status 200."""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request

import msgspec

from lodger.client import is_loopback, plain_opener
from lodger.errors import ConfigProblem, RagflowProblem

TIMEOUT = 120.0  # seconds: adding a model makes RAGFlow ask it, 10 s each
_REFUSED = (401, 403, 109)  # RAGFlow's codes for a key that it does not take
_DOWN = "RAGFlow does not answer at"


class Call(msgspec.Struct, frozen=True):
    """One call that changes something there."""

    method: str
    path: str
    body: dict[str, Any]

    def shown(self) -> str:
        """As a line, with keys and passwords hidden."""
        return f"{self.method} {self.path} {json.dumps(_hidden(self.body), ensure_ascii=False)}"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What RAGFlow said. `code` 0 is success; 404 stands for a route that this version does not have."""

    code: int
    message: str = ""
    data: Any = None
    token: str | None = None  # the header of a login

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The objects in `data`, which is a list or holds one under `name`."""
        found = self.data.get(name) if isinstance(self.data, dict) else self.data
        return [row for row in found or () if isinstance(row, dict)]


class Ragflow:
    """One RAGFlow.

    Args:
        url: where its web page is; a path in it is kept.
        authorization: the whole header, ``Bearer ragflow-...`` or the token of a login; None before a login.
        dry: look, but send nothing that changes anything; `calls` has what would have been sent.
    """

    def __init__(self, url: str, *, authorization: str | None = None, dry: bool = False) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigProblem(f"{url!r} is not the address of RAGFlow.", hint="Write it like http://host:80.")
        self.authorization = authorization
        self.dry = dry
        self.calls: list[Call] = []
        self._opener = plain_opener(direct=is_loopback(parts.hostname))

    def get(self, path: str) -> Answer:
        return self._ask("GET", path, None)

    def change(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        """Send what changes something, or only note it when dry.

        Raises:
            RagflowProblem: no answer, or one that is not RAGFlow's.
        """
        self.calls.append(Call(method, path, body))
        return Answer(code=0) if self.dry else self._ask(method, path, body)

    def must(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        """`change` that has to succeed.

        Raises:
            RagflowProblem: with RAGFlow's own words.
        """
        answer = self.change(method, path, body)
        if answer.code:
            raise refusal(f"{method} {path}", answer)
        return answer

    def login(self, path: str, body: dict[str, Any]) -> Answer:
        """A login changes nothing that dry promises to leave alone, but is no call to show."""
        return self._ask("POST", path, body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Answer:
        headers = {"content-type": "application/json", "accept": "application/json"}
        if self.authorization:
            headers["authorization"] = self.authorization
        data = None if body is None else json.dumps(body).encode()
        try:
            with self._opener.open(Request(self.url + path, data, headers, method=method), timeout=TIMEOUT) as reply:
                return _answer(reply.status, reply.read(), reply.headers.get("authorization"))
        except HTTPError as error:
            with error:
                return _answer(error.code, error.read(), None)
        except TimeoutError:
            raise RagflowProblem(f"{_DOWN} {self.url} within {TIMEOUT:.0f} s.") from None
        except (URLError, HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            raise RagflowProblem(
                f"{_DOWN} {self.url} ({getattr(reason, 'strerror', None) or reason}).",
                hint="--url is the address of its web page, such as http://localhost (port 80).",
            ) from None


def refusal(what: str, answer: Answer) -> RagflowProblem:
    """RAGFlow's no, with what to do about it."""
    said = answer.message.strip() or "without a word of why"
    if answer.code in _REFUSED:
        return RagflowProblem(
            f"RAGFlow does not take this key: {said} (code {answer.code}).",
            hint="Make one in RAGFlow under avatar > API. Versions up to 0.22 take no API key here: use --email.",
        )
    if "access" in said.lower() or "connection" in said.lower():
        hint = "RAGFlow could not use a model at that base URL: `lodger ragflow check` says why."
        return RagflowProblem(f"RAGFlow refused {what}: {said}", hint=hint)
    return RagflowProblem(f"RAGFlow refused {what}: {said} (code {answer.code}).")


def refused(answer: Answer) -> bool:
    """Whether the key was at fault."""
    return answer.code in _REFUSED


def _answer(status: int, body: bytes, token: str | None) -> Answer:
    try:
        said = json.loads(body)
    except ValueError:
        said = None
    if isinstance(said, dict) and isinstance(said.get("code"), int):
        message = said.get("message") or said.get("error") or ""
        return Answer(code=said["code"], message=str(message), data=said.get("data"), token=token)
    if status in (404, 405):
        return Answer(code=404, message="it has no such route")
    if status in (401, 403):
        return Answer(code=status, message="not authorised")
    start = body[:80].decode(errors="replace").strip()
    raise RagflowProblem(
        f"What answers with {status} there is not RAGFlow's API: {start or 'an empty body'}",
        hint="--url is the address of RAGFlow's web page, such as http://localhost (port 80) or its API's port, 9380.",
    )


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        secret = ("api_key", "password")
        return {key: "***" if key in secret and item not in ("", "x") else _hidden(item) for key, item in value.items()}
    return [_hidden(item) for item in value] if isinstance(value, list) else value
