"""The catalogue in the words of Xinference's registry: one family for each of its names, one spec for each model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lodger.catalogue.builtin import Entry, builtin
from lodger.catalogue.facts import ModelFacts
from lodger.catalogue.folders import ModelFolder, model_folders
from lodger.catalogue.identify import identify
from lodger.catalogue.resolve import matching
from lodger.errors import LodgerError
from lodger.spec import ModelSpec, Registration
from lodger.tasks import Kind

_BILLIONS = re.compile(r"-(\d+(?:\.\d+)?)([BM])\b")
_ABILITIES: dict[Kind, list[str]] = {"chat": ["chat"], "embedding": ["embed"], "rerank": ["rerank"]}


def catalogue_registrations(kind: Kind, models_dir: Path) -> list[Registration]:
    """Every name of the catalogue. What only a folder knows (dimensions, lengths) is said of models that are here.

    Reads folders: call it in a thread.
    """
    families: dict[str, list[Entry]] = {}
    for entry in builtin().models:
        if entry.kind == kind:
            families.setdefault(entry.xinference or entry.name, []).append(entry)
    folders = model_folders(models_dir)
    return [
        Registration(kind=kind, family=_family(name, entries, folders, models_dir), builtin=True)
        for name, entries in families.items()
    ]


def _family(name: str, entries: list[Entry], folders: list[ModelFolder], models_dir: Path) -> dict[str, Any]:
    kind = entries[0].kind
    facts = [_facts(entry, folders, models_dir) for entry in entries]
    known = next((one for one in facts if one), None)
    family = {
        "version": 2,
        "model_name": name,
        "model_ability": _ABILITIES[kind] + (["tools"] if known and known.tools else []),
        "architectures": list(dict.fromkeys(entry.architecture for entry in entries)),
        "model_specs": [_spec(entry, here) for entry, here in zip(entries, facts, strict=True)],
    }
    length = known.context_length if known else None
    if kind == "chat":
        return family | {"context_length": length, "model_lang": [], "model_family": name, "model_description": None}
    family |= {"max_tokens": length, "language": []}
    if kind == "embedding":
        return family | {"dimensions": known.dimensions if known else None}
    return family | {"type": "normal"}


def _spec(entry: Entry, facts: ModelFacts | None) -> dict[str, Any]:
    packed = "awq" if entry.name.endswith("-AWQ") else "gptq" if "-GPTQ" in entry.name else None
    repository = entry.repository
    spec: dict[str, Any] = {
        "model_format": packed or "pytorch",
        "quantization": "Int4" if packed else "none",
        "model_hub": "huggingface" if repository.huggingface else "modelscope",
        "model_id": repository.huggingface or repository.modelscope,
        "model_uri": None,
        "model_revision": None,
        "cache_status": facts is not None,
    }
    return spec | ({"model_size_in_billions": _size(entry)} if entry.kind == "chat" else {})


def _size(entry: Entry) -> int | str | None:
    """As Xinference writes it: 4, ``"0_6"``."""
    written = _BILLIONS.search(entry.name)
    named = float(written[1]) / (1000 if written[2] == "M" else 1) if written else None
    size = named if entry.size is None else entry.size
    return size if size is None else int(size) if size == int(size) else f"{size:g}".replace(".", "_")


def _facts(entry: Entry, folders: list[ModelFolder], models_dir: Path) -> ModelFacts | None:
    """Of a model that can be launched now."""
    if not any(folder.whole for folder in matching(entry.name, entry, folders)):
        return None
    try:
        return identify(ModelSpec(uid=entry.name, name=entry.name), models_dir)[1]
    except LodgerError:
        return None
