"""What the text of an answer must be: OpenAI's `response_format`, vLLM's `guided_*` and `structured_outputs`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from lodger.api.limits import parse_json
from lodger.errors import InvalidRequest, MalformedBody, Unsupported
from lodger.tasks import Constraint

_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_SCHEMA_WORDS = {"properties", "anyOf", "oneOf", "allOf", "$ref", "$defs", "enum", "const", "items"}
_CHOICES = 1024
_LARK = re.compile(r"^\s*start\s*:(?!:)", re.MULTILINE)


def form_of(response_format: Any, guided: dict[str, Any], field: str = "response_format") -> Constraint | None:
    """The one form that is asked for.

    Args:
        field: what the caller knows the first argument as.
        guided: vLLM's fields by their own names, of which most are None.

    Raises:
        MalformedBody, Unsupported: with the field at fault.
        InvalidRequest: two forms at once.
    """
    made = {field: _response_format(response_format, field)}
    for name, value in guided.items():
        if name == "structured_outputs":
            made |= {name: _structured(value)}
        elif value not in (None, "", [], False):
            made[name] = GUIDED[name.removeprefix("guided_")](value, name)
    asked = {name: form for name, form in made.items() if form is not None}
    if len(asked) > 1:
        raise InvalidRequest(f"{' and '.join(asked)} both say what the answer must be.", param=list(asked)[-1])
    return next(iter(asked.values()), None)


def _response_format(value: Any, field: str) -> Constraint | None:
    """OpenAI's shapes, and those of others who extended them: a schema beside the type, or alone, or a pattern."""
    if isinstance(value, str):
        value = {"type": value}
    if value is None or value == {}:
        return None
    if not isinstance(value, dict):
        raise MalformedBody(f"{field} must be an object with a type.", param=field)
    kind = value.get("type")
    if kind == "text":
        return None
    if kind in ("regex", "grammar"):
        return GUIDED[kind](value.get(kind, value.get("pattern", value.get("value"))), field)
    if kind in ("json_object", "json", "json_schema"):
        return _schema(_schema_within(value, field), field)
    if kind in ("object", "array") or (kind is None and _SCHEMA_WORDS & value.keys()):
        return _schema(value, field)
    raise Unsupported(
        f"{field} of type {str(kind)[:50]!r} is not served.",
        hint="It may be text, json_object or json_schema.",
        param=field,
    )


def _schema_within(value: dict[str, Any], field: str) -> Any:
    inner = value.get("json_schema")
    if isinstance(inner, dict):
        return inner.get("schema", inner if _SCHEMA_WORDS & inner.keys() or "type" in inner else _ANY_OBJECT)
    found = value.get("schema", value.get("value"))
    if found is None and value["type"] == "json_schema":
        raise MalformedBody(f"{field} of type json_schema must hold a schema.", param=f"{field}.json_schema")
    return _ANY_OBJECT if found is None else found


def _structured(value: Any) -> Constraint | None:
    """vLLM's newer field: an object with one of the forms by name."""
    field = "structured_outputs"
    if value is None:
        return None
    if not isinstance(value, dict):
        raise MalformedBody(f"{field} must be an object.", param=field)
    forms = [name for name in GUIDED if value.get(name) not in (None, "", [], False)]
    if len(forms) > 1:
        raise InvalidRequest(f"{field} may hold one of {', '.join(forms)}.", param=field)
    if value.get("structural_tag") is not None:
        raise Unsupported(f"{field}.structural_tag is not served.", param=field)
    return GUIDED[forms[0]](value[forms[0]], field) if forms else None


def _schema(value: Any, field: str) -> Constraint:
    if isinstance(value, str):
        try:
            value = parse_json(value.encode())
        except MalformedBody as error:
            raise MalformedBody(f"{field} must hold a JSON schema. {error.message}", param=field) from None
    if value is True:
        value = {}
    if not isinstance(value, dict):
        raise MalformedBody(f"{field} must hold a JSON schema.", param=field)
    return Constraint(kind="json", text=json.dumps(value, ensure_ascii=False))


def _any_object(value: Any, field: str) -> Constraint:
    return _schema(_ANY_OBJECT, field)


def _regex(value: Any, field: str) -> Constraint:
    if not isinstance(value, str) or not value:
        raise MalformedBody(f"{field} must hold a regular expression.", param=field)
    return Constraint(kind="regex", text=value)


def _grammar(value: Any, field: str) -> Constraint:
    if not isinstance(value, str) or not value:
        raise MalformedBody(f"{field} must hold a grammar.", param=field)
    if "::=" in value and not _LARK.search(value):
        raise Unsupported(
            f"{field} is in GBNF.", hint="Write it in llguidance's Lark: rules as 'start: ...'.", param=field
        )
    return Constraint(kind="lark", text=value)


def _choice(value: Any, field: str) -> Constraint:
    if not isinstance(value, list) or not all(isinstance(choice, str) and choice for choice in value):
        raise MalformedBody(f"{field} must hold a list of strings.", param=field)
    if len(value) > _CHOICES:
        raise InvalidRequest(f"{field} holds {len(value):,} choices; the limit is {_CHOICES:,}.", param=field)
    return Constraint(
        kind="lark", text="start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in value)
    )


GUIDED: dict[str, Callable[[Any, str], Constraint]] = {
    "json": _schema,
    "regex": _regex,
    "choice": _choice,
    "grammar": _grammar,
    "json_object": _any_object,
}
