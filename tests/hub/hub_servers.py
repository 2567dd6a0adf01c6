"""Both hubs on loopback: `HubServer` speaks the protocols of ModelScope and Hugging Face, faults included.

    with HubServer() as hub:
        hub.add("BAAI/bge-m3", {"config.json": b"{}", "model.safetensors": weights})
        hub.fail("model.safetensors", Cut(1000), Status(503))  # its next two answers; then all is well
        hub.fail("config.json", WrongBytes(), always=True)
        hub.fail_listing(Status(429, retry_after=1))
        run_child(environment=hub.environment(tmp_path))  # both SDKs read their constants from it when they start
        assert [(r.range, r.sent) for r in hub.served("model.safetensors")] == [(None, 1000), ("bytes=1000-", 0), ...]

Files of `Repo.large` bytes or more are sent by a redirect to `hub.cdn`, another host (127.0.0.2), with a signature in
the address, as both hubs do. A request for an absolute address is served too: set `http_proxy` to `hub.url`. The ways
to fail are in `hub_faults`. The fixture `hub` of tests/hub/conftest.py is one, running.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

from hub_faults import HERE, Cutoff, Fault
from hub_protocols import Routed, Stage, World, route
from hub_repos import Repo

Host = Literal["hub", "cdn"]
_ADDRESSES: dict[Host, str] = {"hub": "127.0.0.1", "cdn": "127.0.0.2"}


@dataclass
class Seen:
    """One request, and how many bytes of a body it got."""

    host: Host
    method: str
    url: str  # as it came: absolute when the client took us for its proxy
    headers: dict[str, str]  # names in lower case
    stage: Stage
    path: str | None  # of the file in its repository
    status: int = 0
    sent: int = 0

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


class HubServer:
    """See the top of this file. Everything may be called while clients are being served."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Seen] = []
        self.page = 1000  # entries in one page of Hugging Face's listing
        self.most = 3000  # entries that ModelScope lists at once
        self._lock = threading.Lock()
        self._next: dict[tuple[Stage, str | None], deque[Fault]] = {}
        self._always: dict[tuple[Stage, str | None], Fault] = {}
        self._planned: list[Fault] = []
        self._listeners = {host: _Listener(self, host, address) for host, address in _ADDRESSES.items()}
        self._threads = [threading.Thread(target=one.serve_forever, args=(0.01,)) for one in self._listeners.values()]

    def __enter__(self) -> HubServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for fault in self._planned:
            fault.release()
        for listener, thread in zip(self._listeners.values(), self._threads, strict=True):
            listener.shutdown()
            thread.join()
            listener.hang_up()
            listener.server_close()

    @property
    def url(self) -> str:
        return self._listeners["hub"].url

    @property
    def cdn(self) -> str:
        return self._listeners["cdn"].url

    def environment(self, home: Path) -> dict[str, str]:
        """Variables that bring both SDKs here and keep what they remember in `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "MODELSCOPE_ENDPOINT": self.url,
            "MODELSCOPE_HOME": str(home / "ms"),
            "MODELSCOPE_CACHE": str(home / "ms-cache"),
            "no_proxy": "127.0.0.1,127.0.0.2",
        }

    def add(self, name: str, files: Mapping[str, bytes] | Path, **more: Any) -> Repo:
        """A repository with these files, or with those of a folder. `more` as the fields of `Repo`."""
        if isinstance(files, Path):
            paths = sorted(path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        self.repos[name] = Repo(name, dict(files), **more)
        return self.repos[name]

    def fail(self, path: str, *faults: Fault, always: bool = False) -> None:
        """The next answers that carry bytes of the file `path`, one fault each; `always`: the one fault, every time."""
        self._plan("bytes", path, faults, always)

    def fail_resolve(self, path: str, *faults: Fault, always: bool = False) -> None:
        """The same for answers that only say where the bytes of `path` are."""
        self._plan("resolve", path, faults, always)

    def fail_listing(self, *faults: Fault, always: bool = False) -> None:
        """The same for answers about a repository and its files."""
        self._plan("listing", None, faults, always)

    def heal(self) -> None:
        """No more faults from here on."""
        with self._lock:
            self._next.clear()
            self._always.clear()

    def reset(self) -> None:
        """As new: no repositories, no faults, nothing on record; answers that wait go on."""
        self.heal()
        for fault in self._planned:
            fault.release()
        with self._lock:
            self.repos.clear()
            self.requests.clear()
        self.page, self.most = 1000, 3000

    def served(self, path: str) -> list[Seen]:
        """The requests that asked for bytes of the file `path`, in order."""
        with self._lock:
            return [seen for seen in self.requests if seen.stage == "bytes" and seen.path == path]

    def _plan(self, stage: Stage, path: str | None, faults: tuple[Fault, ...], always: bool) -> None:
        with self._lock:
            self._planned += faults
            if always:
                (self._always[stage, path],) = faults
            else:
                self._next.setdefault((stage, path), deque()).extend(faults)

    def answer(self, seen: Seen) -> tuple[Routed, Fault]:
        """For the listeners: what to answer to a request, and what goes wrong with it. The request is now on record."""
        with self._lock:
            world = World(self.repos, self.url, self.cdn, self.page, self.most)
            routed = route(world, seen.method, seen.url, seen.headers)
            seen.stage, seen.path = routed.stage, routed.path
            self.requests.append(seen)
            queue = self._next.get((routed.stage, routed.path))
            fault = queue.popleft() if queue else self._always.get((routed.stage, routed.path), Fault())
            return routed, fault


class _Listener(ThreadingHTTPServer):
    """One address that is listened at."""

    daemon_threads = False  # the end of the server waits for every answer
    request_queue_size = 64

    def __init__(self, hub: HubServer, host: Host, address: str) -> None:
        super().__init__((address, 0), _Handler)
        self.hub, self.host = hub, host
        self.url = f"http://{address}:{self.server_address[1]}"
        self._open: set[socket.socket] = set()

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        try:
            super().finish_request(request, client_address)
        except OSError:
            pass  # the client is gone
        finally:
            self._open.discard(request)

    def shutdown_request(self, request: Any) -> None:
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)[0]:
            self.close_request(request)  # a reset: no polite end before it
        else:
            super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that clients keep open."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: _Listener
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        parts = urlsplit(self.path)
        host: Host = "cdn" if parts.hostname == "127.0.0.2" else self.server.host
        seen = Seen(host, self.command, self.path, headers, "other", None)
        routed, fault = self.server.hub.answer(seen)
        try:
            self._send(routed, fault, seen)
        except Cutoff as cut:
            self.close_connection = True
            self.wfile.flush()
            cut.close(self.connection)

    do_HEAD = do_GET  # noqa: N815

    def _send(self, routed: Routed, fault: Fault, seen: Seen) -> None:
        fault.before()
        answer = fault.change(routed.answer)
        seen.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, self.path if value == HERE else value)
        if (length := fault.announced(len(answer.body))) is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return

        def write(data: bytes) -> None:
            self.wfile.write(data)
            seen.sent += len(data)

        fault.send(answer.body, write)

    def log_message(self, *_: object) -> None:
        pass
