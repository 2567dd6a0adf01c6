"""Load on /v1/rerank: one query against many documents."""

from __future__ import annotations

from typing import Any

from bench.load import Measured, Target, callers, mixed_length, post, text

WORDS = 180


def _body(to: Target, seed: int, documents: int, mixed: bool) -> dict[str, Any]:
    seeds = range(seed * 1000, seed * 1000 + documents)
    return {
        "model": to.rerank,
        "query": text(12, seed + 5),
        "documents": [text(mixed_length(WORDS, s) if mixed else WORDS, s) for s in seeds],
    }


async def pairs(
    to: Target, *, documents: int = 32, clients: int = 1, requests: int = 8, mixed: bool = False
) -> dict[str, Any]:
    """`clients` callers, each with one request of `documents` pairs after the other."""

    async def ask(seed: int, counted: Measured | None = None) -> None:
        body = _body(to, seed, documents, mixed)
        answer = await post(to, "/v1/rerank", body, counted)
        if sorted(row["index"] for row in answer["results"]) != list(range(documents)):
            raise RuntimeError(f"{documents} documents were sent and {len(answer['results'])} scores came back")
        if counted is not None:
            counted.items += documents

    for i in range(2):
        await ask(900_000 + i)
    counted = Measured()

    async def send(caller: int) -> None:
        for i in range(requests):
            await ask(caller * 1000 + i, counted)

    await callers(clients, send, counted)
    return {"documents": documents, "clients": clients, "mixed": mixed, **counted.result("pairs")}
