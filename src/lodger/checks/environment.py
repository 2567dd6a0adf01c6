"""`doctor`: everything that can go wrong before a model is loaded, measured in under a second, nothing changed."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from lodger.catalogue.identify import identify
from lodger.checks.base import Check
from lodger.checks.libraries import check_cuda, check_libraries, check_python
from lodger.client import running_server
from lodger.device.probe import probe_devices
from lodger.device.view import DeviceView
from lodger.errors import LodgerError, NotDownloaded
from lodger.paths import Home
from lodger.settings import DEFAULT_HOST, DEFAULT_PORT, proxy_variables
from lodger.spec import ModelSpec
from lodger.units import GIB, gib

ENOUGH_DISK = GIB  # the demo's models and logs; the guide's three models are 12 GiB
ENOUGH_RAM = 2 * GIB  # the demo's three models with their worker


def doctor(
    home: Home, specs: Sequence[ModelSpec] = (), *, host: str = DEFAULT_HOST, port: int = DEFAULT_PORT
) -> list[Check]:
    """Every check of this machine for a server of `home` at `host`:`port` that serves `specs`."""
    devices = probe_devices()
    return [
        check_python(),
        *check_libraries(),
        *check_cuda(devices),
        *(check_device(device) for device in devices),
        check_home(home.root),
        check_disk(home.root),
        check_port(home, host, port),
        check_proxy(host, proxy_variables()),
        *check_leftovers(home),
        *(check_model(spec, home.models) for spec in specs),
    ]


def check_device(device: DeviceView) -> Check:
    """Free memory, and who has the rest."""
    if device.kind == "cpu":
        enough = device.free >= ENOUGH_RAM
        return Check(
            name="RAM",
            state="ok" if enough else "warn",
            measured=f"{gib(device.free)} of {gib(device.total)} free",
            expected=f"{gib(ENOUGH_RAM)} or more for small models",
            hint=None if enough else "Close something, or serve from a GPU; `lodger plan` says what fits.",
        )
    others = [
        f"pid {one.pid} ({', '.join(filter(None, (one.user, one.command))) or 'not told by the driver'})"
        f" {gib(one.used) if one.used is not None else 'size unknown'}"
        for one in device.neighbours
    ]
    held = device.total - device.free
    shared = f"; {gib(held)} held{': ' + ', '.join(others) if others else ''}"
    enough = device.free >= ENOUGH_RAM
    return Check(
        name=device.id,
        state="ok" if enough else "warn",
        measured=f"{device.name}, {gib(device.free)} of {gib(device.total)} free{shared}",
        expected="room for the models; `lodger plan` says what fits",
        hint=None if enough else "Wait for a neighbour to finish, or choose another device.",
    )


def check_home(root: Path) -> Check:
    """Whether we may write where everything is kept."""
    there = _existing(root)
    good = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    return Check(
        name="home",
        state="ok" if good else "fail",
        measured=f"{root}{'' if there == root else ', not made yet'}{'' if good else f'; {there} cannot be written'}",
        expected="a folder that this user can write",
        hint=None if good else "Choose another with --home or LODGER_HOME.",
    )


def check_disk(root: Path) -> Check:
    free = shutil.disk_usage(_existing(root)).free
    good = free >= ENOUGH_DISK
    return Check(
        name="disk",
        state="ok" if good else "warn",
        measured=f"{gib(free)} free",
        expected=f"{gib(ENOUGH_DISK)} or more",
        hint=None if good else "Make room, or put the home on another disk with --home or LODGER_HOME.",
    )


def check_port(home: Home, host: str, port: int) -> Check:
    """Whether a server could listen, or who does."""
    name, expected = "port", f"{host}:{port} free"
    record = running_server(home)
    if record is not None and record.port == port:
        return Check(name=name, state="ok", measured=f"this home's server, pid {record.process.pid}", expected=expected)
    problem = _cannot_listen(host, port)
    if problem is None:
        return Check(name=name, state="ok", measured="free", expected=expected)
    return Check(
        name=name,
        state="fail",
        measured=f"taken by {_listener(port)}" if problem == errno.EADDRINUSE else os.strerror(problem),
        expected=expected,
        hint="Stop what has it, or choose another with --port.",
    )


def check_proxy(host: str, variables: Mapping[str, str]) -> Check:
    """Whether clients on this machine would send requests for it through a proxy."""
    expected = "requests to this machine go straight there"
    proxies = [name for name in ("http_proxy", "all_proxy") if name in variables]
    ours = ["localhost", DEFAULT_HOST] if host in ("0.0.0.0", "::", "localhost", DEFAULT_HOST) else [host]
    caught = [one for one in ours if not proxy_bypass_environment(one, {"no": variables.get("no_proxy", "")})]
    if not proxies or not caught:
        return Check(name="proxy", state="ok", measured="none in the way", expected=expected)
    return Check(
        name="proxy",
        state="warn",
        measured=f"{' and '.join(proxies)} set, and no_proxy does not name {' or '.join(caught)}",
        expected=expected,
        hint=f"export no_proxy={','.join(filter(None, [variables.get('no_proxy'), *caught]))}",
    )


def check_leftovers(home: Home) -> Iterator[Check]:
    """What a server of ours that did not end well left behind. Reported, never touched."""
    found = []
    if home.server_record.exists() and running_server(home) is None:
        found.append(f"{home.server_record.name} of a server that is gone")
    found += [f"worker process {pid} without its server" for pid in _orphans()]
    yield Check(
        name="leftovers",
        state="warn" if found else "ok",
        measured="; ".join(found) or "none",
        expected="none",
        hint="The next start replaces the record; end a process yourself if it is yours." if found else None,
    )


def check_model(spec: ModelSpec, models: Path) -> Check:
    """Whether the model's folder is there, whole and of a kind that is served; and room for what is still to be made.

    Nothing is asked of a hub: how large a model is that is not here, only the pull can tell.
    """
    name, expected = f"model {spec.uid}", "a folder that can be served"
    try:
        _, facts = identify(spec, models)
    except NotDownloaded as error:
        measured = f"{error.message} {gib(shutil.disk_usage(_existing(models)).free)} are free for it."
        return Check(name=name, state="warn", measured=measured, expected=expected, hint=error.hint)
    except LodgerError as error:
        return Check(name=name, state="fail", measured=error.message, expected=expected, hint=error.hint)
    size = sum(facts.stored_bytes.values())
    measured = f"{facts.kind}, {facts.architecture}, {gib(size)}"
    free = shutil.disk_usage(facts.path).free
    if facts.weights_format == "safetensors" or free > size:
        return Check(name=name, state="ok", measured=measured, expected=expected)
    return Check(
        name=name,
        state="warn",
        measured=f"{measured}, and {gib(free)} free on its disk",
        expected=f"{gib(size)} for its weights as safetensors, which are made once",
        hint="Make room on that disk.",
    )


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(one for one in (path, *path.parents) if one.exists())


def _cannot_listen(host: str, port: int) -> int | None:
    """Error number; None when it works."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            return error.errno
    return None


def _listener(port: int) -> str:
    """Who listens on `port`; the kernel tells only of our own processes unless we are root."""
    import psutil

    with suppress(psutil.AccessDenied):
        for one in psutil.net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN and getattr(one.laddr, "port", None) == port and one.pid:
                with suppress(psutil.Error):
                    return f"{psutil.Process(one.pid).name()} (pid {one.pid})"
    return "a process that only root or its owner can see"


def _orphans() -> list[int]:
    """Our user's workers whose server is gone: each names in its command the parent that started it."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError, ValueError):
            if process.uids().real != os.getuid():
                continue
            words = process.cmdline()
            if words[1:3] == ["-m", "lodger.process"] and int(words[3]) != process.ppid():
                found.append(process.pid)
    return found
