"""`lodger adopt`: take over what Xinference serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lodger.cli.options import ApiKey, HomeDir, home_of

if TYPE_CHECKING:
    from lodger.adopt import Adoption

Source = Annotated[
    str, typer.Argument(metavar="URL|FOLDER", help="A running Xinference, or the folder that it was set up in.")
]
Models = Annotated[
    Path | None, typer.Option("--models", metavar="FOLDER", help="Where its model folders lie [Lodger's own].")
]
Output = Annotated[Path, typer.Option("--file", "-f", metavar="FILE", help="What to write.")]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that is there.")]


def run(
    source: Source = "http://127.0.0.1:9997",
    models: Models = None,
    file: Output = Path("lodger.yaml"),
    force: Force = False,
    api_key: ApiKey = None,
    home: HomeDir = None,
) -> None:
    """Write lodger.yaml with the models of a running Xinference.

    Same uids, folders and limits, so that clients notice nothing. What cannot be kept is named.
    """
    from lodger.adopt.document import write
    from lodger.cli.render import plural, say

    found = _read(source, models, api_key, home)
    write(found, file, over=force)
    _show(found)
    say(f"\n{file} has {plural(len(found.models), 'model')}. Stop Xinference, then: lodger plan, lodger up -d")


def _read(source: str, models: Path | None, api_key: str | None, home: str | None) -> Adoption:
    from lodger.adopt.folder import read_folder
    from lodger.adopt.running import read_server
    from lodger.client import Client
    from lodger.settings import read_settings

    if "://" not in source:
        return read_folder(Path(source), card=_card())
    folders = (models.expanduser(),) if models else ()
    client = Client(source, api_key=read_settings(api_key=api_key).api_key)
    return read_server(client, card=_card(), folders=(*folders, home_of(home).models))


def _card() -> int | None:
    """Bytes of the first GPU."""
    from lodger.device.probe import probe_devices

    return next((device.total for device in probe_devices() if device.kind == "cuda"), None)


def _show(found: Adoption) -> None:
    from lodger.cli.render import say, show_table

    show_table(
        ("UID", "TYPE", "NAME", "FOLDER"),
        [
            (one.spec.uid, one.spec.kind or "-", one.spec.name or "-", one.spec.path or "by its name")
            for one in found.models
        ],
    )
    for one in found.models:
        for note in one.notes:
            say(f"{one.spec.uid}: {note}")
    for left in found.left:
        say(f"not taken over: {left}")
