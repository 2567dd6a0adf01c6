"""Children that cannot outlive us, and signals that reach nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from service_world import DEADLINE, run

from lodger.errors import SetupProblem
from lodger.process import Child, Identity, alive, detached_end, identity, run_module, signal_recorded, spawn_detached


def wait_for(holds: Callable[[], object]) -> None:
    limit = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.01)


async def sleeper(folder: Path, how: str = "pause") -> Child:
    child = await Child.spawn("sleeper", [how, str(folder / "ready")], log=folder / "child.log")
    await asyncio.to_thread(wait_for, (folder / "ready").exists)
    return child


def test_an_identity_is_a_pid_and_its_start() -> None:
    me = identity(os.getpid())
    assert me is not None
    assert alive(me)
    assert identity(os.getpid()) == me
    assert msgspec.json.decode(msgspec.json.encode(me), type=Identity) == me
    assert not alive(Identity(me.pid, me.started - 1))
    assert identity(2**22 + 1) is None  # above the largest pid there can be


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        who = identity(child.pid)
        assert who is not None
        wait_for(lambda: not alive(who))
        assert identity(child.pid) == who


def test_nothing_is_signalled_once_its_pid_is_somebody_elses(tmp_path: Path) -> None:
    async def main() -> None:
        child = await sleeper(tmp_path)
        reused = Identity(child.identity.pid, child.identity.started - 1)
        assert not signal_recorded(reused, signal.SIGKILL)
        other = Child(child._process, reused)
        assert not other.signal(signal.SIGKILL)
        assert alive(child.identity)
        assert child.returncode is None
        assert signal_recorded(child.identity, signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL
        assert not signal_recorded(child.identity, signal.SIGKILL)
        assert not child.signal(signal.SIGKILL)

    run(main())


def test_a_kernel_without_pidfd_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    async def main() -> None:
        child = await sleeper(tmp_path)
        monkeypatch.setattr(os, "pidfd_open", absent)
        assert not signal_recorded(Identity(child.identity.pid, 1), signal.SIGKILL)
        assert signal_recorded(child.identity, signal.SIGTERM)
        assert await child.wait() == -signal.SIGTERM

    run(main())


def test_stopping_asks_first_and_then_kills(tmp_path: Path) -> None:
    async def main() -> None:
        polite, deaf = tmp_path / "polite", tmp_path / "deaf"
        assert await (await sleeper(polite)).stop(DEADLINE) == -signal.SIGTERM
        assert await (await sleeper(deaf, "deaf")).stop(0.1) == -signal.SIGKILL
        assert (deaf / "child.log").read_text() == "half way\n"
        assert (deaf / "child.log").stat().st_mode & 0o777 == 0o600

    run(main())


def test_a_child_has_a_session_of_its_own(tmp_path: Path) -> None:
    async def main() -> None:
        child = await sleeper(tmp_path)
        try:
            assert os.getsid(child.identity.pid) == child.identity.pid  # Ctrl-C in our terminal does not reach it
        finally:
            await child.kill()

    run(main())


@pytest.mark.parametrize("stopped", [False, True])
def test_a_child_dies_with_its_parent_however_that_ends(tmp_path: Path, stopped: bool) -> None:
    """Even a stopped child, which can do nothing itself."""
    code = (
        "import asyncio, sys, lodger.process as p, pathlib\n"
        "async def main():\n"
        "    child = await p.Child.spawn('sleeper', ['deaf', sys.argv[1]], log=pathlib.Path(sys.argv[2]))\n"
        "    print(child.identity.pid, child.identity.started, flush=True)\n"
        "    await child.wait()\n"
        "asyncio.run(main())"
    )
    args = [sys.executable, "-c", code, str(tmp_path / "ready"), str(tmp_path / "log")]
    with subprocess.Popen(args, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Identity(*map(int, parent.stdout.readline().split()))
        wait_for((tmp_path / "ready").exists)
        if stopped:
            assert signal_recorded(child, signal.SIGSTOP)
        assert alive(child)
        parent.kill()
    wait_for(lambda: not alive(child))


def test_the_worker_dies_with_a_killed_gateway(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys, pathlib\n"
        "from service_world import *\n"
        "async def main():\n"
        "    async with serving(pathlib.Path(sys.argv[1])) as service:\n"
        "        await service.launch(spec('a'))\n"
        "        print((await service.status()).workers[0].pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as gateway:
        assert gateway.stdout is not None
        worker = identity(int(gateway.stdout.readline()))
        assert worker is not None
        assert alive(worker)
        gateway.kill()
    killed = time.monotonic()
    wait_for(lambda: not alive(worker))
    assert time.monotonic() - killed < 2


def test_a_child_whose_parent_is_gone_already_ends_at_once(tmp_path: Path) -> None:
    args = [sys.executable, "-m", "lodger.process", str(2**22 + 1), "sleeper", "pause", str(tmp_path / "ready")]
    assert subprocess.run(args, timeout=DEADLINE).returncode == 1
    assert not (tmp_path / "ready").exists()


def test_a_module_is_run_to_its_end_with_its_lines_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    run_module("sleeper", ["done", str(tmp_path / "ready")], report=lines.append)
    assert lines == ["half way"]
    with pytest.raises(SetupProblem, match=r"sleeper exited with code 3: first cause \| last words"):
        run_module("sleeper", ["fail", str(tmp_path / "ready")], report=lines.append)


def test_a_module_is_ended_when_its_lines_are_refused(tmp_path: Path) -> None:
    def refuse(line: str) -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_module("sleeper", ["pause", str(tmp_path / "ready")], report=refuse)
    assert time.monotonic() - started < DEADLINE


def test_a_detached_process_outlives_us_in_a_session_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "server.log"
    code = (
        "import sys, pathlib, lodger.process as p\n"
        "args = ['-m', 'sleeper', 'pause', sys.argv[1]]\n"
        "who = p.spawn_detached(args, pathlib.Path(sys.argv[2]), extra={'SECRET': 'x'})\n"
        "print(who.pid, who.started)"
    )
    args = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "ready"), str(log)]
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    who = Identity(*map(int, done.stdout.split()))
    wait_for((tmp_path / "ready").exists)
    try:
        assert alive(who)
        assert os.getsid(who.pid) == who.pid
        assert log.read_text() == "half way\n"
        assert b"SECRET=x" in Path(f"/proc/{who.pid}/environ").read_bytes().split(b"\0")
    finally:
        assert signal_recorded(who, signal.SIGTERM)
    wait_for(lambda: not alive(who))


def test_how_a_detached_process_ended_is_known(tmp_path: Path) -> None:
    for code, end in (("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 11)", -signal.SIGSEGV)):
        assert detached_end(spawn_detached(["-c", code], tmp_path / "log", extra={})) == end
