"""Rerank: one shape that Xinference's, Cohere's and Jina's clients all read, and TEI's for bodies with ``texts``."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, PlainValidator, WithJsonSchema
from starlette.responses import Response

from lodger.api import limits
from lodger.api.bodies import Body, at_most, json_response
from lodger.api.choosing import named_or_only
from lodger.api.context import ServiceDep
from lodger.api.disconnect import unless_gone
from lodger.api.measure import Measured
from lodger.errors import MalformedBody
from lodger.service import Service
from lodger.tasks import RerankResult, RerankTask, Usage

router = APIRouter(tags=["rerank"])


def _query(value: Any) -> str:
    """A text, or Jina's object that holds one."""
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise MalformedBody("query must be a string.", param="query")
    return text


Query = Annotated[
    str,
    PlainValidator(_query),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
            ]
        }
    ),
]


class RerankRequest(Body):
    """POST /v1/rerank. Over-long documents are cut; the header x-lodger-truncated says how many were."""

    model: str | None = Field(None, description="May be left out where only one reranker was launched")
    query: Query
    documents: list[Any] | None = Field(None, description="Strings, or objects with a `text` or the `rank_fields`")
    top_n: int | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None
    instruction: str | None = Field(None, description="What counts as an answer, for rerankers that are told")
    instruct: str | None = Field(None, description="Another name of `instruction`")
    texts: list[str] | None = Field(None, description="TEI's name of `documents`; the answer is then TEI's list")
    raw_scores: bool | None = Field(None, description="TEI's: scores before the sigmoid")
    return_text: bool | None = Field(None, description="TEI's: each result has its `text`")

    def as_texts(self) -> tuple[str, ...]:
        """
        Raises:
            MalformedBody: none at all, or one that is no text.
            InvalidRequest: too many.
        """
        field = "texts" if self.as_tei else "documents"
        documents = self.texts if self.as_tei else self.documents
        if documents is None:
            raise MalformedBody("documents: Field required.", param="documents")
        at_most(len(documents), limits.DOCUMENTS, field)
        return tuple(self._text(document, place) for place, document in enumerate(documents))

    @property
    def as_tei(self) -> bool:
        """Whether TEI's shape was sent, and so is expected."""
        return self.texts is not None and self.documents is None

    def _text(self, document: Any, place: int) -> str:
        if isinstance(document, str):
            return document
        values = document if isinstance(document, dict) else {}
        found = [values[field] for field in self.rank_fields or ["text"] if isinstance(values.get(field), str)]
        if not found:
            raise MalformedBody(f"documents.{place} is neither a string nor an object with a text.", param="documents")
        return "\n".join(found)


@router.post("/v1/rerank", summary="Sort documents by how well they answer a query")
async def rerank(body: RerankRequest, request: Request, service: ServiceDep) -> Response:
    texts = body.as_texts()
    model = named_or_only(body.model, service, "rerank")
    task = RerankTask(
        model=model, query=body.query, documents=texts, instruction=body.instruction or body.instruct or None
    )
    result = await unless_gone(request, _rerank(service, task))
    answer = _tei(body, result, texts) if body.as_tei else _answer(body, model, result, texts)
    return json_response(answer, headers={"x-lodger-truncated": str(result.truncated)} if result.truncated else None)


def best_first(result: RerankResult) -> list[int]:
    """Places of the documents. The logits decide: scores of good documents all look like 1.0."""
    return sorted(range(len(result.logits)), key=lambda index: -result.logits[index])


def ranked(result: RerankResult, texts: tuple[str, ...] | None, top_n: int | None) -> list[dict[str, Any]]:
    """The best `top_n`, best first."""
    order = best_first(result)
    kept = order if top_n is None else order[: max(top_n, 0)]
    return [
        {
            "index": index,
            "relevance_score": result.scores[index],
            "document": {"text": texts[index]} if texts is not None else None,
        }
        for index in kept
    ]


def _answer(body: RerankRequest, model: str, result: RerankResult, texts: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "model": model,
        "object": "list",
        "results": ranked(result, texts if body.return_documents else None, body.top_n),
        "meta": _meta(result.usage),
        "usage": {"prompt_tokens": result.usage.prompt_tokens, "total_tokens": result.usage.total_tokens},
    }


def _tei(body: RerankRequest, result: RerankResult, texts: tuple[str, ...]) -> list[dict[str, Any]]:
    scores = result.logits if body.raw_scores else result.scores
    return [
        {"index": index, "score": scores[index]} | ({"text": texts[index]} if body.return_text else {})
        for index in best_first(result)
    ]


async def _rerank(service: Service, task: RerankTask) -> RerankResult:
    """No documents are no work, but the model must exist all the same."""
    with Measured("rerank", task.model) as measured:
        if not task.documents:
            service.model(task.model)
            return RerankResult(scores=(), logits=(), usage=Usage())
        result = await service.rerank(task)
        measured.usage(result.usage)
    return result


def _meta(usage: Usage) -> dict[str, Any]:
    return {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": usage.prompt_tokens, "output_tokens": 0},
        "warnings": None,
    }
