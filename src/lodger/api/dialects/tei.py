"""The one route of Hugging Face's text-embeddings-inference (TEI) that OpenAI's API does not have.

Its ``/rerank`` is understood by `lodger.api.dialects.rerank`, its ``/v1/embeddings`` is OpenAI's.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from lodger.api.bodies import Body, TextsOrTokens, json_response
from lodger.api.choosing import named_or_only
from lodger.api.context import ServiceDep
from lodger.api.dialects.embeddings import EmbeddingsRequest, embed, floats
from lodger.api.disconnect import unless_gone

router = APIRouter(tags=["tei"])


class EmbedRequest(Body):
    """POST /embed."""

    model: str | None = Field(None, description="May be left out where only one embedding model was launched")
    inputs: TextsOrTokens
    dimensions: int | None = Field(None, ge=1)
    prompt_name: str | None = None


@router.post("/embed", summary="Turn texts into vectors, as TEI does")
async def embed_texts(body: EmbedRequest, request: Request, service: ServiceDep) -> Response:
    asked = EmbeddingsRequest.model_construct(
        model=named_or_only(body.model, service, "embedding"),
        input=body.inputs,
        dimensions=body.dimensions,
        prompt_name=body.prompt_name,
    )
    result = await unless_gone(request, embed(service, asked))
    headers = {"x-lodger-truncated": str(result.truncated)} if result.truncated else None
    return json_response(floats(result.vectors, result.dimensions), headers=headers)
