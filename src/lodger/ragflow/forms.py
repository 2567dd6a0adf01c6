"""Base URLs that people type into RAGFlow, and where its versions then send their requests."""

from __future__ import annotations

# typed -> the paths that arrive, by what is asked; {} is chat/completions, embeddings and so on
TYPED: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("chat", "/v1/chat/completions"), ("chat", "/chat/completions"),
        ("embedding", "/v1/embeddings"), ("embedding", "/embeddings"),
        ("rerank", "/v1/rerank"), ("rerank", "/rerank"), ("list", "/v1/models"),
    ),
    "/v1": (
        ("chat", "/v1/chat/completions"), ("embedding", "/v1/embeddings"), ("rerank", "/v1/rerank"),
        ("rerank", "/v1/v1/rerank"), ("list", "/v1/v1/models"),
    ),
    "/v1/": (
        ("chat", "/v1/v1/chat/completions"), ("embedding", "/v1/v1/embeddings"), ("rerank", "/v1/rerank"),
        ("list", "/v1/v1/models"),
    ),
    "/v1/rerank": (
        ("chat", "/v1/rerank/chat/completions"), ("chat", "/v1/rerank/v1/chat/completions"),
        ("embedding", "/v1/rerank/embeddings"), ("embedding", "/v1/rerank/v1/embeddings"),
        ("rerank", "/v1/rerank"), ("list", "/v1/rerank/v1/models"),
    ),
}  # fmt: skip
