"""`lodger models`: the models known by name, and what is here of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lodger.cli.options import HomeDir, Json, home_of
from lodger.tasks import Kind

if TYPE_CHECKING:
    from lodger.catalogue.inventory import KnownModel

Search = Annotated[str | None, typer.Argument(metavar="WORD", help="Only models with this in one of their names.")]
OfKind = Annotated[Kind | None, typer.Option("--kind", "-k", help="Only models of this kind.")]


def run(search: Search = None, kind: OfKind = None, home: HomeDir = None, json: Json = False) -> None:
    """List the models known by name, and those on disk.

    Any other model of a hub can be had too, by its id: `lodger pull org/name`.
    """
    from lodger.catalogue.inventory import inventory
    from lodger.cli.render import plural, say, show_json

    models_dir = home_of(home).models
    found = [
        model
        for model in inventory(models_dir)
        if kind in (None, model.kind) and (search or "").strip().casefold() in model.words
    ]
    if json:
        show_json(found)
        return
    _show(found)
    here = [model for model in found if model.state != "absent"]
    total = sum(model.bytes_on_disk or 0 for model in here)
    say(f"\n{plural(len(found), 'model')}, {len(here)} in {models_dir}{_in_all(total)}. Fetch one: lodger pull NAME")


def complete_name(incomplete: str) -> list[str]:
    """Shell completion: the catalogue's names, or the hubs' ids once there is a slash."""
    from lodger.catalogue.builtin import builtin

    names = [name for entry in builtin().models for name in entry.names if ("/" in name) == ("/" in incomplete)]
    return [name for name in names if name.casefold().startswith(incomplete.casefold())]


def _show(models: list[KnownModel]) -> None:
    from lodger.cli.render import show_table
    from lodger.units import gib

    if not models:
        return
    rows = [
        (
            model.name,
            f"{model.kind or '-'}{f' ({model.quantization})' if model.quantization else ''}",
            "-" if model.state == "absent" else model.state,
            "-" if model.bytes_on_disk is None else gib(model.bytes_on_disk),
            model.folder or "-",
        )
        for model in models
    ]
    show_table(("NAME", "TYPE", "STATE", "ON DISK", "FOLDER"), rows)
    for model in models:
        if model.error:
            print(f"\n{model.name}: {model.error.message}")
            if model.error.hint:
                print(f"  {model.error.hint}")


def _in_all(total: int) -> str:
    from lodger.units import gib

    return f" ({gib(total)})" if total else ""
