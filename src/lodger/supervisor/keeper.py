"""`Keeper`: one worker process, kept alive. It starts, watches and restarts; it knows nothing of models."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from lodger import log
from lodger.errors import Draining, WorkerDown
from lodger.ipc.channel import Channel
from lodger.ipc.messages import VERSION, ToGateway
from lodger.metrics import worker_restarts
from lodger.process import Child, ended
from lodger.supervisor.backoff import Backoff
from lodger.supervisor.remote import RemoteWorker
from lodger.supervisor.visibility import as_seen, environment

_START_SECONDS = 180.0  # importing torch and transformers from a cold, slow disk
_EXIT_SECONDS = 1.0  # between a worker closing its socket and its end
_LOOKS = 20  # a silence is so many looks in a row: a gateway that was itself asleep has then seen only one
_LOAD_WEIGHT = 0.1  # of a look while a model is loaded: reading a large tensor from a slow disk may block everything
_LOG_PREFIX = re.compile(r"^\S+ \S+ [A-Z]+ \[[^\]]*\] [\w.]+: ")
_FOLDERS = re.compile(r"/(?:[^\s/'\":]+/)+")
_log = logging.getLogger("lodger.supervisor")


class Hooks(NamedTuple):
    """Whom a keeper asks, and whom it tells."""

    needed: Callable[[], bool]  # whether the worker should run without being wanted again
    up: Callable[[RemoteWorker], None]  # it takes requests
    down: Callable[[WorkerDown, bool], None]  # it is lost; whether it had been up


class Keeper:
    """Keeps the worker of one device alive, from the first `want` to `stop`.

    Args:
        engine: which engine the worker runs, as `lodger.engines.open_engine` takes it.
        log_file: what the worker prints.
        cache: folder of what it builds and can use again.
        silence: seconds without any sign of a worker that has work to do, after which it counts as hung.
    """

    def __init__(
        self, device: str, engine: str, log_file: Path, cache: Path, hooks: Hooks, *, silence: float = 20.0
    ) -> None:
        self.device = device
        self.log_file = log_file
        self.log_start = 0  # where in the log this worker's lines begin
        self.restarts = 0
        self._engine = engine
        self._cache = cache
        self._hooks = hooks
        self._silence = silence
        self._wanted = asyncio.Event()
        self._stopping = asyncio.Event()
        self._backoff = Backoff()
        self._child: Child | None = None
        self._remote: RemoteWorker | None = None
        self._up_since = self._next_start = time.monotonic()
        self._watching = asyncio.create_task(self._watch())

    @property
    def state(self) -> Literal["starting", "up", "down"]:
        if self._remote is not None:
            return "up"
        return "down" if self._child is None else "starting"

    @property
    def pid(self) -> int | None:
        return self._child.identity.pid if self._child else None

    @property
    def used(self) -> int:
        """Bytes it holds, as it last said."""
        return self._remote.used if self._remote else 0

    @property
    def uptime(self) -> float:
        return time.monotonic() - self._up_since if self._remote else 0.0

    @property
    def retry_after(self) -> int:
        """Whole seconds until the next start, at least one."""
        return max(1, math.ceil(self._next_start - time.monotonic()))

    def want(self) -> None:
        """Start the worker if it does not run."""
        self._wanted.set()

    async def stop(self, timeout: float) -> None:
        """End the worker for good: asked to, and killed `timeout` seconds later. Returns when its memory is back."""
        self._stopping.set()
        self._wanted.set()
        if self._remote is not None:
            self._remote.shutdown()
        elif self._child is not None:
            self._child.signal(signal.SIGTERM)
        await asyncio.wait([self._watching], timeout=timeout)
        if self._child is not None:
            self._child.signal(signal.SIGKILL)
        await self._watching

    async def _watch(self) -> None:
        """One worker after the other, as long as one is needed."""
        while not self._stopping.is_set():
            if not (self._wanted.is_set() or self._hooks.needed()):
                await self._wanted.wait()
                continue
            self._wanted.clear()
            try:
                await self._live()
            except Exception as problem:  # border: the watcher of a child process starts the next one whatever happens
                _log.exception("the worker of %s could not be kept", self.device)
                self._lose(None, f"could not be kept: {problem}")
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._next_start - time.monotonic())

    async def _live(self) -> None:
        """One process from its start to its end."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            child = self._child = await self._spawn(theirs)
            theirs.close()  # or we would never see the worker's end
            try:
                channel: Channel[ToGateway] = await Channel.open(ours, ToGateway)
                remote = RemoteWorker(channel)
                trouble = await self._greet(remote) or await self._attend(remote)
                await channel.close()
                self._lose(remote, trouble or ended(await child.stop(_EXIT_SECONDS)))
            finally:
                await child.kill()
                self._child = None

    async def _spawn(self, theirs: socket.socket) -> Child:
        log.rotate(self.log_file)
        self.log_start = log.size(self.log_file)
        fd = theirs.fileno()
        args = ["--fd", str(fd), "--device", as_seen(self.device), "--engine", self._engine]
        seen = environment(self.device, self._cache)
        child = await Child.spawn("lodger.worker", args, log=self.log_file, pass_fds=(fd,), environment=seen)
        _log.info("started the worker of %s, pid %d", self.device, child.identity.pid)
        return child

    async def _greet(self, remote: RemoteWorker) -> str | None:
        """Wait until it takes requests or ends. What is wrong with it, when it lives and something is."""
        try:
            version = await asyncio.wait_for(remote.greet(), _START_SECONDS)
        except asyncio.TimeoutError:
            return f"was not ready after {_START_SECONDS:g} s and was killed"
        if version is None:
            return None
        if version != VERSION:
            return "is of another version than the running server, which has to be restarted"
        self._up_since = time.monotonic()
        self._remote = remote
        if self._stopping.is_set():
            remote.shutdown()
        else:
            self._hooks.up(remote)
        return None

    async def _attend(self, remote: RemoteWorker) -> str | None:
        """Until it closes its end; or until it hangs, which is what it returns then."""
        running = asyncio.create_task(remote.run())
        heard, silent = -1, 0.0
        while not running.done() and silent < _LOOKS:
            await asyncio.wait([running], timeout=self._silence / _LOOKS)
            weight = _LOAD_WEIGHT if remote.loading else 1.0
            silent = silent + weight if remote.busy and remote.heard == heard else 0.0
            heard = remote.heard
        if running.done():
            running.result()
            return None
        running.cancel()
        return f"gave no sign of life for {self._silence:g} s and was killed"

    def _lose(self, remote: RemoteWorker | None, how: str) -> None:
        """Tell everybody that the worker is gone, and set the time of the next start."""
        up, self._remote = self._remote is not None, None
        if self._stopping.is_set():
            _log.info("the worker of %s %s", self.device, how)
            if remote is not None:
                remote.fail(Draining("The model's process was stopped."))
            return
        self.restarts += 1
        worker_restarts.labels(self.device).inc()
        self._backoff = self._backoff.after(time.monotonic() - self._up_since if up else 0.0)
        self._next_start = time.monotonic() + self._backoff.seconds
        error = self._reason(how)
        _log.error("%s", error.text)
        if remote is not None:
            remote.fail(error)
        self._hooks.down(error, up)

    def _reason(self, how: str) -> WorkerDown:
        last = [line for line in log.tail(self.log_file, 5, since=self.log_start) if line.strip()][-1:]
        said = _FOLDERS.sub("", _LOG_PREFIX.sub("", "".join(last)).strip())[:200]  # a folder is nobody else's business
        hint = f"It is started again in {self._backoff.seconds:g} s."
        if how == ended(-signal.SIGKILL):
            hint += " If nobody sent that signal, the kernel did because memory ran out."
        return WorkerDown(
            f"The model process of {self.device} {how}." + (f" Its last words: {said}." if said else ""),
            hint=hint,
            retry_after=self.retry_after,
        )
