"""Load on /v1/embeddings: batches from one caller, single texts from many, and whether usage is counted right."""

from __future__ import annotations

import asyncio
from typing import Any

from bench.load import Measured, Target, callers, mixed_length, post, text

WORDS = 180  # about 187 tokens of a BERT vocabulary


def _text(seed: int, mixed: bool) -> str:
    return text(mixed_length(WORDS, seed) if mixed else WORDS, seed)


async def _embed(to: Target, inputs: list[str], counted: Measured | None = None) -> dict[str, Any]:
    answer = await post(to, "/v1/embeddings", {"model": to.embedding, "input": inputs}, counted)
    vectors = [item["embedding"] for item in answer["data"]]
    if len(vectors) != len(inputs) or len({len(vector) for vector in vectors}) != 1:
        raise RuntimeError(f"{len(inputs)} texts were sent and {len(vectors)} vectors came back")
    if counted is not None:
        counted.items += len(vectors)
        counted.tokens += answer["usage"]["total_tokens"]
    return answer


async def batches(to: Target, *, batch: int = 32, requests: int = 10, mixed: bool = False) -> dict[str, Any]:
    """One caller, one batch after the other."""
    for i in range(2):
        await _embed(to, [_text(10**6 + i * 100 + k, mixed) for k in range(batch)])
    counted = Measured()

    async def send(_: int) -> None:
        for i in range(requests):
            await _embed(to, [_text(i * batch + k, mixed) for k in range(batch)], counted)

    await callers(1, send, counted)
    return {"batch": batch, "mixed": mixed, **counted.result("texts")}


async def singles(to: Target, *, clients: int, requests: int) -> dict[str, Any]:
    """`clients` callers, each with one text after the other."""
    for i in range(4):
        await _embed(to, [_text(10**6 + i, False)])
    counted = Measured()

    async def send(caller: int) -> None:
        for i in range(requests):
            await _embed(to, [_text(caller * 100_000 + i, False)], counted)

    await callers(clients, send, counted)
    return {"clients": clients, **counted.result("texts")}


async def usage(to: Target, *, texts: int = 16) -> dict[str, Any]:
    """Tokens reported for the same texts one at a time and all at once: the same, if each request counts its own."""
    inputs = [text(4 + i, 500 + i) for i in range(texts)]
    alone = [(await _embed(to, [one]))["usage"]["total_tokens"] for one in inputs]
    together = await asyncio.gather(*(_embed(to, [one]) for one in inputs))
    reported = [answer["usage"]["total_tokens"] for answer in together]
    wrong = sum(a != b for a, b in zip(alone, reported, strict=True))
    return {"requests": texts, "tokens_alone": sum(alone), "tokens_together": sum(reported), "wrong": wrong}
