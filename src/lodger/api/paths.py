"""Paths as people type them: base URLs with too much or too little before the route, and slashes behind it.

RAGFlow alone makes ``/v1/v1/models``, ``/v1/rerank/chat/completions`` and ``/rerank`` of the addresses that its own
pages tell people to type. One rule understands all of them: a run of ``v1``, ``v2`` and ``rerank`` before a known route
counts for nothing. So does ``anthropic``, below which Xinference has Anthropic's routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

_PREFIXES = frozenset({"v1", "v2", "rerank", "anthropic"})


def known_heads(paths: Iterable[str]) -> dict[str, str]:
    """The first segment of each route after its version -> the route up to there.

    ``/v1/chat/completions`` gives ``{"chat": "/v1/chat"}``, ``/healthz`` gives ``{"healthz": "/healthz"}``.
    """
    heads: dict[str, str] = {}
    for path in paths:
        first, *more = [part for part in path.split("/") if part]
        head = more[0] if first == "v1" and more else first
        heads.setdefault(head, f"/v1/{head}" if head != first else f"/{head}")
    return heads


def canonical(path: str, heads: Mapping[str, str]) -> str:
    """The path of the route that is meant; `path` itself where none is.

    Args:
        path: as it was asked for, with its percent signs decoded.
        heads: see `known_heads`.
    """
    segments = [segment for segment in path.split("/") if segment]
    lead = 0
    while lead < len(segments) - 1 and segments[lead] in _PREFIXES:
        lead += 1
    if lead == len(segments) or segments[lead] not in heads:
        return path
    return "/".join([heads[segments[lead]], *segments[lead + 1 :]])


class TolerantPaths:
    """Middleware in front of whatever looks at the path."""

    def __init__(self, app: ASGIApp, heads: Mapping[str, str]) -> None:
        self._app = app
        self._heads = heads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": canonical(scope["path"], self._heads)}
        await self._app(scope, receive, send)
