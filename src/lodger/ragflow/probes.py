"""What RAGFlow sends to a model server, request by request, and what it needs in the answer.

Bodies, limits and the versions that send them are those of RAGFlow's `rag/llm/*.py`, its routes for adding a model, and
of the SDKs it sends them through.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lodger.ragflow.connect import Offer
from lodger.ragflow.reply import Reply

ADDING = 10.0  # seconds: LLM_TIMEOUT_SECONDS while a model is added
RERANKING = 30.0  # of one retrieval, from 0.26 on
EMBEDDING = 60.0
BATCH, PASSAGES = 16, 64  # texts of one embeddings request; documents of one retrieval
_LONG = "检索增强生成 retrieval augmented generation " * 1_500  # more than any embedder takes
_TOOL = {
    "type": "function",
    "function": {
        "name": "search",
        "description": "Search the web",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}


class Wrong(Exception):
    """The answer is not what RAGFlow needs: how it differs, and what RAGFlow makes of that."""


@dataclass(frozen=True)
class Probe:
    """One request. `judge` says what was measured, or raises Wrong (or what a wrong shape raises by itself)."""

    what: str
    method: str
    path: str
    body: dict[str, Any] | None
    judge: Callable[[Reply], str]
    limit: float = EMBEDDING
    bare: bool = False  # sent without a key when the key is "x", as its rerank classes do
    slow: bool = False  # worth sending from one side only
    words: bool = False  # the first words of the stream are enough
    older: bool = False  # only versions up to 0.25 wait for it, so that being late is no failure elsewhere


def listing(models: Sequence[Offer]) -> Probe:
    """From 0.26 the page that adds a provider lists what it has."""

    def judge(reply: Reply) -> str:
        rows = {row["id"]: row for row in reply.json()["data"]}
        missing = [model.name for model in models if model.name not in rows]
        if missing:
            raise Wrong(f"{', '.join(missing)} missing in the list")
        untyped = [uid for uid, row in rows.items() if not row.get("model_type")]
        if untyped:
            raise Wrong(f"no model_type for {', '.join(untyped)}: RAGFlow cannot tell what it is for")
        return f"{len(rows)} models with their types and limits"

    return Probe("list of models (0.26+)", "GET", "/v1/models", None, judge, limit=ADDING)


def probes(model: Offer) -> Iterator[Probe]:
    """All that RAGFlow sends to a model of this type."""
    yield from {"chat": _chat, "embedding": _embedding, "rerank": _rerank}[model.type](model)


def _chat(model: Offer) -> Iterator[Probe]:
    uid = model.name

    def ask(text: str, **more: Any) -> dict[str, Any]:
        thinking = {"enable_thinking": False} if "qwen3" in uid.lower() else {}
        messages = [{"role": "user", "content": text}]
        return {"messages": messages, "model": uid, "temperature": 0.9} | thinking | more

    path = "/v1/chat/completions"
    hello = ask("Hello! How are you doing!")
    yield Probe("chat, adding it (up to 0.25)", "POST", path, hello, _spoke, limit=ADDING, older=True)
    yield Probe(
        "chat stream, adding it (0.26+)", "POST", path, ask("Hi", stream=True), _streamed, limit=ADDING, words=True
    )
    if not model.tools:
        return  # RAGFlow is told so, and sends none
    tooled = ask("Hi", stream=True, tools=[_TOOL], tool_choice="auto")
    yield Probe("chat stream with tools (agents)", "POST", path, tooled, _streamed, limit=EMBEDDING, slow=True)


def _embedding(model: Offer) -> Iterator[Probe]:
    uid = model.name
    path, key = "/v1/embeddings", "Test if the api key is available"
    seen: dict[str, list[float]] = {}

    def based(reply: Reply) -> str:
        data = reply.json()["data"]
        if not isinstance(data[0]["embedding"], str):
            raise Wrong("base64 was asked for and floats came: several SDKs read them as a wrong vector")
        seen["base64"] = vector(data[0]["embedding"])
        return f"{_unit(seen['base64'])}, {_used(reply)}"

    def floats(reply: Reply) -> str:
        found = vector(reply.json()["data"][0]["embedding"])
        if seen and _cosine(found, seen["base64"]) < 0.999:
            raise Wrong("floats are another vector than base64 of the same text")
        return f"{_unit(found)}, {_used(reply)}"

    one = {"input": [key], "model": uid, "encoding_format": "base64"}
    yield Probe("embedding, adding it (base64)", "POST", path, one, based, limit=ADDING)
    plain = {"input": [key], "model": uid, "encoding_format": "float", "drop_params": True}
    yield Probe("embedding as OpenAI-API-Compatible (float)", "POST", path, plain, floats, limit=ADDING)
    texts = [f"第 {number} 段: passage {number}" for number in range(BATCH - 1)] + ["None"]
    batch = {"input": texts, "model": uid, "encoding_format": "base64"}
    yield Probe(f"embedding, {BATCH} passages", "POST", path, batch, _batch)
    long = {"input": [_LONG], "model": uid, "encoding_format": "base64"}
    yield Probe("embedding, a passage over the limit", "POST", path, long, lambda reply: _cut(reply, based), slow=True)


def _rerank(model: Offer) -> Iterator[Probe]:
    uid = model.name
    path = "/v1/rerank"

    def ask(query: str, documents: list[str]) -> dict[str, Any]:
        strings = {"return_documents": "true", "return_len": "true"}  # RAGFlow sends these booleans as strings
        return {"model": uid, "query": query} | strings | {"documents": documents}

    first = ask("What's the weather?", ["Is it sunny today?"])
    yield Probe("rerank, adding it", "POST", path, first, lambda reply: _ranked(reply, 1), limit=ADDING, bare=True)
    many = [f"今天 天气 晴 passage {number} of the weather report" for number in range(PASSAGES)]
    retrieval = ask("今天天气怎么样？", many)
    judge = lambda reply: _ranked(reply, PASSAGES)  # noqa: E731
    name = f"rerank, {PASSAGES} passages"
    yield Probe(name, "POST", path, retrieval, judge, limit=RERANKING, bare=True, slow=True)
    compatible = {"model": uid, "query": "What's the weather?", "documents": ["Is it sunny today?"], "top_n": 1}
    name = "rerank as OpenAI-API-Compatible"
    yield Probe(name, "POST", path, compatible, lambda reply: _ranked(reply, 1), limit=ADDING)


def _spoke(reply: Reply) -> str:
    choice = reply.json()["choices"][0]
    if not (choice["message"].get("content") or choice["message"].get("reasoning_content")):
        raise Wrong("the answer has no words")
    if choice["finish_reason"] == "length":
        raise Wrong("the answer was cut without a max_tokens")
    return f"{reply.json()['usage']['total_tokens']} tokens in {reply.seconds:.1f} s"


def _streamed(reply: Reply) -> str:
    words, calls = "", 0
    for line in reply.body.splitlines():
        if not line.startswith(b"data:") or line.endswith(b"[DONE]"):
            continue  # a comment that keeps the connection open, or the end
        try:
            event = json.loads(line[5:])
        except ValueError:
            if reply.in_time:
                raise
            break  # cut off in the middle
        if "error" in event:
            raise Wrong(str(event["error"]))
        for choice in event["choices"]:
            delta = choice["delta"]
            words += (delta.get("content") or "") + (delta.get("reasoning_content") or "")
            calls += len(delta.get("tool_calls") or ())
    if not words and not calls:
        raise Wrong(f"no words within {reply.seconds:.0f} s: RAGFlow shows an empty answer")
    return f"words come, {reply.seconds:.1f} s"


def _batch(reply: Reply) -> str:
    data = reply.json()["data"]
    if [row["index"] for row in data] != list(range(BATCH)):
        raise Wrong("vectors are not in the order of the passages, which RAGFlow up to 0.25 relies on")
    sizes = {len(vector(row["embedding"])) for row in data}
    if len(sizes) != 1:
        raise Wrong(f"vectors of {sorted(sizes)} numbers in one answer")
    return f"{BATCH} vectors in order, {reply.seconds:.2f} s"


def _cut(reply: Reply, judge: Callable[[Reply], str]) -> str:
    judge(reply)
    return f"cut to {reply.json()['usage']['total_tokens']} tokens and embedded, {reply.seconds:.1f} s"


def _ranked(reply: Reply, count: int) -> str:
    results = reply.json()["results"]
    if sorted(row["index"] for row in results) != list(range(count)):
        raise Wrong(f"{len(results)} scores for {count} passages: RAGFlow counts the others as 0")
    scores = [row["relevance_score"] for row in results]
    if not all(isinstance(score, float | int) and 0 <= score <= 1 for score in scores):
        raise Wrong("scores are not within 0..1: RAGFlow up to 0.25 compares them with a threshold as they are")
    return f"{count} scores within 0..1, {reply.seconds:.2f} s"


def vector(value: str | list[float]) -> list[float]:
    """Of base64 (little-endian float32) or of numbers."""
    if isinstance(value, list):
        return value
    raw = base64.b64decode(value)
    return list(struct.unpack(f"<{len(raw) // 4}f", raw))


def _unit(found: list[float]) -> str:
    norm = math.sqrt(sum(x * x for x in found))
    if not found or not math.isfinite(norm) or abs(norm - 1) > 1e-2:
        raise Wrong(f"a vector of {len(found)} numbers and length {norm:.3f}, not 1: RAGFlow mixes vectors as they are")
    return f"{len(found)} numbers, length 1"


def _used(reply: Reply) -> str:
    used = reply.json()["usage"]["total_tokens"]
    if not used:
        raise Wrong("usage.total_tokens is 0")
    return f"{used} tokens"


def _cosine(one: list[float], other: list[float]) -> float:
    if len(one) != len(other):
        return 0.0
    return sum(x * y for x, y in zip(one, other, strict=True))
