"""The app under real uvicorn, for clients to talk to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection

import uvicorn
from fake_service import FakeService

from lodger.api.app import ApiOptions, build_app


@dataclass(frozen=True)
class Served:
    """A running server, and the service behind it."""

    service: FakeService
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def connection(self) -> Iterator[HTTPConnection]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def serving(service: FakeService, options: ApiOptions) -> Iterator[Served]:
    """The app under uvicorn, in a thread, on a port of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        app = build_app(service, replace(options, port=port))
        started = threading.Event()

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                started.set()

        server = Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert started.wait(20), "the server did not start"
            yield Served(service, port)
        finally:
            server.should_exit = True
            thread.join(20)
