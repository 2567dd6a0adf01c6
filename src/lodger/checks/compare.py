"""The same inputs to two servers: how near their answers are, and how long each took."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import msgspec

from lodger.client import Client
from lodger.errors import LodgerError

TEXTS = (
    "你好，Xinference",
    "中国的首都是北京。",
    "Retrieval augmented generation answers from documents.",
    "The quick brown fox jumps over the lazy dog.",
    "向量模型把一段文字变成一串数字，意思相近的文字得到相近的数字。" * 8,
    "def add(a, b):\n    return a + b",
    "Bananas are yellow.",
    "1 + 1 = 2",
)
QUERY = "What is the capital of China? 中国的首都是哪里？"
DOCUMENTS = (
    "北京是中国的首都。",
    "Beijing is the capital of China.",
    "上海是中国的经济中心。",
    "Paris is the capital of France.",
    "Bananas are yellow.",
    "香蕉是黄色的。",
    "China has the second largest population of all countries.",
    "The weather is fine today.",
)
QUESTIONS = ("What is the capital of France?", "请用中文介绍一下你自己")
MAX_TOKENS = 64
TURNS = 3  # of which the middle one counts


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """One model on both servers.

    Attributes:
        ours, theirs: seconds of the middle one of three turns, first tokens and lengths, by name.
        agreement: how near the answers are: cosine, share of pairs in the same order, greatest difference of scores.
    """

    uid: str
    kind: str
    ours: dict[str, float] = {}
    theirs: dict[str, float] = {}
    agreement: dict[str, float] = {}
    problem: str | None = None


def compare(ours: Client, theirs: Client, pairs: Sequence[tuple[str, str, str]]) -> Iterator[Compared]:
    """
    Args:
        pairs: uid here, uid there, and the model_type of both.
    """
    for here, there, kind in pairs:
        try:
            yield _KINDS[kind](ours, theirs, here, there)
        except LodgerError as error:
            yield Compared(uid=here, kind=kind, problem=error.text)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            yield Compared(uid=here, kind=kind, problem=f"an answer has another shape than expected: {error!r}")


def paired(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Models of the same uid on both; else the only one of its type on each side."""
    found: list[tuple[str, str, str]] = []
    for row in ours:
        kind = row.get("model_type")
        same = [other for other in theirs if other.get("model_type") == kind]
        match = [other for other in same if other["id"] == row["id"]]
        alone = same if len(same) == 1 and sum(one.get("model_type") == kind for one in ours) == 1 else []
        if kind in _KINDS and (match or alone):
            found.append((row["id"], (match or alone)[0]["id"], str(kind)))
    return found


def _embedding(ours: Client, theirs: Client, here: str, there: str) -> Compared:
    def ask(client: Client, uid: str) -> list[list[float]]:
        rows = client.post("/v1/embeddings", {"model": uid, "input": list(TEXTS)})["data"]
        return [row["embedding"] for row in sorted(rows, key=lambda row: row["index"])]

    mine, other, times = _timed(ours, theirs, here, there, ask)
    cosines = [cosine(a, b) for a, b in zip(mine, other, strict=True)]
    agreement = {"cosine_least": min(cosines), "cosine_mean": statistics.fmean(cosines)}
    return Compared(uid=here, kind="embedding", ours=times[0], theirs=times[1], agreement=agreement)


def _rerank(ours: Client, theirs: Client, here: str, there: str) -> Compared:
    def ask(client: Client, uid: str) -> list[float]:
        body = {"model": uid, "query": QUERY, "documents": list(DOCUMENTS)}
        rows = client.post("/v1/rerank", body)["results"]
        return [row["relevance_score"] for row in sorted(rows, key=lambda row: row["index"])]

    mine, other, times = _timed(ours, theirs, here, there, ask)
    agreement = {
        "same_order": same_order(mine, other),
        "score_difference": max(abs(a - b) for a, b in zip(mine, other, strict=True)),
    }
    return Compared(uid=here, kind="rerank", ours=times[0], theirs=times[1], agreement=agreement)


def _chat(ours: Client, theirs: Client, here: str, there: str) -> Compared:
    mine = [_answer(ours, here, question) for question in QUESTIONS]
    other = [_answer(theirs, there, question) for question in QUESTIONS]
    same = statistics.fmean(a == b for (a, _), (b, _) in zip(mine, other, strict=True))
    numbers = [
        {name: statistics.fmean(one[name] for _, one in answers) for name in ("seconds", "first_seconds", "characters")}
        for answers in (mine, other)
    ]
    return Compared(uid=here, kind="LLM", ours=numbers[0], theirs=numbers[1], agreement={"same_text": same})


_KINDS: dict[str, Callable[[Client, Client, str, str], Compared]] = {
    "LLM": _chat,
    "embedding": _embedding,
    "rerank": _rerank,
}


def _answer(client: Client, uid: str, question: str) -> tuple[str, dict[str, float]]:
    """What it streams at temperature 0, and when."""
    body = {
        "model": uid,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "stream": True,
    }
    started, first, said = time.perf_counter(), 0.0, ""
    for event in client.stream("/v1/chat/completions", body):
        for choice in event.get("choices", ()):
            words = choice.get("delta", {}).get("content") or ""
            if words and not first:
                first = time.perf_counter()
            said += words
    ended = time.perf_counter()
    numbers = {"seconds": ended - started, "first_seconds": (first or ended) - started, "characters": float(len(said))}
    return said, numbers


def _timed(
    ours: Client, theirs: Client, here: str, there: str, ask: Callable[[Client, str], list[Any]]
) -> tuple[list[Any], list[Any], tuple[dict[str, float], dict[str, float]]]:
    """Both answers, and the middle time of each server; they take turns, so that neither is always the warmer one."""
    answers: list[list[Any]] = [[], []]
    times: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for side, (client, uid) in enumerate(((ours, here), (theirs, there))):
            started = time.perf_counter()
            answers[side] = ask(client, uid)
            times[side].append(time.perf_counter() - started)
    mine, other = ({"seconds": statistics.median(one)} for one in times)
    return answers[0], answers[1], (mine, other)


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Of two vectors of one length.

    Raises:
        ValueError: they have different lengths.
    """
    if len(one) != len(other):
        raise ValueError(f"vectors of {len(one)} and of {len(other)} numbers")
    norm = math.sqrt(sum(x * x for x in one) * sum(y * y for y in other))
    return sum(x * y for x, y in zip(one, other, strict=True)) / norm if norm else 0.0


def same_order(one: Sequence[float], other: Sequence[float]) -> float:
    """Share of pairs that both rank alike: 1 is the same order, 0 its reverse."""
    pairs = list(combinations(range(len(one)), 2))
    alike = sum(
        (one[i] - one[j]) * (other[i] - other[j]) > 0 or (one[i] == one[j] and other[i] == other[j]) for i, j in pairs
    )
    return alike / len(pairs) if pairs else 1.0
