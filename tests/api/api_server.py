"""The app under real uvicorn, for clients to talk to."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from typing import Any

import uvicorn
from fake_service import FakeService
from fastapi import FastAPI

from lodger.api.app import ApiOptions, build_app


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """A running server, and the service behind it."""

    def __init__(self, app: FastAPI, port: int) -> None:
        self.app, self.port = app, port
        self.url = f"http://127.0.0.1:{port}"

    @property
    def service(self) -> FakeService:
        return self.app.state.service

    def renew(self) -> None:
        """A fresh service with the guide's three models."""
        self.app.state.service = FakeService()

    @contextmanager
    def connection(self) -> Iterator[HTTPConnection]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            yield connection
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """One request on a connection of its own. `body` is sent as JSON, or as it is when it is bytes."""
        with self.connection() as connection:
            return ask(connection, method, path, body, **headers)


def ask(connection: HTTPConnection, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, data, {key.replace("_", "-"): value for key, value in headers.items()})
    response = connection.getresponse()
    return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, response.read())


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
            yield Served(app, port)
        finally:
            server.should_exit = True
            thread.join(20)
