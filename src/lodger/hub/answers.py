"""What it means when a hub refuses, is silent or sends something else: in our errors' words, and when to ask again.

Nothing here repeats what a server said: addresses of its storage hold signatures.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

from lodger.catalogue.repository import HubName
from lodger.errors import DamagedDownload, HubProblem, HubRefused, HubUnreachable
from lodger.hub.base import RemoteFile
from lodger.hub.job import TITLES

T = TypeVar("T")


class Asked(NamedTuple):
    """Whom we asked for what."""

    hub: HubName
    address: str  # "https://www.modelscope.cn"
    mirror: str  # the SDK's variable for another address
    token: str  # the SDK's variable for a token
    repo: str
    revision: str | None = None
    path: str | None = None  # of a file

    @property
    def who(self) -> str:
        return f"{TITLES[self.hub]} at {self.address}"

    @property
    def what(self) -> str:
        return f"{self.path} of {self.repo}" if self.path else self.repo


def refusal(asked: Asked, status: int, *, url: str, retry_after: int | None = None) -> HubProblem:
    """What an answer of `status` 400 or more from `url` means. If it may pass, it is a HubUnreachable."""
    if status == 429:
        wait = f" {retry_after} s" if retry_after else ""
        hint = f"Run it again later: what has come stays. With {asked.token} a hub allows more."
        return HubUnreachable(f"{asked.who} asks to wait{wait} (status 429).", hint=hint, retry_after=retry_after)
    if status in (408, 425) or status >= 500 or _origin(url) != _origin(asked.address):  # a signature that is too old
        where, hint = _where(asked, _origin(url)), "Run it again later: what has come stays."
        return HubUnreachable(f"Trouble at {where} (status {status}).", hint=hint, retry_after=retry_after)
    if status in (401, 403):
        return no_permission(asked, status)
    if status == 404:
        return unknown(asked, status)
    return HubRefused(f"{asked.who} refuses {asked.what} (status {status}).", hint="Look at the name and the revision.")


def no_permission(asked: Asked, status: int) -> HubRefused:
    return HubRefused(
        f"{asked.who} gives {asked.repo} only to those who may have it (status {status}).",
        hint=f"Get access on its page there, then set {asked.token} to a token of yours.",
    )


def unknown(asked: Asked, status: int) -> HubRefused:
    revision = f", or no revision {asked.revision} of it" if asked.revision else ""
    return HubRefused(
        f"{asked.who} has no {asked.what}{revision} (status {status}).",
        hint=f"Look at the name, or try the other hub with --hub. A private model needs {asked.token}.",
    )


def silence(asked: Asked, error: BaseException) -> HubUnreachable:
    """No answer, or one that broke off."""
    host = next((host for one in _chain(error) if (host := _host(one))), None)
    return HubUnreachable(
        f"No answer from {_where(asked, host)}: {_reason(error)}.",
        hint=f"Check the network and the proxy variables; {asked.mirror} names a mirror. What has come stays.",
    )


def nonsense(asked: Asked) -> HubUnreachable:
    """An answer that is not the hub's."""
    return HubUnreachable(
        f"{asked.who} answered for {asked.what} with something that is not a hub's listing.",
        hint=f"A proxy or a login page may be in between; {asked.mirror} names the address to ask.",
    )


def wrong_size(asked: Asked, file: RemoteFile, sent: int) -> DamagedDownload:
    return DamagedDownload(
        f"{asked.who} sends {sent:,} bytes as {asked.what}, and its listing says {file.size:,}.",
        hint="Try again later, or name the other hub with --hub.",
    )


def remote_file(asked: Asked, path: str, size: int, sha256: str | None, git_sha1: str | None = None) -> RemoteFile:
    """
    Raises:
        HubRefused: a path that would leave the model's folder, or a size below zero.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path or size < 0:
        raise HubRefused(f"{asked.who} lists {path[:80]!r} in {asked.repo}, which is no file of a model.")
    return RemoteFile(str(PurePosixPath(path)), size, _hex(sha256, 64), _hex(git_sha1, 40))


def seconds(header: str | None) -> int | None:
    """Of a Retry-After header, where it counts seconds."""
    return int(header) if header and header.strip().isdecimal() else None


class Retries(NamedTuple):
    """When to ask again after a failure that may pass."""

    delays: tuple[float, ...] = (1, 2, 4, 8)  # seconds before each further attempt
    longest: float = 60  # whoever asks for more is not waited for
    sleep: Callable[[float], None] = time.sleep

    def run(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns. A HubUnreachable is tried again after each delay, a DamagedDownload once."""
        damaged = False
        for delay in self.delays:
            try:
                return attempt()
            except HubUnreachable as error:
                wait = max(delay, error.retry_after or 0)
                if wait > self.longest:
                    raise
            except DamagedDownload:
                if damaged:
                    raise
                damaged, wait = True, delay
            self.sleep(wait)
        return attempt()


class Meter:
    """Tells how many bytes have come, from positions in a file."""

    def __init__(self, advance: Callable[[int], None], start: int) -> None:
        self._advance = advance
        self.position = start

    def at(self, position: int) -> None:
        if position != self.position:
            self._advance(position - self.position)
            self.position = position


def _hex(digest: str | None, length: int) -> str | None:
    return digest.lower() if digest and re.fullmatch(rf"[0-9a-fA-F]{{{length}}}", digest) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _host(error: BaseException) -> str | None:
    """Scheme, host and port that an error of an HTTP client is about."""
    try:
        url = getattr(getattr(error, "request", None), "url", None)
    except RuntimeError:  # how httpx says that it has none
        return None
    return _origin(str(url)) if url else None


def _where(asked: Asked, host: str | None) -> str:
    if host in (None, _origin(asked.address)):
        return asked.who
    return f"{host}, where {asked.who} keeps its files"


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _reason(error: BaseException) -> str:
    """In the words of the operating system where it has any."""
    said = [text for one in _chain(error) if isinstance(one, OSError) and (text := one.strerror)]
    if said:
        return said[-1]
    late = any(isinstance(one, TimeoutError) or "Timeout" in type(one).__name__ for one in _chain(error))
    return "it took too long" if late else "the connection broke off"
