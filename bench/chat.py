"""Load on /v1/chat/completions: streams, greedy, with the first token, the gaps between tokens and the rates.

Tokens are those of the server's own usage. Servers that send several tokens in one burst make "tokens after the first,
by the time after the first" look faster than they are, so the decode rate counts only what came after the first burst.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

from bench.load import Measured, Target, callers, spread, text

PROMPTS = (
    "Write a long story about a lighthouse keeper and the sea.",
    "Explain how a bicycle stays upright, in detail.",
    "Describe the history of the printing press.",
    "Write an essay about why rivers meander.",
    "Explain photosynthesis to a student.",
    "Tell me about the planets of the solar system.",
    "Describe how bread is made, step by step.",
    "Write about the life of a honey bee.",
)
BURST = 0.005  # seconds: what arrives this close to the first piece was made in the same step


@dataclass
class Stream:
    """One streamed answer. Times are seconds after the request was sent."""

    arrivals: list[float] = field(default_factory=list)  # of pieces with text
    tokens: int = 0
    prompt_tokens: int = 0
    finish: str = ""

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first burst; 0 when everything came in one."""
        first, last = self.arrivals[0], self.arrivals[-1]
        later = sum(at > first + BURST for at in self.arrivals)
        return later / len(self.arrivals) * self.tokens / (last - first) if later else 0.0

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


async def _stream(to: Target, number: int, max_tokens: int, prompt_words: int) -> Stream:
    prompt = PROMPTS[number % len(PROMPTS)]
    if prompt_words:
        prompt = f"{text(prompt_words, number)}\n\n{prompt}"
    body = {
        "model": to.chat,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    seen = Stream()
    started = time.perf_counter()
    async with to.client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"chat: {response.status_code} {(await response.aread()).decode()[:300]}")
        async for line in response.aiter_lines():
            if line.startswith("data:") and line != "data: [DONE]":
                _read(seen, json.loads(line[5:]), time.perf_counter() - started)
    if not (seen.arrivals and seen.tokens):
        raise RuntimeError("chat: the stream ended without text or without its usage")
    return seen


def _read(seen: Stream, event: dict[str, Any], at: float) -> None:
    if "error" in event:
        raise RuntimeError(f"chat: {event['error']}")
    if usage := event.get("usage"):
        seen.tokens, seen.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
    for choice in event.get("choices", ()):
        if (choice.get("delta") or {}).get("content"):
            seen.arrivals.append(at)
        seen.finish = choice.get("finish_reason") or seen.finish


async def streams(
    to: Target, *, streams: int = 1, rounds: int = 3, max_tokens: int = 128, prompt_words: int = 0
) -> dict[str, Any]:
    """`streams` callers at once, each with `rounds` answers one after the other."""
    await _stream(to, 7, 16, prompt_words)
    counted, seen = Measured(), []

    async def send(caller: int) -> None:
        for i in range(rounds):
            answer = await _stream(to, caller + i * streams, max_tokens, prompt_words)
            counted.latencies.append(answer.arrivals[-1])
            counted.items += answer.tokens
            counted.tokens += answer.tokens + answer.prompt_tokens
            seen.append(answer)

    await callers(streams, send, counted)
    return {
        "streams": streams,
        "prompt_words": prompt_words,
        "max_tokens": max_tokens,
        **counted.result("generated"),
        "first_token_s": spread([answer.arrivals[0] for answer in seen]),
        "decode_per_s": spread([answer.decode_rate for answer in seen]),
        "gap_s": spread([gap for answer in seen for gap in answer.gaps]),
        "pieces_per_token": round(sum(len(a.arrivals) for a in seen) / counted.items, 3),
        "finish": {how: sum(a.finish == how for a in seen) for how in sorted({a.finish for a in seen})},
    }
