"""What every load generator needs: seeded texts, a client that keeps its connections, and statistics."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

_SENTENCES = (
    "the model server reads packed tokens from every request and returns vectors while memory on the shared device "
    "stays inside a fixed budget because other people run training jobs there and nobody wants an out of memory error "
    "in the middle of the night so the planner measures free space first then decides how many blocks each worker gets "
    "documents are split into chunks about two hundred tokens long before they are embedded and stored in an index"
)
WORDS = _SENTENCES.split()


def text(words: int, seed: int) -> str:
    """The same `words` words for the same seed, so that every server is asked the same."""
    pick = random.Random(seed)
    return " ".join(pick.choice(WORDS) for _ in range(words))


def mixed_length(words: int, seed: int) -> int:
    """A length from `words / 8` up to twice `words`, evenly spread."""
    return random.Random(seed * 7 + 1).randrange(max(1, words // 8), words * 2)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Count, mean, median, 95th percentile and largest, in the unit of `values`."""
    if not values:
        return {"n": 0}
    ordered = sorted(values)
    high = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    shown = {"mean": statistics.fmean(ordered), "p50": statistics.median(ordered), "p95": high, "max": ordered[-1]}
    return {"n": len(ordered), **{name: round(value, 5) for name, value in shown.items()}}


@dataclass
class Target:
    """One server and the names of its three models."""

    client: httpx.AsyncClient
    chat: str = "chat"
    embedding: str = "emb"
    rerank: str = "rerank"


@asynccontextmanager
async def target(url: str, api_key: str | None = None) -> AsyncIterator[Target]:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    limits = httpx.Limits(max_connections=256, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600, limits=limits) as client:
        yield Target(client)


@dataclass
class Measured:
    """What one timed part counted. A failed request stops the whole run: a rate with errors in it means nothing."""

    latencies: list[float] = field(default_factory=list)  # seconds
    items: int = 0  # texts, pairs or tokens
    tokens: int = 0  # as the server counted them
    wall: float = 0.0
    client_cpu: float = 0.0  # seconds of CPU that the load generator itself used

    def result(self, unit: str) -> dict[str, Any]:
        return {
            unit: self.items,
            f"{unit}_per_s": round(self.items / self.wall, 3),
            "tokens": self.tokens,
            "wall_s": round(self.wall, 4),
            "latency_s": spread(self.latencies),
            "client_cpu_share": round(self.client_cpu / self.wall, 4),
        }


async def post(to: Target, path: str, body: dict[str, Any], counted: Measured | None = None) -> dict[str, Any]:
    """The parsed answer. Its time until the last byte goes into `counted`; parsing does not.

    Raises:
        RuntimeError: any status but 200, with the beginning of the answer.
    """
    started = time.perf_counter()
    response = await to.client.post(path, json=body)
    ended = time.perf_counter()
    if response.status_code != 200:
        raise RuntimeError(f"{path}: {response.status_code} {response.text[:300]}")
    if counted is not None:
        counted.latencies.append(ended - started)
    answer: dict[str, Any] = response.json()
    return answer


async def callers(count: int, each: Callable[[int], Awaitable[None]], counted: Measured) -> None:
    """Run `each(caller)` for `count` callers at once and time them together."""
    cpu, started = time.process_time(), time.perf_counter()
    await asyncio.gather(*(each(caller) for caller in range(count)))
    counted.wall = time.perf_counter() - started
    counted.client_cpu = time.process_time() - cpu
