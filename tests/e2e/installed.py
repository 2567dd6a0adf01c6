"""The installed `lodger` command with a home of its own, as a user has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lodger.client import Client, running_server
from lodger.paths import Home
from lodger.process import Identity, alive, identity

Done = subprocess.CompletedProcess[str]


class Installed:
    """`lodger(...)` runs the command in `folder`, which holds the home and lodger.yaml."""

    def __init__(self, folder: Path) -> None:
        self.script = str(Path(sys.executable).with_name("lodger"))
        self.folder = folder
        self.home = folder / "home"
        hidden = ("LODGER_ENDPOINT", "LODGER_API_KEY")
        self.env = {name: value for name, value in os.environ.items() if name not in hidden}
        self.env |= {"LODGER_HOME": str(self.home), "NO_COLOR": "1"}

    def __call__(self, *args: str, timeout: float = 120, **env: str) -> Done:
        return subprocess.run(
            [self.script, *args],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.env | env,
            timeout=timeout,
            check=False,
        )

    def ok(self, *args: str, timeout: float = 120) -> Done:
        """A run that must succeed."""
        done = self(*args, timeout=timeout)
        assert done.returncode == 0, f"lodger {' '.join(args)}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *args: str) -> Any:
        return json.loads(self.ok(*args, "--json").stdout)

    # What runs, asked in-process: it is quicker than a command.
    @property
    def client(self) -> Client:
        record = running_server(Home(self.home))
        assert record is not None, "no server runs"
        return Client(record.address, api_key=record.api_key)

    @property
    def address(self) -> str:
        return self.client.base_url

    def states(self) -> dict[str, str]:
        return {model.uid: model.state for model in self.client.models()}

    def processes(self) -> list[Identity]:
        """The server and its workers, as they are now."""
        status = self.client.status()
        pids = [status.pid, *(worker.pid for worker in status.workers)]
        return [who for pid in pids if pid and (who := identity(pid))]

    def write_config(self, models: dict[str, Path]) -> None:
        """lodger.yaml with these uids and folders."""
        lines = [f"  {uid}: {path}\n" for uid, path in models.items()]
        (self.folder / "lodger.yaml").write_text("models:\n" + "".join(lines))


@contextmanager
def installed(folder: Path) -> Iterator[Installed]:
    """Whatever happens, no process of this home is left behind."""
    lodger = Installed(folder)
    try:
        yield lodger
    finally:
        lodger("down")
        assert not (lodger.home / "run" / "server.json").exists()


def left(processes: list[Identity]) -> list[int]:
    return [who.pid for who in processes if alive(who)]
