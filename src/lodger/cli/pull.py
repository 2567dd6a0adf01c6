"""`lodger pull`: have the files of a model on this machine."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from lodger.cli.models import complete_name
from lodger.cli.options import File, FromHub, HomeDir, Json

if TYPE_CHECKING:
    from lodger.catalogue.repository import Repository
    from lodger.cli.wanted import Wanted
    from lodger.hub.job import Pulled

Names = Annotated[
    list[str] | None,
    typer.Argument(
        autocompletion=complete_name,
        metavar="[NAME]...",
        help="Names of the catalogue, ids of a hub, or paths like ./bge-m3 [the names in ./lodger.yaml].",
    ),
]
Revision = Annotated[
    str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit [what is here, else the newest].")
]
Verify = Annotated[bool, typer.Option("--verify", help="Look at every byte of what is here, and mend it.")]
Size = Annotated[str | None, typer.Option("--size-in-billions", "-s", help="Picks among the sizes of one name.")]


def run(
    names: Names = None,
    hub: FromHub = None,
    revision: Revision = None,
    verify: Verify = False,
    size_in_billions: Size = None,
    file: File = None,
    home: HomeDir = None,
    json: Json = False,
) -> None:
    """Fetch what serving a model needs.

    From ModelScope, or Hugging Face where that is silent or has no such model. What is here already is checked, not
    fetched again; a pull that was cut short goes on where it was.
    """
    from lodger.cli.progress import reporting
    from lodger.cli.render import say, show_json
    from lodger.cli.wanted import DEFAULT_FILE, Flags, wanted
    from lodger.hub.pull import pull

    file = file or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    what = wanted(Flags(home=home, file=file, hub=hub), needs_models=not names)
    found = []
    for target in _targets(names or [], size_in_billions, what):
        with reporting() as report:
            pulled = pull(*target, report, say=say, hub=what.hub, revision=revision, verify=verify)
        found.append(pulled)
        if not json:
            print(_line(pulled, verified=verify), flush=True)
    if json:
        show_json(found)


class Target(NamedTuple):
    repository: Repository
    models_dir: Path


def _targets(names: list[str], size: str | None, what: Wanted) -> list[Target]:
    """All of them known before the first is fetched.

    Raises:
        UnknownName, ConfigProblem.
    """
    from lodger.errors import ConfigProblem

    asked = [(name, size) for name in names]
    if not names:
        asked = [(spec.name or spec.uid, spec.size_in_billions) for spec in what.specs if spec.path is None]
    if not asked:
        raise ConfigProblem("Every model of lodger.yaml is a folder.", hint="Name what to fetch: lodger pull bge-m3")
    return list(dict.fromkeys(_target(*one, what.home.models) for one in asked))


def _target(name: str, size: str | None, models_dir: Path) -> Target:
    """What a name means, and the folder that the model is in already, whatever that is called."""
    from msgspec.structs import replace

    from lodger.catalogue.names import repository
    from lodger.catalogue.resolve import resolve
    from lodger.errors import ModelProblem
    from lodger.spec import ModelSpec

    if name.startswith(("/", "./", "../", "~")):
        folder = Path(os.path.abspath(os.path.expanduser(name)))
        return Target(replace(_of_folder(folder, size), folder=folder.name), folder.parent)
    found = repository(name, size)
    with suppress(ModelProblem):  # it is not here yet
        path = resolve(ModelSpec(uid=name, size_in_billions=size), models_dir).path or ""
        return Target(replace(found, folder=os.path.relpath(path, models_dir)), models_dir)
    return Target(found, models_dir)


def _of_folder(folder: Path, size: str | None) -> Repository:
    """Which model a folder is, by what filled it, or by its own name.

    Raises:
        UnknownName.
    """
    from lodger.catalogue.folders import modelscope_origin
    from lodger.catalogue.names import repository
    from lodger.errors import UnknownName
    from lodger.hub.manifest import read_manifest

    manifest = read_manifest(folder)
    try:
        return repository((manifest.repo if manifest else modelscope_origin(folder)) or folder.name, size)
    except UnknownName:
        raise UnknownName(
            f"Nothing tells which model the folder {str(folder)!r} is.",
            hint="Call it like the model, as `lodger models` does, and pull it again; or serve it as it is.",
        ) from None


def _line(pulled: Pulled, *, verified: bool) -> str:
    from lodger.cli.render import plural
    from lodger.hub.job import TITLES
    from lodger.units import gib

    what = "here already, every byte as it should be" if verified else "here already"
    if pulled.fetched_files:
        what = f"{plural(pulled.fetched_files, 'file')} ({gib(pulled.fetched_bytes)}) came from {TITLES[pulled.hub]}"
    if pulled.replaced:
        what += f", replacing what was not the hub's: {', '.join(pulled.replaced)}"
    return f"{pulled.folder}  {gib(pulled.bytes)}  {what}"
