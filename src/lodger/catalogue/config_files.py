"""Reads the small JSON files of a model folder, which anybody may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard

from lodger.catalogue.folder_files import AGAIN, LFS_POINTER, open_file
from lodger.errors import ModelProblem

# Published: 1.2 MB of tokenizer_config.json, 9 MB for the index of 163 shards. Parsed, a file takes 20 times as much.
MAX_BYTES = 16 * 2**20
MAX_COUNT = 2**40  # no size or length in a config is larger


class Fields:
    """The fields of one JSON object, read with their types checked.

    Every method raises ModelProblem with file and field named.
    """

    def __init__(self, file: str, values: dict[str, Any]) -> None:
        self.file = file
        self.values = values

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def count(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number from `least` on; without `default` it must be there."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_COUNT:
            raise self.problem(key, f"a whole number from {least} on")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.problem(key, "true or false")
        return value

    def number(self, key: str) -> float:
        """A finite number."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_COUNT:
            raise self.problem(key, "a number")
        return value

    def object(self, key: str) -> dict[str, Any]:
        """The object there; an empty one in place of anything else."""
        value = self.values.get(key)
        return value if isinstance(value, dict) else {}

    def strings(self, key: str) -> dict[str, str]:
        """An object of strings; members that are none, or half a character, are left out."""
        return {k: v for k, v in self.object(key).items() if is_text(k) and is_text(v)}

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id or a list of ids."""
        value = self.values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= MAX_COUNT for item in ids):
            raise self.problem(key, "a token id or a list of them")
        return tuple(dict.fromkeys(ids))

    def problem(self, key: str, expected: str) -> ModelProblem:
        value = self.values.get(key)
        found = "is missing" if value is None else f"is {str(value)[:40]!r}"
        return ModelProblem(f"{self.file}: {key} {found}, expected {expected}.", hint=AGAIN)


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a JSON value is a string that can be written again: JSON may hold half of a surrogate pair."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def read_fields(folder: Path, name: str) -> Fields:
    """The object in folder/name; no fields if there is no such file.

    Raises:
        ModelProblem: not readable, not JSON, too large or deep, not an object.
    """
    value = read_json(folder, name, {})
    if not isinstance(value, dict):
        raise ModelProblem(f"{name} holds no JSON object.", hint=AGAIN)
    return Fields(name, value)


def read_json(folder: Path, name: str, default: Any) -> Any:
    """The JSON value in folder/name; `default` if there is no such file. Of equal keys the last one counts.

    Raises:
        ModelProblem: not readable, not JSON, too large or deep.
    """
    text = read_text(folder, name)
    if text is None:
        return default
    try:
        return json.loads(text)
    except RecursionError:
        raise ModelProblem(f"{name} is nested too deeply.") from None
    except ValueError as error:
        raise ModelProblem(f"{name} is not JSON: {error}.", hint=AGAIN) from None


def read_text(folder: Path, name: str) -> str | None:
    """The text of folder/name; None if there is no such file.

    Raises:
        ModelProblem: not readable, not UTF-8, too large, a Git LFS pointer.
    """
    try:
        with open_file(folder, name) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelProblem(f"{name} cannot be read: {error.strerror}.") from None
    if len(data) > MAX_BYTES:
        raise ModelProblem(f"{name} is larger than {MAX_BYTES:,} bytes.")
    if data.startswith(LFS_POINTER):
        raise ModelProblem(f"{name} is a Git LFS pointer, not the file itself.", hint=AGAIN)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ModelProblem(f"{name} is not UTF-8 text.", hint=AGAIN) from None
