"""What is known and what is here: the catalogue beside the folder for models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from lodger.catalogue.builtin import Entry, builtin
from lodger.catalogue.folders import ModelFolder, model_folders
from lodger.catalogue.identify import identify
from lodger.catalogue.resolve import matching
from lodger.errors import ErrorInfo, LodgerError
from lodger.spec import ModelSpec
from lodger.tasks import Kind

State = Literal["downloaded", "problem", "absent"]  # a problem: the folder cannot be served as it is


class KnownModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the catalogue, or one folder that the catalogue does not know."""

    name: str
    kind: Kind | None
    quantization: str | None = None  # of what is stored: "awq", "gptq"
    state: State
    folder: str | None = None  # relative to the folder for models
    bytes_on_disk: int | None = None
    error: ErrorInfo | None = None  # of a problem
    modelscope: str | None = None
    huggingface: str | None = None
    xinference: str | None = None
    size_in_billions: float | None = None  # with `xinference`
    aliases: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """All that a search may find it by."""
        named = (self.name, self.folder, self.modelscope, self.huggingface, self.xinference, *self.aliases)
        return " ".join(name for name in named if name).casefold()


def inventory(models_dir: Path) -> list[KnownModel]:
    """Every model of the catalogue and every folder in `models_dir`; what is here comes first."""
    folders = model_folders(models_dir)
    chosen = {entry.name: next(iter(matching(entry.name, entry, folders)), None) for entry in builtin().models}
    known = [_of_catalogue(entry, chosen[entry.name], models_dir) for entry in builtin().models]
    known += [_of_folder(folder, models_dir) for folder in folders if folder not in chosen.values()]
    return sorted(known, key=lambda model: model.state == "absent")


def _of_catalogue(entry: Entry, folder: ModelFolder | None, models_dir: Path) -> KnownModel:
    known = KnownModel(
        name=entry.name,
        kind=entry.kind,
        state="absent",
        modelscope=entry.repository.modelscope,
        huggingface=entry.repository.huggingface,
        xinference=entry.xinference,
        size_in_billions=entry.size,
        aliases=entry.aliases,
    )
    return _on_disk(known, folder, ModelSpec(uid=entry.name, name=entry.name), models_dir) if folder else known


def _of_folder(folder: ModelFolder, models_dir: Path) -> KnownModel:
    known = KnownModel(name=folder.name, kind=None, state="absent")
    return _on_disk(known, folder, ModelSpec(uid=folder.name, path=str(models_dir / folder.name)), models_dir)


def _on_disk(known: KnownModel, folder: ModelFolder, spec: ModelSpec, models_dir: Path) -> KnownModel:
    size = _bytes_in(models_dir / folder.name)
    known = msgspec.structs.replace(known, state="downloaded", folder=folder.name, bytes_on_disk=size)
    try:
        facts = identify(spec, models_dir)[1]
        packed = facts.int4.method if facts.int4 else None
        return msgspec.structs.replace(known, kind=facts.kind, quantization=packed)
    except LodgerError as error:
        return msgspec.structs.replace(known, state="problem", error=error.info())


def _bytes_in(folder: Path) -> int:
    """Of all files; what a link leads to counts, as hubs' tools keep files elsewhere and link to them."""
    paths = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    return sum(os.stat(path).st_size for path in paths if os.path.isfile(path))
