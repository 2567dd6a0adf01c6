"""How a model spells its tokens: Xinference's route, which reads the keys of sparse vectors."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, PlainValidator, WithJsonSchema
from starlette.responses import Response

from lodger.api import limits
from lodger.api.bodies import Body, Tokens, at_most, json_response
from lodger.api.context import ServiceDep
from lodger.api.disconnect import unless_gone
from lodger.api.measure import Measured
from lodger.errors import MalformedBody
from lodger.service import Service
from lodger.tasks import TokensTask

router = APIRouter(tags=["xinference"])

_DIGITS = 10  # of the largest id


def _ids(value: Any) -> Tokens | tuple[Tokens, ...]:
    """One list of ids, or several. Ids that are keys of JSON are strings."""
    if isinstance(value, list) and value and all(isinstance(item, list) for item in value):
        return tuple(tuple(map(_id, item)) for item in value)
    if isinstance(value, list):
        return tuple(map(_id, value))
    raise _no_ids()


def _id(value: Any) -> int:
    digits = isinstance(value, str) and len(value) <= _DIGITS and value.isascii() and value.isdigit()
    number = int(value) if digits or type(value) is int else -1
    if not 0 <= number < 2**31:
        raise _no_ids()
    return number


def _no_ids() -> MalformedBody:
    return MalformedBody("input must be a list of token ids, or a list of such lists.", param="input")


_ONE = {"type": "array", "items": {"type": "integer", "minimum": 0}}
Ids = Annotated[
    Tokens | tuple[Tokens, ...],
    PlainValidator(_ids),
    WithJsonSchema({"anyOf": [_ONE, {"type": "array", "items": _ONE}]}),
]


class TokensRequest(Body):
    """POST /v1/convert_ids_to_tokens."""

    model: str = Field(min_length=1)
    input: Ids

    def task(self) -> tuple[TokensTask, bool]:
        """What is asked, and whether the answer is one list.

        Raises:
            InvalidRequest: too many lists.
        """
        several = tuple(item for item in self.input if isinstance(item, tuple))
        one = tuple(item for item in self.input if isinstance(item, int))
        at_most(len(several), limits.INPUTS, "input")
        return TokensTask(model=self.model, ids=several or (one,)), not several


@router.post("/v1/convert_ids_to_tokens", summary="How the model's vocabulary spells tokens")
async def convert_ids_to_tokens(body: TokensRequest, request: Request, service: ServiceDep) -> Response:
    task, flat = body.task()
    spelt = await unless_gone(request, _spell(service, task))
    return json_response(spelt[0] if flat else spelt)


async def _spell(service: Service, task: TokensTask) -> tuple[tuple[str, ...], ...]:
    with Measured("tokens", task.model):
        return await service.tokens(task)
