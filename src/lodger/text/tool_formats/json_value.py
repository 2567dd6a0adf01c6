"""`JsonEnd`: where a JSON value that arrives in pieces ends."""

from __future__ import annotations

import json
import re
from typing import Any

_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')


class JsonEnd:
    """Follows the brackets of one object or list, each character once."""

    def __init__(self, start: int) -> None:
        self._at = start
        self._depth = 0
        self._in_string = False

    def find(self, text: str) -> int | None:
        """Offset after the value in `text`, which holds its first character and grows from call to call."""
        while found := (_IN_STRING if self._in_string else _OUTSIDE).search(text, self._at):
            mark, self._at = found.group(), found.end()
            if mark == "\\":
                if self._at == len(text):  # what it escapes has not come
                    self._at -= 1
                    return None
                self._at += 1
            elif mark == '"':
                self._in_string = not self._in_string
            else:
                self._depth += 1 if mark in "{[" else -1
                if self._depth <= 0:
                    return self._at
        self._at = len(text)
        return None


def parse(text: str) -> Any:
    """The value of JSON that a model wrote, line breaks within strings allowed.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def write(value: Any) -> str:
    """As JSON text that every encoding can carry: a model may write half of a surrogate pair."""
    text = json.dumps(value, ensure_ascii=False)
    return text if is_text(text) else json.dumps(value)


def is_text(text: str) -> bool:
    """Whether it can be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
