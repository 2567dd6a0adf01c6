"""Where RAGFlow runs: its container, and whether it can reach an address of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psutil

from lodger.checks.base import Check
from lodger.client import is_loopback
from lodger.errors import ConfigProblem, LodgerError
from lodger.process import run_program

_LIST = ["docker", "ps", "--format", "{{.Names}}\t{{.Image}}"]
_EVERYWHERE = ("0.0.0.0", "::")


def find_container(named: str | None) -> str | None:
    """The container to ask from: the one that is named, else one whose image is RAGFlow's. None: there is none.

    Raises:
        ConfigProblem: the named one does not run.
        SetupProblem: docker cannot be run, or says no.
    """
    done = run_program(_LIST, timeout=20)
    if done.returncode:
        raise ConfigProblem(f"docker says: {done.errors.splitlines()[-1] if done.errors else 'nothing'}")
    return pick(done.output.decode(errors="replace"), named)


def pick(listed: str, named: str | None) -> str | None:
    """Of the lines ``NAME<tab>IMAGE``; see `find_container`."""
    rows = [line.split("\t") for line in listed.splitlines() if "\t" in line]
    names = [name for name, _ in rows]
    if named is not None:
        if named not in names:
            raise ConfigProblem(f"No container {named} runs.", hint=f"These do: {', '.join(names) or 'none'}.")
        return named
    images = {name: image.rsplit("/", 1)[-1].partition(":")[0] for name, image in rows}
    return next((name for name, image in images.items() if image.startswith("ragflow")), None)


def no_docker(error: LodgerError, base_url: str) -> Check:
    """What to run where RAGFlow is, when it cannot be asked from here."""
    return Check(
        name="RAGFlow's container",
        state="warn",
        measured=f"not asked: {error.message}",
        expected="the same requests, sent from where RAGFlow runs",
        hint=by_hand(base_url),
    )


def by_hand(base_url: str) -> str:
    return f"Where RAGFlow runs: docker exec ragflow-server curl -sS {base_url.rstrip('/')}/v1/models"


def bridge_address(interfaces: Mapping[str, Any] | None = None) -> str | None:
    """IPv4 address of docker's bridge on this machine, which `host.docker.internal` is in RAGFlow's compose files."""
    found = psutil.net_if_addrs() if interfaces is None else interfaces
    return next((str(one.address) for one in found.get("docker0", ()) if "." in one.address), None)


def check_listening(host: str, port: int, bridge: str | None, *, in_docker: bool) -> Check:
    """Whether a container can reach what listens at `host`.

    Args:
        bridge: address of docker's bridge here; None: unknown.
        in_docker: a RAGFlow was found in a container of this machine.
    """
    name, measured = "listens at", f"{host}:{port}"
    expected = f"{bridge or 'the address of docker0'}, or 0.0.0.0 with a key"
    if host in _EVERYWHERE or (host == bridge and bridge is not None):
        return Check(name=name, state="ok", measured=measured, expected=expected)
    if not is_loopback(host):
        measured += ", which containers may reach or not"
        return Check(name=name, state="ok", measured=measured, expected=expected)
    return Check(
        name=name,
        state="fail" if in_docker else "warn",
        measured=f"{measured}: only programs outside of containers reach it",
        expected=expected,
        hint=(
            f"For RAGFlow in Docker: lodger down, then lodger up -d --host {bridge or '0.0.0.0'} --api-key KEY. "
            "Without Docker's containers (network_mode: host, or RAGFlow from source) it is right as it is."
        ),
    )
