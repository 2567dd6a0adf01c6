"""`lodger logs [-f] [UID]`: last lines of the server's log or of one model's."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from lodger.cli.options import ApiKey, Endpoint, HomeDir, connect, home_of
from lodger.cli.terminate import Uid

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines as they come.")]
Lines = Annotated[int, typer.Option("--lines", "-n", min=1, help="How many lines from the end.")]
WINDOW = 500  # lines asked for at each look, so that a burst between two looks is not lost


def run(
    uid: Uid = None,
    follow: Follow = False,
    lines: Lines = 100,
    endpoint: Endpoint = None,
    api_key: ApiKey = None,
    home: HomeDir = None,
) -> None:
    """Show log lines of the server, or of one model.

    The server's can be read after it has stopped, too.
    """
    from lodger.errors import NotRunning

    try:
        client = connect(endpoint, api_key, home)
    except NotRunning:
        if uid or follow:
            raise
        _show_last(home, lines)
        return
    seen = client.logs(uid, max(lines, WINDOW) if follow else lines)
    _print(seen[-lines:])
    while follow:
        time.sleep(0.5)
        now = client.logs(uid, WINDOW)
        _print(fresh(seen, now))
        seen = now


def fresh(seen: list[str], now: list[str]) -> list[str]:
    """The lines of `now`, the newer window of one log, that come after all of `seen`."""
    for start in range(max(0, len(seen) - len(now)), len(seen)):
        if seen[start:] == now[: len(seen) - start]:
            return now[len(seen) - start :]
    return now


def _show_last(home: str | None, lines: int) -> None:
    from lodger.cli.render import say
    from lodger.log import tail

    place = home_of(home)
    say(f"No server runs for the home {place.root}; these are the last lines of {place.server_log}.")
    _print(tail(place.server_log, lines))


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)
