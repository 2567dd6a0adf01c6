"""The only module that starts or signals a process.

A process is known by its `Identity`, the pid together with the time that it started, because a pid alone is given to
somebody else once its owner is gone. Nothing is ever looked up by name, and nothing is signalled whose identity we did
not record.

Children run through a small trampoline, `python -m lodger.process PARENT MODULE ARGS...` (the end of this file). It
asks the kernel to kill the child when its parent dies, which a `preexec_fn` could do only with the risk of a deadlock
in a process that has threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, NamedTuple

import msgspec

from lodger.errors import SetupProblem
from lodger.settings import child_environment, environment_with

_PR_SET_PDEATHSIG = 1
_GONE = -1  # the start time of a process that was over before we could read it: equal to nobody's
_LAST_LINES = 5


class Identity(msgspec.Struct, frozen=True):
    """One process for ever: its pid, and its start in clock ticks since boot (field 22 of /proc/PID/stat)."""

    pid: int
    started: int


def identity(pid: int) -> Identity | None:
    """Who has this pid now; None when nobody lives there."""
    found = _stat(pid)
    return None if found is None else Identity(pid, found[1])


def alive(who: Identity) -> bool:
    """Whether exactly this process still runs (a zombie does not)."""
    found = _stat(who.pid)
    return found is not None and found[1] == who.started and found[0] not in "ZX"


def signal_recorded(who: Identity, sig: int) -> bool:
    """Send `sig` to exactly this process. False, and nothing sent, when it is gone or its pid is somebody else's.

    Raises:
        SetupProblem: it belongs to another user.
    """
    try:
        handle = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return False
    except (OSError, AttributeError):  # a kernel or a Python build without pidfd: look, then send
        return alive(who) and _send(who, lambda: os.kill(who.pid, sig))
    try:  # the handle cannot change its owner between the look and the signal
        return alive(who) and _send(who, lambda: signal.pidfd_send_signal(handle, sig))
    finally:
        os.close(handle)


def _send(who: Identity, send: Callable[[], None]) -> bool:
    try:
        send()
    except ProcessLookupError:
        return False
    except PermissionError:
        raise SetupProblem(f"process {who.pid} belongs to another user and was left alone.") from None
    return True


def _stat(pid: int) -> tuple[str, int] | None:
    """State letter and start time."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command in parentheses may hold anything
    return fields[0], int(fields[19])


class Child:
    """A Python module running as our child, in a session of its own, its output in a log file.

    It dies with the thread that started it, so start it from the thread that lives as long as the program.
    """

    def __init__(self, process: asyncio.subprocess.Process, who: Identity) -> None:
        self._process = process
        self.identity = who

    @classmethod
    async def spawn(
        cls,
        module: str,
        args: list[str],
        *,
        log: Path,
        pass_fds: tuple[int, ...] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Child:
        """
        Args:
            environment: variables that it has beside ours, or instead of them.
        """
        with _append(log) as output:
            process = await asyncio.create_subprocess_exec(
                *_command(module, args),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=pass_fds,
                start_new_session=True,
                env=_environment(environment),
            )
        return cls(process, identity(process.pid) or Identity(process.pid, _GONE))

    @property
    def returncode(self) -> int | None:
        """Exit code, or minus the signal that ended it; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    def signal(self, sig: int) -> bool:
        return self.returncode is None and signal_recorded(self.identity, sig)

    async def stop(self, timeout: float) -> int:
        """TERM, and KILL when it still runs `timeout` seconds later. Returns as `returncode`."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(self.wait(), timeout)
        return await self.kill()

    async def kill(self) -> int:
        self.signal(signal.SIGKILL)
        return await self.wait()


def run_module(module: str, args: list[str], *, report: Callable[[str], None], online: bool = False) -> None:
    """Run `python -m module args` to its end, passing each line that it prints to `report` as it comes.

    Unless `online`, the libraries of hubs are told that there is no network.

    Raises:
        SetupProblem: it failed; with its exit code and its last lines on stderr.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        with subprocess.Popen(
            _command(module, args),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            env=_environment({}, online=online),
        ) as process:
            try:
                for line in process.stdout or ():
                    report(line.rstrip("\n"))
            except BaseException:
                process.kill()
                raise
        if process.returncode == 0:
            return
        errors.seek(0)
        said = [line.strip() for line in errors if line.strip()][-_LAST_LINES:]
    raise SetupProblem(f"{module} {ended(process.returncode)}: {' | '.join(said) or 'it said nothing'}")


class Finished(NamedTuple):
    """How another program ended, and what it said."""

    returncode: int
    output: bytes
    errors: str


def run_program(words: list[str], *, given: bytes = b"", timeout: float) -> Finished:
    """Run another program to its end with `given` as its input.

    Raises:
        SetupProblem: there is no such program, or it took longer than `timeout` seconds (and was killed).
    """
    try:
        done = subprocess.run(words, input=given, capture_output=True, timeout=timeout, check=False)
    except OSError as error:
        raise SetupProblem(f"{words[0]} cannot be run: {error.strerror}.") from None
    except subprocess.TimeoutExpired:
        raise SetupProblem(f"{words[0]} did not end within {timeout:.0f} s.") from None
    return Finished(done.returncode, done.stdout, done.stderr.decode(errors="replace").strip())


def spawn_detached(args: list[str], log_path: Path, *, extra: dict[str, str]) -> Identity:
    """Start `python ARGS` in a session of its own that outlives us, its output appended to `log_path`.

    `extra` goes into its environment: what must not be seen in a list of processes, such as a key.
    """
    with _append(log_path) as output:
        process = subprocess.Popen(
            [sys.executable, *args],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment_with({"PYTHONSAFEPATH": "1", **extra}),
        )
    process.returncode = 0  # it need not be waited for, and Popen would warn about that
    return identity(process.pid) or Identity(process.pid, _GONE)


def detached_end(who: Identity) -> int:
    """Exit code, or minus the signal that ended it, of a process that we detached ourselves and that is over."""
    return os.waitstatus_to_exitcode(os.waitpid(who.pid, 0)[1])


def _append(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600))


def ended(returncode: int) -> str:
    """How a process ended, in words: "exited with code 3", "was ended by SIGKILL"."""
    if returncode >= 0:
        return f"exited with code {returncode}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"was ended by signal {-returncode}"


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` dies; leave at once if that has happened already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise SetupProblem(f"prctl(PR_SET_PDEATHSIG) failed: {os.strerror(ctypes.get_errno())}.")
    if os.getppid() != parent:
        os._exit(1)


def _command(module: str, args: list[str]) -> list[str]:
    return [sys.executable, "-m", "lodger.process", str(os.getpid()), module, *args]


def _environment(extra: Mapping[str, str], *, online: bool = False) -> dict[str, str]:
    # Python must not look for modules in whatever folder we were started from (3.11 and newer know this name).
    return child_environment({"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **extra}, online=online)


def _trampoline(parent: str, module: str, *args: str) -> None:
    die_with_parent(int(parent))
    sys.argv = [module, *args]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _trampoline(*sys.argv[1:])
