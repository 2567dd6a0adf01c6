"""The dialects that Lodger speaks. One file each, with a `router`, and one row here.

Routes are tried in this order: ``/v1/models/families`` and ``/v1/models/instances`` must come before
``/v1/models/{uid}``.
"""

from __future__ import annotations

from importlib import import_module

from fastapi import APIRouter

TABLE: dict[str, str] = {
    "openai": "lodger.api.dialects.openai",
    "responses": "lodger.api.dialects.responses",
    "anthropic": "lodger.api.dialects.anthropic",
    "embeddings": "lodger.api.dialects.embeddings",
    "rerank": "lodger.api.dialects.rerank",
    "tei": "lodger.api.dialects.tei",
    "vocabulary": "lodger.api.dialects.vocabulary",
    "registry": "lodger.api.dialects.registry",
    "xinference": "lodger.api.dialects.xinference",
    "admin": "lodger.api.dialects.admin",
}


def routers() -> list[APIRouter]:
    """The router of every dialect of the table."""
    return [import_module(module).router for module in TABLE.values()]
