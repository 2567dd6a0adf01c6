"""A launch of Xinference, from its REST or from a script, as a model of Lodger."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lodger.adopt import Adopted
from lodger.api.launching import KINDS, LaunchRequest
from lodger.catalogue.resolve import resolve
from lodger.errors import InvalidRequest, LodgerError, NotDownloaded, UnknownName
from lodger.spec import ModelSpec
from lodger.units import gib

MOST_ASKED = 32_768  # tokens; Xinference names what a model knows, and a plan would have to set that much aside
_AS_IT_IS = ("", "none", "pytorch", "null")
_NOTHING = (None, "", "auto", "null", "none")
# Options that decided how Xinference ran it and have no counterpart because nothing here differs by them.
_MOOT = ("n_gpu", "model_engine", "enable_virtual_env", "n_worker", "trust_remote_code")


def adopted(
    launch: Mapping[str, Any], *, card: int | None, folders: tuple[Path, ...], taken: Container[str]
) -> Adopted:
    """
    Args:
        launch: options by Xinference's names (`model_uid`, `model_name`, `gpu_memory_utilization`, ...).
        card: bytes of the GPU, for fractions of it; None: unknown.
        folders: where model folders may lie.
        taken: uids in use.

    Raises:
        LodgerError: it cannot be served here; with why.
    """
    said = {name: value for name, value in launch.items() if value not in _NOTHING and name not in _MOOT}
    kind = said.get("model_type", "LLM")
    if kind not in KINDS:
        raise InvalidRequest(f"Lodger serves no {kind} models.")
    stored, notes = _stored(said)
    context = said.pop("context_length", None)
    spec = LaunchRequest.model_validate(said).spec(taken)
    notes = [*notes, *spec.notes]
    spec, more = _limits(msgspec.structs.replace(spec, notes=(), engine=None), context, card)
    placed, where = _placed(spec, folders)
    return Adopted(spec=placed, notes=(*notes, *more, *stored, *where))


def _stored(said: dict[str, Any]) -> tuple[list[str], list[str]]:
    """How its weights were: removed from `said`, and noted where the same name would be other weights here."""
    form = str(said.pop("model_format", "")).lower()
    quantization = str(said.get("quantization", "")).lower()
    if quantization in _AS_IT_IS:
        said.pop("quantization", None)
        quantization = ""
    if form in _AS_IT_IS:
        return [], []
    said.pop("quantization", None)
    how = f"it ran from {form}{' ' + quantization if quantization else ''}"
    if "model_path" in said:
        return [f"{how}; the folder is served as it is."], []
    if form.startswith("gguf"):
        return [f"{how}, which Lodger does not serve: this name means the weights as they were published."], []
    name = said.get("model_name", "NAME")
    return [f"{how}: this name means the weights as published; name those, such as {name}-{form.upper()}."], []


def _limits(spec: ModelSpec, context: Any, card: int | None) -> tuple[ModelSpec, list[str]]:
    """Context and memory as lodger.yaml has them."""
    notes: list[str] = []
    if spec.kind == "chat" and isinstance(context, int) and spec.context_length is None:
        if context <= MOST_ASKED:
            spec = msgspec.structs.replace(spec, context_length=context)
        else:
            notes.append(f"it knows {context:,} tokens; Lodger serves what fits. context_length: N asks for N of them.")
    fraction = spec.memory_fraction
    if fraction is None:
        return spec, notes
    spec = msgspec.structs.replace(spec, memory_fraction=None)
    if card is None:
        said = f"gpu_memory_utilization {fraction:g} is a part of a card that is not here: write memory: SIZE for it."
        return spec, [*notes, said]
    memory = int(fraction * card)
    notes.append(f"gpu_memory_utilization {fraction:g} of {gib(card)}, at most; the plan gives what it needs.")
    return msgspec.structs.replace(spec, memory=memory), notes


def _placed(spec: ModelSpec, folders: tuple[Path, ...]) -> tuple[ModelSpec, list[str]]:
    """With its folder, where that is known."""
    if spec.path is not None:
        if Path(spec.path).expanduser().is_dir():
            return spec, []
        return spec, [f"there is no folder {spec.path} on this machine."]
    problem: LodgerError | None = None
    for folder in folders:
        try:
            return msgspec.structs.replace(spec, path=resolve(spec, folder).path), []
        except LodgerError as error:
            problem = error
    if isinstance(problem, NotDownloaded):
        return spec, ["it will be fetched by its name; --models FOLDER finds it where it lies."]
    if isinstance(problem, UnknownName):
        return spec, ["Lodger does not know this name: write path: FOLDER, or name: ORG/NAME of a hub."]
    return spec, [] if problem is None else [problem.message]


def usable_uid(uid: str) -> str:
    """A uid for a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+|___+", "-", uid).strip("-._")[:100] or "model"
