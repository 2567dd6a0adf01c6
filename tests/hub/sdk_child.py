"""A process with the real SDKs, which read their environment when they are imported, and the calls that it takes.

It does not sleep between attempts: it notes for how long it would have.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from lodger.catalogue.repository import HubName
from lodger.errors import ErrorInfo, LodgerError, from_info
from lodger.hub import TABLE, open_hub
from lodger.hub.base import Hub, Listing, RemoteFile
from lodger.settings import child_environment


class Call(msgspec.Struct):
    hub: HubName
    repo: str | None = None  # list it ...
    revision: str | None = None
    listing: Listing | None = None  # ... or download from it
    files: tuple[RemoteFile, ...] = ()  # all at once
    folder: str = ""


class Result(msgspec.Struct):
    listing: Listing | None = None
    paths: tuple[str, ...] = ()
    advanced: list[int] = []
    slept: list[float] = []
    error: ErrorInfo | None = None
    errno: int | None = None  # of an OSError


class SdkChild:
    """Knows the hubs by `environment` alone."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(environment, online=True),
        )

    def list_files(self, hub: HubName, repo: str, revision: str | None = None) -> Listing:
        listing = self.call(Call(hub, repo=repo, revision=revision)).listing
        assert listing is not None
        return listing

    def download(self, listing: Listing, path: str, folder: Path) -> Result:
        """One file, and its `paths[0]`."""
        return self.call(self.wanted(listing, path, folder=folder))

    @staticmethod
    def wanted(listing: Listing, *paths: str, folder: Path) -> Call:
        files = tuple(file for file in listing.files if file.path in paths)
        return Call(listing.hub, listing=listing, files=files, folder=str(folder))

    def call(self, call: Call) -> Result:
        """
        Raises:
            LodgerError, OSError: what the adapter raised.
        """
        self.send(call)
        return self.receive()

    def receive(self) -> Result:
        """What the last call came to."""
        assert self._process.stdout is not None
        result = msgspec.json.decode(self._process.stdout.readline(), type=Result)
        if result.error is not None:
            raise from_info(result.error)
        if result.errno is not None:
            raise OSError(result.errno, "from the child")
        return result

    def send(self, call: Call) -> None:
        """Begin it, and do something else."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(call) + b"\n")
        self._process.stdin.flush()

    def limit_files(self, size: int) -> None:
        """From now on no file of it may have more bytes, as with a quota."""
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, size))

    def end(self, *, kill: bool = False) -> str:
        """What it printed on stderr in its life."""
        if kill:
            self._process.kill()
        return self._process.communicate()[1].decode()

    def __enter__(self) -> SdkChild:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.returncode is None:
            self.end(kill=True)


def _perform(call: Call, hub: Hub, slept: list[float]) -> Result:
    result, lock = Result(), threading.Lock()

    def advance(count: int) -> None:
        with lock:
            result.advanced.append(count)

    def fetch(file: RemoteFile) -> str:
        assert call.listing is not None
        return str(hub.download(call.listing, file, Path(call.folder), advance))

    slept.clear()
    try:
        if call.repo is not None:
            result.listing = hub.list_files(call.repo, call.revision)
        else:
            with ThreadPoolExecutor() as pool:
                result.paths = tuple(pool.map(fetch, call.files))
    except LodgerError as error:
        result.error = error.info()
    except OSError as error:
        result.errno = error.errno
    result.slept = list(slept)
    return result


def _without_sleep(slept: list[float]) -> None:
    """ModelScope's downloads wait for an event instead of sleeping."""
    from modelscope_hub import _download_control

    def sleep(_: Any, seconds: float) -> None:
        slept.append(seconds)

    _download_control._DownloadControl.sleep = sleep  # type: ignore[assignment]


def main() -> None:
    slept: list[float] = []
    time.sleep = slept.append  # type: ignore[assignment]
    hubs = {name: open_hub(name) for name in TABLE}  # imports what sleeps
    for line in sys.stdin.buffer:
        call = msgspec.json.decode(line, type=Call)
        if call.hub == "modelscope":
            _without_sleep(slept)
        sys.stdout.buffer.write(msgspec.json.encode(_perform(call, hubs[call.hub], slept)) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
