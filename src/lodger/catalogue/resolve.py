"""From what someone typed to a model folder: a path, or one of the many names a model goes by."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from lodger.catalogue.builtin import Entry
from lodger.catalogue.folders import ModelFolder, model_folders, origin
from lodger.catalogue.names import find, hub_id, key, unknown
from lodger.errors import FolderMissing, ModelProblem, NotDownloaded, UnknownName
from lodger.spec import ModelSpec


def resolve(spec: ModelSpec, models_dir: Path) -> ModelSpec:
    """`spec` with `path` as an absolute folder, and `kind` where the catalogue knows it and the spec does not say.

    A path wins over a name. A spec with neither is looked up by its uid.

    Raises:
        FolderMissing: there is no folder at that path.
        NotDownloaded: a model of the catalogue or of a hub that is not in `models_dir`, or only a part of it is.
        UnknownName: names the near misses, or the sizes to choose from.
    """
    if spec.path is not None:
        return msgspec.structs.replace(spec, path=_existing(spec.path))
    asked = spec.name or spec.uid
    entry, ambiguous = _entry(asked, spec.size_in_billions)
    meant = matching(asked, entry, model_folders(models_dir))
    found = [folder for folder in meant if not _is_anothers(models_dir / folder.name, asked, entry)]
    if not found or not found[0].whole:
        raise ambiguous or _absent(asked, entry, partly=bool(found))
    path = os.path.abspath(models_dir / found[0].name)
    return msgspec.structs.replace(spec, path=path, kind=spec.kind or (entry.kind if entry else None))


def _entry(asked: str, size: str | None) -> tuple[Entry | None, UnknownName | None]:
    """What the catalogue says; that the name is ambiguous there matters only if no folder has it."""
    try:
        return find(asked, size), None
    except UnknownName as error:
        return None, error


def matching(asked: str, entry: Entry | None, folders: list[ModelFolder]) -> list[ModelFolder]:
    """Those of the folders that `asked` may mean, the likeliest first: whole before partly there, our own name before a
    hub's and an alias, the exact spelling before others.

    What was typed is only ever compared with what is there, so it cannot lead anywhere else.
    """
    repo = hub_id(asked)
    names = [*(entry.names if entry else ()), asked, *((repo, repo.partition("/")[2]) if repo else ())]
    ranks = {key(name): rank for rank, name in reversed(list(enumerate(names)))}
    meant = [folder for folder in folders if key(folder.name) in ranks]
    return sorted(meant, key=lambda folder: (not folder.whole, ranks[key(folder.name)], folder.name not in names))


def _is_anothers(folder: Path, asked: str, entry: Entry | None) -> bool:
    """Whether a hub's id was asked for, and the folder has the name but was fetched by another id: a tuned copy."""
    repo = hub_id(asked)
    fetched = origin(folder) if repo else None
    return fetched is not None and key(fetched) not in map(key, (repo or "", *(entry.names if entry else ())))


def _absent(asked: str, entry: Entry | None, *, partly: bool) -> ModelProblem:
    name = entry.name if entry else hub_id(asked)
    if name is not None and partly:
        return NotDownloaded(
            f"{name} is only partly on this machine: its folder has no config.json.",
            hint=f"Run: lodger pull --verify {name}",
            param="model_name",
        )
    if name is not None:
        return NotDownloaded(f"{name} is not on this machine.", hint=f"Run: lodger pull {name}", param="model_name")
    if partly:
        return FolderMissing(
            f"The folder {asked[:100]!r} holds no model: it has no config.json.",
            hint="A model folder has one, beside its weights.",
            param="model_name",
        )
    return unknown(asked)


def _existing(path: str) -> str:
    folder = "" if "\0" in path else os.path.abspath(os.path.expanduser(path))  # which no name of a folder has
    if os.path.isfile(folder):
        raise FolderMissing(
            f"{path!r} is a file.", hint="Give the folder that holds config.json and the weights.", param="model_path"
        )
    if not os.path.isdir(folder):
        raise FolderMissing(f"There is no folder {path[:300]!r}.", hint="Check the path.", param="model_path")
    return folder
