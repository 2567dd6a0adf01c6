"""A deterministic engine without weights: for tests, for documentation, for trying a client on a laptop.

Chat gives the last user message back word by word, embeddings are sums of hashed words (or those of each word, or
how often each stands there), rerank counts common words.
Its tokens are words (one each for Chinese characters), so counts, limits and cancellation behave like a real model's.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import struct
import zlib
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from functools import lru_cache
from itertools import cycle
from typing import Any, cast

import psutil

from lodger.engines.base import LoadedInfo, LoadRequest
from lodger.errors import Cancelled, ContextExceeded, InvalidRequest, ModelAsleep, Unsupported, WrongKind
from lodger.tasks import (
    ChatTask,
    CompletionTask,
    Delta,
    EmbedResult,
    EmbedTask,
    FinishReason,
    GenerateTask,
    Kind,
    Likely,
    RerankResult,
    RerankTask,
    SparseVector,
    StopRules,
    TokenLogprobs,
    TokensTask,
    Usage,
)

_WORD = re.compile(r"\s*(?:[\u3400-\u9fff]|[^\s\u3400-\u9fff]+)|\s+$")
_WORD_SECONDS = 0.002


class EchoEngine:
    """Loads anything at once and holds no memory but its process's own."""

    def __init__(self, device: str, word_seconds: float = _WORD_SECONDS) -> None:
        self._device = device
        self._word_seconds = word_seconds

    def load(self, request: LoadRequest, progress: Callable[[float], None]) -> EchoModel:
        progress(1.0)
        return EchoModel(request, self._word_seconds)

    def used(self) -> int:
        return int(psutil.Process().memory_info().rss) if self._device == "cpu" else 0

    def close(self) -> None:
        """Nothing to give back."""


class EchoModel:
    """One model of an `EchoEngine`."""

    def __init__(self, request: LoadRequest, word_seconds: float) -> None:
        self._facts = request.facts
        self._limit = request.budget.context_length or request.facts.context_length
        self._word_seconds = word_seconds
        self._running = 0
        self._closed = self._asleep = False
        self.info = LoadedInfo(
            dtype=request.dtype or "float32", context_length=self._limit, memory={"weights": 0}, load_seconds=0.0
        )

    async def generate(self, task: GenerateTask) -> AsyncIterator[Delta]:
        self._check_kind("chat")
        prompt, source = _prompt(task)
        if prompt >= self._limit:
            raise ContextExceeded(
                f"the prompt is too long: {prompt:,} tokens, and the maximum context length of {task.model} is "
                f"{self._limit:,}, prompt and answer together."
            )
        self._check_forms(task)
        words, reason = _answer(source, task.stopping, self._limit - prompt)
        self._running += 1
        try:
            if isinstance(task, CompletionTask) and task.echo:
                for index in range(task.n):
                    yield Delta(index=index, text=source)
            for word in words:
                await asyncio.sleep(self._word_seconds)
                if self._closed:
                    raise Cancelled(f"{task.model} was unloaded.")
                for index in range(task.n):
                    yield Delta(index=index, text=word, logprobs=self._certain(word, task.logprobs))
        finally:
            self._running -= 1
        usage = Usage(prompt, len(words) * task.n)
        for index in range(task.n):
            yield Delta(index=index, finish_reason=reason, usage=usage if index == task.n - 1 else None)

    async def generate_to(self, task: GenerateTask, put: Callable[[Delta], None]) -> None:
        async with aclosing(cast("AsyncGenerator[Delta, None]", self.generate(task))) as deltas:
            async for delta in deltas:
                put(delta)

    async def embed(self, task: EmbedTask) -> EmbedResult:
        self._check_kind("embedding")
        self._check_outputs(task)
        before = _split(self._prompt(task.prompt_name))
        texts = [before + _split(text) if isinstance(text, str) else list(map(str, text)) for text in task.inputs]
        kept = [words[: self._limit] for words in texts]
        full = self._facts.dimensions or self._facts.hidden_size
        size = min(task.dimensions or full, full)
        asked = set(task.outputs)
        return EmbedResult(
            vectors=b"".join(_vector(words, size) for words in kept) if "dense" in asked else b"",
            count=len(kept),
            dimensions=size,
            sparse=tuple(_shares(words, self._facts.vocab_size) for words in kept) if "sparse" in asked else (),
            colbert=tuple(_vectors(words, full) for words in kept) if "colbert" in asked else (),
            colbert_dimensions=full if "colbert" in asked else 0,
            usage=Usage(sum(map(len, kept))),
            truncated=sum(len(words) > self._limit for words in texts),
        )

    async def rerank(self, task: RerankTask) -> RerankResult:
        self._check_kind("rerank")
        query = _split(task.query)
        documents = [_split(document) for document in task.documents]
        scores = tuple(_overlap(query, words[: self._limit]) for words in documents)
        return RerankResult(
            scores=scores,
            logits=scores,
            usage=Usage(sum(len(query) + min(len(words), self._limit) for words in documents)),
            truncated=sum(len(words) > self._limit for words in documents),
        )

    async def tokens(self, task: TokensTask) -> tuple[tuple[str, ...], ...]:
        """It has no vocabulary: every token is spelt as its number."""
        return tuple(tuple(map(str, ids)) for ids in task.ids)

    def running(self) -> int:
        return self._running

    def sleep(self, *, keep: bool) -> None:
        self._asleep = True

    def wake(self) -> None:
        self._asleep = False

    def memory(self) -> dict[str, int]:
        return {} if self._asleep else self.info.memory

    def close(self) -> None:
        self._closed = True

    def _check_forms(self, task: GenerateTask) -> None:
        if task.constraint is not None or (isinstance(task, ChatTask) and task.tool_choice == "required"):
            raise Unsupported(f"{task.model} gives back what it is told, in no other form.", param="response_format")

    def _certain(self, word: str, most: int | None) -> tuple[TokenLogprobs, ...]:
        """It never has a choice."""
        if most is None:
            return ()
        only = Likely(_id_of(word, self._facts.vocab_size), word.encode("utf-8", "replace"), 0.0)
        return (TokenLogprobs(only, (only,) * min(most, 1)),)

    def _check_outputs(self, task: EmbedTask) -> None:
        made = ("dense", *self._facts.token_heads)
        if missing := [output for output in task.outputs if output not in made]:
            raise Unsupported(f"{task.model} makes no {missing[0]} output; it makes {', '.join(made)}.", param="return")

    def _prompt(self, name: str | None) -> str:
        prompts = self._facts.prompts
        name = self._facts.default_prompt if name is None else name
        if name and name not in prompts:
            known = ", ".join(prompts) or "none"
            raise InvalidRequest(
                f"There is no prompt {name[:100]!r}.", hint=f"There are: {known}.", param="prompt_name"
            )
        return prompts[name] if name else ""

    def _check_kind(self, kind: Kind) -> None:
        if self._asleep:
            raise ModelAsleep("This model sleeps.")
        if self._facts.kind != kind:
            raise WrongKind(f"This is a model for {self._facts.kind}, not for {kind}.", param="model")


def _split(text: str) -> list[str]:
    return [str(word) for word in _WORD.findall(text)]


def _prompt(task: GenerateTask) -> tuple[int, str]:
    """Tokens of the prompt, and the text to give back."""
    if not isinstance(task, ChatTask):
        text = task.prompt if isinstance(task.prompt, str) else " ".join(map(str, task.prompt))
        return len(_split(text)), text
    texts = [_text_of(message.get("content")) for message in task.messages]
    said = [text for text, message in zip(texts, task.messages, strict=True) if message.get("role") == "user"]
    return sum(len(_split(text)) for text in texts), said[-1] if said else ""


def _text_of(content: Any) -> str:
    """A message's text, given as a string, as parts, or not at all."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


def _answer(source: str, rules: StopRules, room: int) -> tuple[list[str], FinishReason]:
    """The words to give back within the limits, and why they end."""
    ends = [source.index(stop) for stop in rules.stop if stop in source]
    text = source[: min(ends)] if ends else source
    words = _split(text)
    limit = min(room, room if rules.max_tokens is None else rules.max_tokens)
    if rules.ignore_eos and words and not ends:
        return _take(cycle(words), limit), "length"
    return words[:limit], "length" if len(words) > limit else "stop"


def _take(words: Iterator[str], count: int) -> list[str]:
    return [next(words) for _ in range(count)]


@lru_cache(maxsize=4096)
def _word_vector(word: str, size: int) -> tuple[float, ...]:
    """`size` numbers in -1..1 that look random and are always the same for a word."""
    raw = hashlib.shake_128(word.encode("utf-8", "replace")).digest(2 * size)
    return tuple(value / 32768 for value in struct.unpack(f"<{size}h", raw))


def _vector(words: list[str], size: int) -> bytes:
    """Unit vector of a text: float32, little-endian. Texts with common words are closer to each other."""
    parts = [_word_vector(word.strip().lower(), size) for word in words or [""]]
    total = [sum(column) for column in zip(*parts, strict=True)]
    norm = math.sqrt(sum(value * value for value in total)) or 1.0
    return struct.pack(f"<{size}f", *(value / norm for value in total))


def _vectors(words: list[str], size: int) -> bytes:
    """Unit vector of every word, [words, size]; an empty text has one too."""
    return b"".join(_vector([word], size) for word in words or [""])


def _shares(words: list[str], vocabulary: int) -> SparseVector:
    """Which part of the text each word is, 0..1, under an id of the vocabulary that is always the same."""
    counts = Counter(_id_of(word, vocabulary) for word in words)
    shares = [count / len(words) for count in counts.values()]
    return SparseVector(ids=struct.pack(f"<{len(counts)}i", *counts), weights=struct.pack(f"<{len(shares)}f", *shares))


def _id_of(word: str, vocabulary: int) -> int:
    return zlib.crc32(word.strip().lower().encode("utf-8", "replace")) % vocabulary


def _overlap(query: list[str], document: list[str]) -> float:
    """Words in common over words in all, 0..1."""
    asked, found = ({word.strip().lower() for word in words} for words in (query, document))
    return len(asked & found) / (len(asked | found) or 1)
