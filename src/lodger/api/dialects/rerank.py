"""Rerank in the one shape that Cohere's, Jina's and Xinference's clients all read."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from lodger.api import limits
from lodger.api.bodies import Body, at_most, json_response
from lodger.api.context import ServiceDep
from lodger.api.disconnect import unless_gone
from lodger.api.measure import Measured
from lodger.errors import MalformedBody
from lodger.service import Service
from lodger.tasks import RerankResult, RerankTask, Usage

router = APIRouter(tags=["rerank"])


class RerankRequest(Body):
    """POST /v1/rerank. Over-long documents are cut; the header x-lodger-truncated says how many were."""

    model: str = Field(min_length=1)
    query: str
    documents: list[Any] = Field(description="Strings, or objects with a `text` or the `rank_fields`")
    top_n: int | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None
    instruction: str | None = Field(None, description="What counts as an answer, for rerankers that are told")
    instruct: str | None = Field(None, description="Another name of `instruction`")

    def texts(self) -> tuple[str, ...]:
        at_most(len(self.documents), limits.DOCUMENTS, "documents")
        return tuple(self._text(document, place) for place, document in enumerate(self.documents))

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
    texts = body.texts()
    task = RerankTask(
        model=body.model, query=body.query, documents=texts, instruction=body.instruction or body.instruct or None
    )
    result = await unless_gone(request, _rerank(service, task))
    shown = texts if body.return_documents else None
    headers = {"x-lodger-truncated": str(result.truncated)} if result.truncated else None
    return json_response(
        {
            "id": str(uuid.uuid4()),
            "model": body.model,
            "object": "list",
            "results": ranked(result, shown, body.top_n),
            "meta": _meta(result.usage),
            "usage": {"prompt_tokens": result.usage.prompt_tokens, "total_tokens": result.usage.total_tokens},
        },
        headers=headers,
    )


def ranked(result: RerankResult, texts: tuple[str, ...] | None, top_n: int | None) -> list[dict[str, Any]]:
    """The best `top_n`, best first. The logits decide: scores of good documents all look like 1.0."""
    order = sorted(range(len(result.logits)), key=lambda index: -result.logits[index])
    kept = order if top_n is None else order[: max(top_n, 0)]
    return [
        {
            "index": index,
            "relevance_score": result.scores[index],
            "document": {"text": texts[index]} if texts is not None else None,
        }
        for index in kept
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
