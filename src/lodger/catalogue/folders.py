"""What lies in the folder for models, whoever put it there: our `pull`, a hub's own tool, or a person."""

from __future__ import annotations

import contextlib
import os
import pickletools
from pathlib import Path
from typing import NamedTuple

from lodger.catalogue.config_files import is_text, read_fields
from lodger.catalogue.folder_files import open_file
from lodger.errors import ModelProblem

MANIFEST = ".lodger.json"  # what `lodger.hub.manifest` writes into a folder that it filled
_MODELSCOPE = ".mdl"  # what modelscope's snapshot_download writes: a pickle of {"id": "org/name"}


class ModelFolder(NamedTuple):
    """One folder that is, or was to be, a model."""

    name: str  # relative to the folder for models: "bge-m3", "Qwen/Qwen3-0___6B"
    whole: bool  # it has a config.json; without one it is a beginning or a rest


def model_folders(models_dir: Path) -> list[ModelFolder]:
    """Every model folder, sorted by name: directly in `models_dir`, or one deeper under a hub's organisation."""
    found = []
    for name in _subfolders(models_dir):
        if _is_organisation(models_dir / name):
            found += [f"{name}/{inner}" for inner in _subfolders(models_dir / name)]
        else:
            found.append(name)
    return [ModelFolder(name, (models_dir / name / "config.json").is_file()) for name in sorted(found)]


def origin(folder: Path) -> str | None:
    """The hub's id that `pull` fetched the folder by; None where nobody noted it."""
    try:
        repo = read_fields(folder, MANIFEST).values.get("repo")
    except ModelProblem:
        return None
    return repo if isinstance(repo, str) else None


def modelscope_origin(folder: Path) -> str | None:
    """The id that ModelScope's own tool fetched the folder by; its pickle is taken apart, never run."""
    with contextlib.suppress(OSError, ModelProblem, ValueError), open_file(folder, _MODELSCOPE) as file:
        operations = pickletools.genops(file.read(4096))
        texts = [text for code, text, _ in operations if code.name.endswith("UNICODE") and isinstance(text, str)]
        if texts[:1] == ["id"] and len(texts) == 2 and "/" in texts[1]:
            return texts[1]
    return None


def _is_organisation(folder: Path) -> bool:
    """It holds folders and nothing else; what a model's folder has first is a file."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        kinds = [entry.is_dir() for entry in entries if not entry.name.startswith(".")]
        return bool(kinds) and all(kinds)
    return False


def _subfolders(folder: Path) -> list[str]:
    """Names of the folders inside; not those that a tool hides, nor names that are no text."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return [one.name for one in entries if one.is_dir() and is_text(one.name) and not one.name.startswith(".")]
    return []
