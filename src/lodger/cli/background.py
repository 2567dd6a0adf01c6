"""Starting a server that outlives the command."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lodger.client import ServerRecord
    from lodger.paths import Home


def start_server(home: Home, words: list[str], *, api_key: str | None) -> ServerRecord:
    """Start `lodger serve WORDS` in the background and return when it takes requests.

    Raises:
        SetupProblem: it ended at once; with how, and what it said of that.
    """
    from lodger import log
    from lodger.client import running_server
    from lodger.errors import SetupProblem
    from lodger.process import alive, detached_end, ended, spawn_detached

    home.make()
    log.rotate(home.server_log)
    before = log.size(home.server_log)
    key = {"LODGER_API_KEY": api_key} if api_key else {}
    process = spawn_detached(["-m", "lodger", "serve", *words], home.server_log, extra=key)
    while (record := running_server(home)) is None or record.process != process:
        if not alive(process):
            said = log.without_info(log.tail(home.server_log, 20, since=before))[-5:]
            raise SetupProblem(
                f"The server {ended(detached_end(process))} at once{': ' if said else '.'}{' '.join(said)}",
                hint=f"All that it said is in {home.server_log}.",
            )
        time.sleep(0.02)
    return record
