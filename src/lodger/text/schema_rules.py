"""JSON schemas within llguidance's grammars."""

from __future__ import annotations

import json
from typing import Any

# Between two parts of JSON. Without a limit a model may go on with line breaks for ever.
_SPACE = r"[\x20\x0A\x0D\x09]{1,64}"


def schema_rule(schema: dict[str, Any], *, lenient: bool) -> str:
    """The right side of a rule that matches JSON by `schema`.

    Args:
        lenient: words of the schema that llguidance does not know are passed over, as whoever wrote it for a tool
            expects; else they are an error.
    """
    options = {"whitespace_pattern": _SPACE, "lenient": lenient}
    return f"%json {json.dumps({**schema, 'x-guidance': options}, ensure_ascii=False)}"
