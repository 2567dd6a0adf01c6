"""What is checked before a server loads anything: who may reach it, the port, and that the home has no other server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lodger.errors import AlreadyRunning, LodgerError, NotAllowed, PortTaken, SetupProblem
from lodger.paths import Home
from lodger.server import ServerOptions, bind, check_exposure, run_server


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gpu-box"])
def test_listening_beyond_this_machine_wants_a_key_or_a_word(host: str) -> None:
    with pytest.raises(NotAllowed, match=host) as caught:
        check_exposure(host, None, open=False)
    assert "--api-key" in (caught.value.hint or "")
    assert "--open" in (caught.value.hint or "")
    check_exposure(host, "s3cret", open=False)
    check_exposure(host, None, open=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_neither(host: str) -> None:
    check_exposure(host, None, open=False)


def test_a_taken_port_names_who_has_it_and_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"Port {port} is taken by .*\(pid {os.getpid()}\)") as caught:
            bind("127.0.0.1", port)
    hint = caught.value.hint or ""
    offered = int(hint.split("--port ")[1].split(",")[0])
    bind("127.0.0.1", offered).close()


def test_an_address_of_another_machine_is_refused_in_words() -> None:
    with pytest.raises(SetupProblem, match="192.0.2.7:9997"):
        bind("192.0.2.7", 9997)
    with pytest.raises(SetupProblem, match="not an address"):
        bind("no such host", 9997)


def test_bound_sockets_send_small_answers_at_once() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # what asyncio looks at before it sets TCP_NODELAY


def test_one_server_for_one_home(tmp_path: Path) -> None:
    home = Home(tmp_path).make()
    hold = f"import fcntl, sys; f = open({str(home.run / 'server.lock')!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
    talk = "print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", f"{hold} {talk}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(AlreadyRunning, match="runs already"):
            run_server(ServerOptions(home=home, host="127.0.0.1", port=0))
        other.stdin.close()
    assert other.returncode == 0


def test_nothing_is_made_before_the_guards_have_agreed(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises(LodgerError):
        run_server(ServerOptions(home=home, host="0.0.0.0", port=0))
    assert not home.root.exists()
