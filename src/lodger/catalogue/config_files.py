"""Reads the small JSON files of a model folder, which anybody may have written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard

from lodger.errors import ModelProblem

MAX_BYTES = 32 * 2**20  # the largest published tokenizer_config.json has 1.2 MB
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

    def strings(self, key: str) -> dict[str, str]:
        """An object of strings; members that are none, or half a character, are left out."""
        value = self.values.get(key)
        return {k: v for k, v in value.items() if is_text(k) and is_text(v)} if isinstance(value, dict) else {}

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
        return ModelProblem(f"{self.file}: {key} {found}, expected {expected}.", hint="Fetch the model's files again.")


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a JSON value is a string that can be written again: JSON may hold half of a surrogate pair."""
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def read_fields(folder: Path, name: str) -> Fields:
    """The object in folder/name; no fields if there is no such file.

    Raises:
        ModelProblem: not readable, not JSON, too large or deep, not an object.
    """
    value = read_json(folder / name, {})
    if not isinstance(value, dict):
        raise ModelProblem(f"{name} holds no JSON object.", hint="Fetch the model's files again.")
    return Fields(name, value)


def read_json(path: Path, default: Any) -> Any:
    """The JSON value in a file; `default` if there is no such file.

    Raises:
        ModelProblem: not readable, not JSON, too large or deep.
    """
    text = read_text(path)
    if text is None:
        return default
    try:
        return json.loads(text)
    except RecursionError:
        raise ModelProblem(f"{path.name} is nested too deeply.") from None
    except ValueError as error:
        raise ModelProblem(f"{path.name} is not JSON: {error}.", hint="Fetch the model's files again.") from None


def read_text(path: Path) -> str | None:
    """The text of a file; None if there is no such file.

    Raises:
        ModelProblem: not readable, not UTF-8, too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ModelProblem(f"{path.name} is larger than {MAX_BYTES:,} bytes.")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelProblem(f"{path.name} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ModelProblem(f"{path.name} is not UTF-8 text.", hint="Fetch the model's files again.") from None
