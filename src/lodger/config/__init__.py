"""lodger.yaml: what should run here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lodger.catalogue.repository import HubName
from lodger.errors import ConfigProblem, InvalidRequest
from lodger.settings import DEFAULT_HOST, DEFAULT_PORT
from lodger.spec import ModelSpec, check_uid

if TYPE_CHECKING:
    from lodger.config.document import Document
    from lodger.config.schema import ModelOptions


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A lodger.yaml that has been read and found right. Paths are absolute."""

    models: tuple[ModelSpec, ...]
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    api_key: str | None = None
    reserve: int | None = None  # bytes left to others; None: what the planner thinks right
    device: str | None = None  # "cpu", "cuda:0", "cuda"; None: the best there is
    home: Path | None = None
    hub: HubName | None = None  # where missing models are fetched from; None: the first that has them


def load_config(path: Path) -> Config:
    """The configuration in the file `path`. Folders in it are taken from where the file lies.

    Raises:
        ConfigProblem: every mistake in the file, each with its line and how to mend it.
    """
    from lodger.config.document import read_document
    from lodger.config.schema import validate

    document = read_document(path)
    options = validate(document)
    folder = path.expanduser().absolute().parent
    return Config(
        models=tuple(_spec(document, folder, uid, model) for uid, model in options.models.items()),
        host=options.host,
        port=options.port,
        api_key=options.api_key,
        reserve=options.reserve,
        device=options.device,
        home=_within(folder, options.home) if options.home else None,
        hub=options.hub,
    )


def home_in(path: Path) -> Path | None:
    """Only the home that the file names, whatever else may be wrong in it.

    Raises:
        ConfigProblem: it cannot be read.
    """
    from lodger.config.document import read_document

    home = read_document(path).value.get("home")
    return _within(path.expanduser().absolute().parent, home) if isinstance(home, str) and home else None


def _spec(document: Document, folder: Path, uid: str, model: ModelOptions) -> ModelSpec:
    try:
        check_uid(uid)
    except InvalidRequest as error:
        raise ConfigProblem(f"{document.where(('models', uid))}: {error.message}", hint=error.hint) from None
    path = str(_within(folder, model.path)) if model.path else None
    return ModelSpec(uid=uid, **{**model.model_dump(), "path": path})


def _within(folder: Path, path: str) -> Path:
    return Path(os.path.abspath(folder / Path(path).expanduser()))
