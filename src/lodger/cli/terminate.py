"""`lodger terminate UID`: unload one model."""

from __future__ import annotations

from typing import Annotated

import typer

from lodger.cli.options import ApiKey, Endpoint, HomeDir, complete_uid, connect

Uid = Annotated[str | None, typer.Argument(metavar="UID", help="The model's uid.", autocompletion=complete_uid)]
UidOption = Annotated[
    str | None, typer.Option("--model-uid", "-u", metavar="UID", help="The same, as Xinference writes it.")
]


def run(
    uid: Uid = None,
    model_uid: UidOption = None,
    endpoint: Endpoint = None,
    api_key: ApiKey = None,
    home: HomeDir = None,
) -> None:
    """Unload a model, or forget one that failed.

    Returns when its memory is back.
    """
    chosen = model_uid or uid
    if chosen is None or (uid and model_uid and uid != model_uid):
        raise typer.BadParameter("name one model: `lodger terminate UID`.")
    unload(chosen, endpoint, api_key, home)


def unload(uid: str, endpoint: str | None, api_key: str | None, home: str | None) -> None:
    from lodger.cli.render import say
    from lodger.units import gib

    client = connect(endpoint, api_key, home)
    held = {model.uid: sum(model.memory.values()) for model in client.models()}
    client.terminate(uid)
    came_back = f"; {gib(held[uid])} came back" if held.get(uid) else ""
    say(f"Stopped {uid}{came_back}.")
