"""Embeddings: OpenAI's route, with the fields that other servers' clients send to it.

Beside OpenAI's own: ``return`` asks for bge-m3's other outputs, ``return_sparse`` is Xinference's flag for one of them,
and ``prompt_name`` (sentence-transformers), ``input_type`` (Cohere, Voyage, NVIDIA) or ``task`` (Jina) say what a text
is for.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Annotated, Any, Literal, get_args

import msgspec
from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema
from starlette.responses import Response

from lodger.api import limits
from lodger.api.bodies import Body, TextsOrTokens, at_most, json_response
from lodger.api.context import ServiceDep
from lodger.api.disconnect import unless_gone
from lodger.api.measure import Measured
from lodger.catalogue.facts import ModelFacts
from lodger.errors import InvalidRequest, MalformedBody, Unsupported
from lodger.service import Service
from lodger.tasks import EmbedOutput, EmbedResult, EmbedTask, SparseVector
from lodger.units import gib

router = APIRouter(tags=["openai"])

_AT_ONCE = 32  # vectors that are written without giving way: about 3 ms of 1,024 numbers each
OUTPUTS: tuple[EmbedOutput, ...] = get_args(EmbedOutput)
_PURPOSES = {
    "query": ("query", "search_query", "retrieval.query"),
    "document": ("document", "passage", "search_document", "retrieval.passage", "retrieval.document", "corpus"),
}


def _outputs(value: Any) -> tuple[EmbedOutput, ...]:
    """One output or several, in their usual order and each once; nothing means nothing was said."""
    asked = [value] if isinstance(value, str) else value or []
    if not isinstance(asked, list) or any(output not in OUTPUTS for output in asked):
        raise MalformedBody(f"return must be one or several of {', '.join(OUTPUTS)}.", param="return")
    return tuple(output for output in OUTPUTS if output in asked)


def _texts_of_objects(value: Any) -> Any:
    """Jina's and Xinference's inputs may be objects that hold a text."""
    return [_text_of(item) for item in value] if isinstance(value, list) else _text_of(value)


def _text_of(item: Any) -> Any:
    return item["text"] if isinstance(item, dict) and isinstance(item.get("text"), str) else item


_NAMED = {"type": "string", "enum": list(OUTPUTS)}
Outputs = Annotated[
    tuple[EmbedOutput, ...],
    PlainValidator(_outputs),
    WithJsonSchema({"anyOf": [_NAMED, {"type": "array", "items": _NAMED}, {"type": "null"}]}),
]


class EmbeddingsRequest(Body):
    """POST /v1/embeddings. Over-long inputs are cut; the header x-lodger-truncated says how many were."""

    model: str = Field(min_length=1)
    input: Annotated[TextsOrTokens, BeforeValidator(_texts_of_objects)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    outputs: Outputs = Field(
        (), alias="return", description="`embedding`, `sparse` and `colbert` of each input, for models that make them"
    )
    return_sparse: bool | None = Field(None, description="Xinference's: each `embedding` is {token id: weight}")
    prompt_name: str | None = Field(None, description='Which of the model\'s prompts stands before each text; "": none')
    input_type: str | None = Field(None, description="`query` or `document`, in the words of any API")
    task: str | None = Field(None, description="Jina's name for `input_type`, such as `retrieval.query`")

    @property
    def lexical(self) -> bool:
        """Whether the answer has Xinference's sparse shape; `return` has its own."""
        return bool(self.return_sparse) and not self.outputs

    def embed_task(self, facts: ModelFacts | None) -> EmbedTask:
        """
        Raises:
            InvalidRequest: too many inputs.
            Unsupported: fewer dimensions than the model's, which means nothing for it.
        """
        at_most(len(self.input), limits.INPUTS, "input")
        self._check_dimensions(facts)
        outputs: tuple[EmbedOutput, ...] = ("sparse",) if self.lexical else self.outputs or ("dense",)
        return EmbedTask(
            model=self.model,
            inputs=self.input,
            dimensions=self.dimensions,
            outputs=outputs,
            prompt_name=self._prompt_name(facts.prompts if facts else {}),
        )

    def _check_dimensions(self, facts: ModelFacts | None) -> None:
        """What a model was not trained for is refused: the first numbers of its vectors are no vectors."""
        whole = facts.dimensions if facts else None
        if facts is None or whole is None or facts.matryoshka or self.dimensions in (None, whole):
            return
        raise Unsupported(
            f"dimensions is {self.dimensions}, and the vectors of {self.model} have {whole} numbers and no fewer.",
            hint="Leave dimensions out, or take a model that was trained to be cut, such as Qwen3-Embedding.",
            param="dimensions",
        )

    def _prompt_name(self, prompts: dict[str, str]) -> str | None:
        purpose = self.input_type or self.task
        if self.prompt_name is not None or not purpose:
            return self.prompt_name
        return prompt_for(purpose.lower(), prompts)


def prompt_for(purpose: str, prompts: dict[str, str]) -> str | None:
    """Which of a model's prompts serves texts of this purpose; "" for none of them, None for its default one.

    A model that has a prompt for queries alone wants documents bare, so a known purpose never falls back to the
    default. Other purposes ("classification") are of models that have a prompt of that name.
    """
    if purpose in prompts or not prompts:
        return purpose if prompts else None
    for names in _PURPOSES.values():
        if purpose in names:
            return next((name for name in names if name in prompts), "")
    return None


@router.post("/v1/embeddings", summary="Turn texts into vectors")
async def embeddings(body: EmbeddingsRequest, request: Request, service: ServiceDep) -> Response:
    result = await unless_gone(request, embed(service, body))
    # Many vectors are many megabytes of text, and other callers' streams must go on meanwhile.
    long = result.colbert or result.count > _AT_ONCE
    data = await asyncio.to_thread(_data, body, result) if long else _data(body, result)
    usage = {"prompt_tokens": result.usage.prompt_tokens, "total_tokens": result.usage.total_tokens}
    headers = {"x-lodger-truncated": str(result.truncated)} if result.truncated else None
    return json_response({"object": "list", "model": body.model, "data": data, "usage": usage}, headers=headers)


async def embed(service: Service, body: EmbeddingsRequest) -> EmbedResult:
    with Measured("embed", body.model) as measured:
        result = await service.embed(body.embed_task(service.model(body.model).facts))
        measured.usage(result.usage)
    return result


def _data(body: EmbeddingsRequest, result: EmbedResult) -> list[dict[str, Any]]:
    packed = body.encoding_format == "base64"
    kind = "sparse_embedding" if body.lexical else "embedding"
    items: list[dict[str, Any]] = [{"object": kind, "index": index} for index in range(result.count)]
    if result.vectors:
        _put(items, "embedding", _base64(result) if packed else floats(result.vectors, result.dimensions))
    if result.sparse:
        _put(items, "embedding" if body.lexical else "sparse", list(map(weights, result.sparse)))
    if result.colbert:
        _put(items, "colbert", _packed_tokens(result) if packed else _token_vectors(result))
    return items


def _put(items: list[dict[str, Any]], name: str, values: list[Any]) -> None:
    for item, value in zip(items, values, strict=True):
        item[name] = value


def floats(vectors: bytes, dimensions: int) -> list[msgspec.Raw]:
    """The rows of float32 numbers as JSON, one row after the other: Python's own floats are eight times as large, and
    another thread may run between two rows."""
    row = 4 * dimensions
    return [_numbers(vectors[start : start + row]) for start in range(0, len(vectors), row)]


def weights(vector: SparseVector) -> dict[int, float]:
    """Token id -> weight."""
    ids: list[int] = memoryview(vector.ids).cast("i").tolist()
    return dict(zip(ids, memoryview(vector.weights).cast("f").tolist(), strict=True))


def _base64(result: EmbedResult) -> list[str]:
    size = 4 * result.dimensions
    return [b64encode(result.vectors[start : start + size]).decode() for start in range(0, len(result.vectors), size)]


def _packed_tokens(result: EmbedResult) -> list[dict[str, Any]]:
    """float32, little-endian, row by row, with its shape."""
    row = 4 * result.colbert_dimensions
    return [
        {"data": b64encode(vectors).decode(), "shape": [len(vectors) // row, result.colbert_dimensions]}
        for vectors in result.colbert
    ]


def _token_vectors(result: EmbedResult) -> list[list[msgspec.Raw]]:
    """
    Raises:
        InvalidRequest: more than fits into an answer of numbers.
    """
    size = sum(map(len, result.colbert))
    if size > limits.NUMBERS_BYTES:
        raise InvalidRequest(
            f"The vectors of these {result.usage.prompt_tokens:,} tokens are {gib(size)} of float32; as numbers in "
            f"JSON, which are five times as long, the limit is {gib(limits.NUMBERS_BYTES)}.",
            hint='Ask with "encoding_format": "base64", or for fewer inputs at a time.',
            param="input",
        )
    return [floats(vectors, result.colbert_dimensions) for vectors in result.colbert]


def _numbers(vector: bytes) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(memoryview(vector).cast("f").tolist()))
