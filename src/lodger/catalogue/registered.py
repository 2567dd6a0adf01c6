"""Names that users registered for folders of their own, in the JSON that Xinference's users have for that."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any, get_args

import msgspec

from lodger.catalogue.names import billions, find
from lodger.errors import FolderMissing, InvalidRequest, MalformedBody, UnknownName, Unsupported
from lodger.spec import ModelSpec, Registration
from lodger.tasks import Kind

_NAME = re.compile(r"[^\W_][\w.-]{0,99}")  # it becomes a file's name
_NO_EFFECT = ("chat_template", "stop", "stop_token_ids")  # Lodger takes them from the model's folder
# What Xinference's command line reads of every family, and some files leave out.
_FIELDS: dict[Kind, dict[str, Any]] = {
    "chat": {"version": 2, "model_lang": [], "model_ability": ["chat"]},
    "embedding": {"version": 2, "language": [], "dimensions": None},
    "rerank": {"version": 2, "language": []},
}
_log = logging.getLogger("lodger.catalogue")
_decode = msgspec.json.Decoder(Registration).decode


def parse(kind: Kind, text: str) -> Registration:
    """A registration from Xinference's JSON of a custom model, of its version 1 or 2.

    Raises:
        MalformedBody: not JSON, no name, or no model behind the name.
        FolderMissing: a `model_uri` is no folder of this machine.
        Unsupported: a `model_uri` that is not of this machine.
    """
    try:
        family = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        raise MalformedBody(f"model is not JSON: {error}.", param="model") from None
    name = family.get("model_name") if isinstance(family, dict) else None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise MalformedBody(
            "model has no model_name of 1 to 100 letters, digits, '.', '_' or '-', starting with a letter or digit.",
            param="model",
        )
    for one in _specs(family):
        _place(one)
    return Registration(kind=kind, family=_FIELDS[kind] | family)


def launched(registration: Registration, spec: ModelSpec) -> ModelSpec:
    """`spec` of a launch by this name, with the folder or the hub's id that the registration has for it.

    Raises:
        UnknownName: it has no model of the size that was asked for.
    """
    specs = _specs(registration.family)
    sizes = [one.get("model_size_in_billions") for one in specs]
    asked = billions(spec.size_in_billions) if spec.size_in_billions else None
    meant = [one for one, size in zip(specs, sizes, strict=True) if asked in (None, billions(str(size)))]
    if not meant:
        known = ", ".join(str(size) for size in sizes)
        raise UnknownName(
            f"{registration.name} has no size {spec.size_in_billions}; it was registered with {known}.",
            param="model_size_in_billions",
        )
    path, hub_id = _place(meant[0])
    ignored = [key for key in _NO_EFFECT if registration.family.get(key)]
    notes = [f"{key} of the registration has no effect: the model's folder says it." for key in ignored]
    return msgspec.structs.replace(
        spec, path=path, name=spec.name if path else hub_id, kind=registration.kind, notes=(*spec.notes, *notes)
    )


class Registered:
    """What users registered. With `persist` it outlives the server, as files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: dict[tuple[Kind, str], Registration] = {}
        for file in sorted(folder.glob("*/*.json")):
            try:
                known = _decode(file.read_bytes())
                self._all[known.kind, known.name] = known
            except (OSError, msgspec.DecodeError, KeyError) as error:
                _log.error("%s is no registration and was left out: %s", file, error)

    def of(self, kind: Kind) -> list[Registration]:
        return [known for known in self._all.values() if known.kind == kind]

    def add(self, registration: Registration, *, persist: bool) -> None:
        """
        Raises:
            InvalidRequest: the name is taken.
        """
        key = registration.kind, registration.name
        if key in self._all or _in_catalogue(registration.name):
            raise InvalidRequest(
                f"Model name conflicts with existing model {registration.name}.",
                hint="Register it under another name.",
                param="model",
            )
        if persist:
            self._write(registration)
        self._all[key] = registration

    def remove(self, kind: Kind, name: str) -> None:
        """Models that were launched by it go on.

        Raises:
            InvalidRequest: nobody registered it.
        """
        if (kind, name) not in self._all:
            raise InvalidRequest(f"Model {name[:100]} not found among those that were registered.", param="model_name")
        self._file(kind, name).unlink(missing_ok=True)
        del self._all[kind, name]

    def launched(self, spec: ModelSpec) -> ModelSpec:
        """`spec` with its folder where it was launched by a registered name.

        Raises:
            UnknownName: the name has no such size.
        """
        kinds: tuple[Kind, ...] = (spec.kind,) if spec.kind else get_args(Kind)
        known = next((self._all[kind, spec.name or ""] for kind in kinds if (kind, spec.name) in self._all), None)
        return spec if known is None or spec.path else launched(known, spec)

    def _write(self, registration: Registration) -> None:
        """All at once, so that no reader ever sees half of it."""
        file = self._file(registration.kind, registration.name)
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.format(msgspec.json.encode(registration)))
        fresh.replace(file)

    def _file(self, kind: Kind, name: str) -> Path:
        return self._folder / kind / f"{name}.json"


def _specs(family: dict[str, Any]) -> list[dict[str, Any]]:
    """Its `model_specs`; version 1 has one model, described beside the name."""
    specs = family.get("model_specs", [family])
    if not isinstance(specs, list) or not specs or not all(isinstance(one, dict) for one in specs):
        raise MalformedBody("model_specs must be a list of objects.", param="model")
    return specs


def _place(one: dict[str, Any]) -> tuple[str | None, str | None]:
    """The folder of a model, else its id on a hub."""
    uri, hub_id = one.get("model_uri"), one.get("model_id")
    if uri and isinstance(uri, str):
        return _folder(uri), None
    if hub_id and isinstance(hub_id, str):
        return None, hub_id
    raise MalformedBody("a model_spec needs a model_uri, or a model_id of a hub.", param="model")


def _folder(uri: str) -> str:
    path = uri.removeprefix("file://")
    if "://" in path:
        raise Unsupported(f"The model_uri {uri[:300]!r} is not of this machine.", hint="Write file:///folder.")
    if "\0" in path or not os.path.isabs(path) or not os.path.isdir(path):
        raise FolderMissing(f"There is no folder {path[:300]!r}.", hint="Check model_uri.", param="model")
    return path


def _in_catalogue(name: str) -> bool:
    try:
        return find(name) is not None
    except UnknownName:  # it is known, and covers several sizes
        return True
