"""Reads the small text files of a model folder; a damaged one is a `ModelProblem` that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from lodger.errors import ModelProblem


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object; empty if there is no such file.

    Raises:
        ModelProblem: it cannot be read or is not a JSON object.
    """
    if not (folder / name).exists():
        return {}
    return msgspec.json.decode(read_well_formed(folder, name), type=dict[str, Any])


def read_well_formed(folder: Path, name: str) -> bytes:
    """The bytes of a file that holds one whole JSON object.

    Raises:
        ModelProblem: it is missing, cannot be read or is not a JSON object.
    """
    content = _read(folder, name)
    try:
        msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError as error:
        raise ModelProblem(f"{name} of {folder.name} is damaged: {error}.", hint="Fetch this file again.") from error
    return content


def read_text(folder: Path, name: str) -> str:
    """
    Raises:
        ModelProblem: it is missing, cannot be read or is not UTF-8.
    """
    try:
        return _read(folder, name).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelProblem(f"{name} of {folder.name} is damaged: {error.reason} at byte {error.start}.") from error


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ModelProblem(f"{name} of {folder.name} cannot be read: {error.strerror}.") from error
