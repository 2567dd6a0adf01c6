"""Reading foreign JSON leniently: unknown fields are ignored, null means unset, ``"true"`` is true; the rest is named.

Request models derive from `Body`. Fields that take several shapes are normalised here, by functions that raise
`LodgerError` with a sentence for people instead of a list of failed unions.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationInfo, WithJsonSchema
from starlette.responses import Response

from lodger.api import limits
from lodger.errors import EmptyInput, InvalidRequest, MalformedBody

Tokens = tuple[int, ...]
_STRING, _INTEGER = {"type": "string"}, {"type": "integer", "minimum": 0}


class Body(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())


def json_response(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """`value`, built of plain values and msgspec structs, as JSON."""
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def _list_of(*items: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"type": "array", "items": item} for item in items]


def _texts_or_tokens(value: Any, info: ValidationInfo) -> tuple[str | Tokens, ...]:
    """One text, several, one sequence of token ids, or several: always several."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list):
        if not value:
            raise EmptyInput(f"{info.field_name} is empty.", param=info.field_name)
        kinds = set(map(type, value))
        if kinds == {str}:
            return tuple(value)
        if kinds == {int}:
            return (_tokens(value, info.field_name),)
        if kinds == {list}:
            return tuple(_tokens(item, info.field_name) for item in value)
    raise MalformedBody(
        f"{info.field_name} must be a string, a list of strings, a list of token ids or a list of such lists.",
        param=info.field_name,
    )


def _tokens(value: list[Any], field: str | None) -> Tokens:
    if not value:
        raise EmptyInput(f"{field} holds an empty list of token ids.", param=field)
    if set(map(type, value)) != {int} or min(value) < 0 or max(value) >= 2**31:
        raise MalformedBody(f"{field} holds a list that is not one of token ids.", param=field)
    return tuple(value)


def _stops(value: Any, info: ValidationInfo) -> tuple[str, ...]:
    """A stop string or several; empty ones, which forms send for "none", are left out."""
    several = [value] if isinstance(value, str) else value or []
    if not isinstance(several, list) or not all(isinstance(stop, str) for stop in several):
        raise MalformedBody(f"{info.field_name} must be a string or a list of strings.", param=info.field_name)
    if len(several) > limits.STOPS or any(len(stop) > limits.STOP_CHARACTERS for stop in several):
        raise InvalidRequest(
            f"{info.field_name} may hold {limits.STOPS} strings of {limits.STOP_CHARACTERS} characters.",
            param=info.field_name,
        )
    return tuple(stop for stop in several if stop)


TextsOrTokens = Annotated[
    tuple[str | Tokens, ...],
    PlainValidator(_texts_or_tokens),
    WithJsonSchema({"anyOf": [_STRING, *_list_of(_STRING, _INTEGER, {"type": "array", "items": _INTEGER})]}),
]
Stops = Annotated[
    tuple[str, ...],
    PlainValidator(_stops),
    WithJsonSchema({"anyOf": [_STRING, *_list_of(_STRING), {"type": "null"}]}),
]


def at_most(count: int, limit: int, field: str) -> None:
    """
    Raises:
        InvalidRequest: `count` is over `limit`.
    """
    if count > limit:
        raise InvalidRequest(f"{field} holds {count:,} items; the limit is {limit:,}.", param=field)
