"""JSON schemas within llguidance's grammars."""

from __future__ import annotations

import json
from typing import Any

# Between two parts of JSON. Without a limit a model may go on with line breaks for ever.
_SPACE = r"[\x20\x0A\x0D\x09]{1,64}"
_TEXT = {"whitespace_pattern": _SPACE}
# On one line, as chat templates show tools and earlier calls to models. Words of a schema that llguidance does not know
# are passed over, as whoever wrote it for a tool expects.
_CALL = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}


def text_rule(schema: dict[str, Any]) -> str:
    """The right side of a rule that matches a text which is JSON by `schema`."""
    return _rule(schema, _TEXT)


def call_rule(schema: dict[str, Any]) -> str:
    """The same for arguments of a call, or for one of them."""
    return _rule(schema, _CALL)


def _rule(schema: dict[str, Any], options: dict[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': options}, ensure_ascii=False)}"
