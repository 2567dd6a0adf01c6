"""Verify: the guide's three requests, sent to whatever models are up, with the numbers of each answer.

The requests go through the same HTTP routes that any client uses. They are asked in Chinese, as the guide asks them,
unless a measurement shows that the model's tokenizer cannot read Chinese; then they are asked in English.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lodger.catalogue.facts import TokenHead
from lodger.client import Client
from lodger.errors import LodgerError, from_info
from lodger.service import ModelStatus
from lodger.tasks import Kind

MAX_TOKENS = 64  # enough for a sentence in words, quick on a CPU
TOKENS_PER_CHARACTER = 1.5  # a tokenizer that knows Chinese spends under 1; one that falls back to bytes, 2 to 3


@dataclass(frozen=True)
class Questions:
    """One wording of the three requests. The first document is the right answer to the query."""

    text: str
    query: str
    documents: tuple[str, str]
    chat: str


CHINESE = Questions(
    text="你好，Xinference",
    query="中国的首都是哪里？",
    documents=("北京是中国的首都。", "香蕉是黄色的。"),
    chat="请用中文介绍一下你自己",
)
ENGLISH = Questions(
    text="Hello, Lodger",
    query="What is the capital of China?",
    documents=("Beijing is the capital of China.", "Bananas are yellow."),
    chat="What is the capital of France?",
)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What one model was asked, what it said, and what is wrong with that."""

    uid: str
    kind: Kind | None
    asked: str = ""
    answered: str = ""
    numbers: dict[str, float] = {}  # seconds, counts and scores by name
    problems: tuple[str, ...] = ()


def verify(client: Client, models: Sequence[ModelStatus]) -> Iterator[Answer]:
    """One answer for each model, as it comes. A model that cannot be asked has its reason among the problems."""
    for model in models:
        kind = model.facts.kind if model.facts else model.spec.kind
        if not model.serves or kind is None:
            reason = from_info(model.error).text if model.error else f"it is {model.state}"
            yield Answer(uid=model.uid, kind=kind, problems=(f"not ready: {reason}",))
            continue
        try:
            yield _ASK[kind](client, model)
        except LodgerError as error:
            yield Answer(uid=model.uid, kind=kind, problems=(error.text,))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            yield Answer(uid=model.uid, kind=kind, problems=(f"the answer has another shape than expected: {error!r}",))


def _ask_embedding(client: Client, model: ModelStatus) -> Answer:
    uid, facts = model.uid, model.facts
    unlike = [_vector(item) for item in _embed(client, uid, ["你好", "谢谢"])["data"]]
    questions = CHINESE if unlike[0] != unlike[1] else ENGLISH  # two unknown words look the same to a model
    started = time.perf_counter()
    body = _embed(client, uid, [questions.text])
    seconds = time.perf_counter() - started
    vector = _vector(body["data"][0])
    norm = math.sqrt(sum(x * x for x in vector))
    problems = []
    if not vector or not all(math.isfinite(x) for x in vector):
        problems.append("the vector is empty or has numbers that are not finite")
    elif (facts is None or facts.normalize) and abs(norm - 1) > 1e-2:
        problems.append(f"the vector has length {norm:.4f}, not 1")
    heads = _ask_heads(client, uid, questions.text, facts.token_heads) if facts and facts.token_heads else {}
    problems += [f"the {head} output is empty" for head, count in heads.items() if not count]
    return Answer(
        uid=uid,
        kind="embedding",
        asked=questions.text,
        answered=f"[{', '.join(f'{x:.4f}' for x in vector[:3])}, ...]",
        numbers={"dimensions": len(vector), "norm": round(norm, 4), "seconds": round(seconds, 3), **heads},
        problems=tuple(problems),
    )


def _ask_heads(client: Client, uid: str, text: str, heads: tuple[TokenHead, ...]) -> dict[str, int]:
    """How many weights and how many vectors bge-m3's other heads make of the text."""
    body = client.post("/v1/embeddings", {"model": uid, "input": text, "return": list(heads)})
    return {head: len(body["data"][0][head]) for head in heads}


def _ask_rerank(client: Client, model: ModelStatus) -> Answer:
    uid = model.uid
    unlike = _rerank(client, uid, "你好", ("你好", "谢谢"))
    questions = CHINESE if unlike[0] != unlike[1] else ENGLISH
    started = time.perf_counter()
    scores = _rerank(client, uid, questions.query, questions.documents)
    seconds = time.perf_counter() - started
    right, wrong = scores[0], scores[1]
    problems = []
    if not all(0 <= score <= 1 for score in (right, wrong)):
        problems.append(f"scores {right} and {wrong} are not within 0..1")
    if not right > wrong:
        problems.append(f"{questions.documents[1]!r} scored {wrong:.4f}, the right answer only {right:.4f}")
    first, second = questions.documents
    return Answer(
        uid=uid,
        kind="rerank",
        asked=questions.query,
        answered=f"{right:.4f} {first}  {wrong:.4f} {second}",
        numbers={"right": right, "wrong": wrong, "seconds": round(seconds, 3)},
        problems=tuple(problems),
    )


def _ask_chat(client: Client, model: ModelStatus) -> Answer:
    uid = model.uid
    probe = client.post("/v1/completions", {"model": uid, "prompt": CHINESE.chat, "max_tokens": 1})
    knows = probe["usage"]["prompt_tokens"] <= TOKENS_PER_CHARACTER * len(CHINESE.chat)
    question = (CHINESE if knows else ENGLISH).chat
    body = {
        "model": uid,
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    started, first = time.perf_counter(), 0.0
    pieces: list[str] = []
    usage: dict[str, Any] = {}
    for event in client.stream("/v1/chat/completions", body):
        for choice in event.get("choices", []):
            if words := choice.get("delta", {}).get("content"):
                first = first or time.perf_counter()
                pieces.append(words)
        usage = event.get("usage") or usage
    return _chat_answer(uid, question, pieces, usage, (started, first, time.perf_counter()))


def _chat_answer(
    uid: str, question: str, pieces: list[str], usage: dict[str, Any], times: tuple[float, float, float]
) -> Answer:
    started, first, ended = times
    text = "".join(pieces).strip()
    tokens = usage.get("completion_tokens", 0)
    numbers = {"tokens": tokens, "first_token_seconds": round(first - started, 3) if first else 0.0}
    if tokens > 1 and ended > first > 0:
        numbers["tokens_per_second"] = round((tokens - 1) / (ended - first), 1)
    problems = []
    if not text:
        problems.append("the reply has no words")
    elif len(pieces) < 2 and tokens > 1:
        problems.append(f"{tokens} tokens came in one piece instead of one at a time")
    if not tokens:
        problems.append("the stream ended without its usage")
    return Answer(uid=uid, kind="chat", asked=question, answered=text, numbers=numbers, problems=tuple(problems))


def _embed(client: Client, uid: str, texts: list[str]) -> dict[str, Any]:
    return client.post("/v1/embeddings", {"model": uid, "input": texts})


def _vector(item: dict[str, Any]) -> list[float]:
    return [float(x) for x in item["embedding"]]


def _rerank(client: Client, uid: str, query: str, documents: tuple[str, str]) -> list[float]:
    """Scores in the order of the documents."""
    body = client.post("/v1/rerank", {"model": uid, "query": query, "documents": list(documents)})
    ranked = sorted(body["results"], key=lambda result: result["index"])
    return [float(result["relevance_score"]) for result in ranked]


_ASK = {"embedding": _ask_embedding, "rerank": _ask_rerank, "chat": _ask_chat}
