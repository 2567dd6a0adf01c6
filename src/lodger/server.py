"""The composition root: one server for one home, made of supervisor, HTTP app and uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import fcntl
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from lodger import __version__, interpreter, log
from lodger.client import ServerRecord, is_loopback, running_server
from lodger.errors import AlreadyRunning, LodgerError, NotAllowed, PortTaken, SetupProblem
from lodger.paths import Home
from lodger.process import Identity, identity
from lodger.spec import ModelSpec

if TYPE_CHECKING:
    import uvicorn

    from lodger.supervisor.local_service import LocalService

_log = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0  # how long running requests may go on after the first SIGTERM or Ctrl-C


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What a server is told at its start."""

    home: Home
    host: str
    port: int  # 0: any free one
    api_key: str | None = None
    open: bool = False  # may listen beyond this machine without a key
    specs: tuple[ModelSpec, ...] = ()
    reserve: int | None = None  # bytes left to others; None: the planner's own
    device: str | None = None  # None: the best that the machine has


def check_exposure(host: str, api_key: str | None, *, open: bool) -> None:
    """Refuse to listen where others can reach it with nothing in their way.

    Raises:
        NotAllowed: not loopback, no key and not told that this is meant.
    """
    if not (is_loopback(host) or api_key or open):
        raise NotAllowed(
            f"Listening on {host} lets every machine that reaches this one use and manage the models.",
            hint="Give a key (--api-key KEY or LODGER_API_KEY), or say --open if that is meant.",
        )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        PortTaken: with who has it, when that is visible, and the next free port.
        SetupProblem: not an address of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise SetupProblem(f"{host!r} is not an address to listen on: {error.strerror}.") from None
    # Only with the protocol named does asyncio set TCP_NODELAY; without it small answers wait 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise SetupProblem(f"Cannot listen on {host}:{port}: {error.strerror}.") from None
        raise PortTaken(
            f"Port {port} is taken by {_holder(port)}.",
            hint=f"Use --port {_next_free(family, address)}, or stop what has it.",
        ) from None
    return listener


def _holder(port: int) -> str:
    """Who listens on `port`, as far as this user may see it."""
    import psutil

    for connection in psutil.net_connections("tcp"):
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        if listens and connection.pid:
            with contextlib.suppress(psutil.Error):
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "a process of another user"


def _next_free(family: int, address: Any) -> int:
    """The first free port after that of `address`; 0, which takes any, when the next hundred are taken."""
    for port in range(address[1] + 1, min(address[1] + 100, 65536)):
        with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.bind((address[0], port, *address[2:]))
            return port
    return 0


def run_server(options: ServerOptions, *, started: Callable[[ServerRecord], None] = lambda record: None) -> None:
    """Serve until SIGTERM or Ctrl-C. `started` is told once, when requests are taken and the record is written.

    Raises:
        NotAllowed, AlreadyRunning, PortTaken: before anything is loaded.
    """
    check_exposure(options.host, options.api_key, open=options.open)
    options.home.make()
    with _only_server(options.home), bind(options.host, options.port) as listener:
        import uvloop

        faulthandler.enable()  # a crash in native code leaves its stack where errors go
        log.setup(options.home.server_log)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its comings and goings are told by us
        uvloop.run(_serve(options, listener, started))


@contextmanager
def _only_server(home: Home) -> Iterator[None]:
    """Hold the home's lock. The kernel lets go of it when this process ends, however it ends."""
    with (home.run / "server.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            record = running_server(home)
            where = f"{record.address} (pid {record.process.pid})" if record else "it is just starting or stopping"
            raise AlreadyRunning(
                f"A server of the home {home.root} runs already: {where}.",
                hint="Use it, stop it with `lodger down`, or give the new one its own --home.",
            ) from None
        yield


async def _serve(options: ServerOptions, listener: socket.socket, started: Callable[[ServerRecord], None]) -> None:
    from lodger.supervisor.local_service import LocalService

    host, port = listener.getsockname()[:2]
    record = ServerRecord(process=_ourselves(), host=host, port=port, api_key=options.api_key)
    service = LocalService(options.home, address=record.address, reserve=options.reserve, device=options.device)
    launching = asyncio.create_task(_launch(service, options.specs))
    # Beside the launch: FastAPI takes half a second to import, and the worker's libraries ten times that.
    server = await asyncio.to_thread(_http_server, service, options, host, port)
    _Stop(server, service).take_signals()
    _write_record(options.home, record)
    interpreter.settle()
    _log.info("Lodger %s serves at %s.", __version__, record.address)
    started(record)
    try:
        await server.serve(sockets=[listener])
    finally:
        launching.cancel()
        await service.close()
        options.home.server_record.unlink(missing_ok=True)


def _ourselves() -> Identity:
    who = identity(os.getpid())
    assert who is not None
    return who


def _write_record(home: Home, record: ServerRecord) -> None:
    """All at once, so that no reader ever sees half of it."""
    fresh = home.server_record.with_suffix(".new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(record))
    fresh.replace(home.server_record)


async def _launch(service: LocalService, specs: tuple[ModelSpec, ...]) -> None:
    """One model that cannot be had keeps none of the others away; the log says why."""
    for spec in specs:
        try:
            await service.launch(spec, wait=False)
        except LodgerError as error:
            _log.error("%s was not launched: %s", spec.uid, error.text)


def _http_server(service: LocalService, options: ServerOptions, host: str, port: int) -> uvicorn.Server:
    import uvicorn

    from lodger.api.app import build_app
    from lodger.api.context import ApiOptions

    config = uvicorn.Config(
        build_app(service, ApiOptions(api_key=options.api_key, host=host, port=port, open=options.open)),
        loop="none",  # ours runs already
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than clients keep idle connections, so that none is closed under a request
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]  # `_Stop` has the signals
    return server


class _Stop:
    """SIGTERM and Ctrl-C: the first lets running requests finish, the second does not wait for them."""

    def __init__(self, server: uvicorn.Server, service: LocalService) -> None:
        self._server = server
        self._service = service
        self._draining: asyncio.Task[None] | None = None

    def take_signals(self) -> None:
        for sig in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(sig, self._on_signal)

    def _on_signal(self) -> None:
        if self._draining is None:
            _log.info("Stopping: running requests may finish within %.0f s.", DRAIN_SECONDS)
            self._draining = asyncio.create_task(self._drain())
        else:
            _log.info("Stopping now.")
            self._draining.cancel()
            self._server.should_exit = self._server.force_exit = True

    async def _drain(self) -> None:
        await self._service.drain(DRAIN_SECONDS)
        self._server.should_exit = True
