"""`lodger down`: stop the server of this home and everything that it started."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from lodger.cli.options import HomeDir, home_of

if TYPE_CHECKING:
    from lodger.client import ServerRecord
    from lodger.process import Identity
    from lodger.service import ServerStatus

# The server lets running requests finish for 30 s at most; a second SIGTERM tells it to stop now.
PATIENCE = ((signal.SIGTERM, 45.0), (signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0))


def run(home: HomeDir = None) -> None:
    """Stop the server of this home.

    Running requests may finish; returns when every process is gone and the memory is back.
    """
    stop_server(home)


def stop_server(home: str | None) -> None:
    from lodger.cli.render import plural, say
    from lodger.client import running_server
    from lodger.process import identity
    from lodger.units import gib

    place = home_of(home)
    record = running_server(place)
    if record is None:
        say(f"No server runs for the home {place.root}.")
        return
    status = _last_status(record)
    workers = status.workers if status else ()
    processes = [record.process, *(who for worker in workers if worker.pid and (who := identity(worker.pid)))]
    if status and (busy := sum(model.running for model in status.models)):
        say(f"Waiting for {plural(busy, 'running request')} (at most 30 s).")
    _end(record, processes)
    place.server_record.unlink(missing_ok=True)  # a server that had to be killed leaves it behind
    held = sum(worker.used for worker in workers)
    say(f"Stopped {plural(len(processes), 'process')}{f'; {gib(held)} came back' if held else ''}.")


def _last_status(record: ServerRecord) -> ServerStatus | None:
    """What it says of itself before it goes, or None when it does not answer."""
    from lodger.client import Client
    from lodger.errors import LodgerError

    try:
        return Client(record.address, api_key=record.api_key, timeout=5.0).status()
    except LodgerError:
        return None


def _end(record: ServerRecord, processes: list[Identity]) -> None:
    from lodger.errors import SetupProblem
    from lodger.process import alive, signal_recorded

    for sig, seconds in PATIENCE:
        signal_recorded(record.process, sig)
        deadline = time.monotonic() + seconds
        while any(alive(process) for process in processes):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return
    left = ", ".join(str(process.pid) for process in processes if alive(process))
    raise SetupProblem(f"The server got every signal and still runs: {left}.", hint="`lodger logs` may say why.")
