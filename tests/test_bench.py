"""The load generators count honestly, and the table says what the raw numbers say."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from bench import chat, compare, embed, load, rerank, table


def test_texts_are_the_same_for_every_server() -> None:
    assert load.text(180, 7) == load.text(180, 7) != load.text(180, 8)
    assert len(load.text(180, 7).split()) == 180
    lengths = [load.mixed_length(180, seed) for seed in range(200)]
    assert 22 <= min(lengths) < 60
    assert 300 < max(lengths) < 360


def test_tokens_that_came_in_one_burst_earn_no_decode_rate() -> None:
    steady = chat.Stream(arrivals=[0.1 + 0.02 * i for i in range(11)], tokens=11)
    assert steady.decode_rate == pytest.approx(50)
    rounds = chat.Stream(arrivals=[0.6] * 16 + [1.2] * 16, tokens=32)
    assert rounds.decode_rate == pytest.approx(16 / 0.6)
    assert chat.Stream(arrivals=[0.6] * 16, tokens=16).decode_rate == 0


def answer(request: httpx.Request) -> httpx.Response:
    """A server that answers everything rightly, two tokens for each text."""
    body = json.loads(request.content)
    if request.url.path == "/v1/embeddings":
        data = [{"embedding": [1.0, 0.0]} for _ in body["input"]]
        return httpx.Response(200, json={"data": data, "usage": {"total_tokens": 2 * len(data)}})
    if request.url.path == "/v1/rerank":
        return httpx.Response(200, json={"results": [{"index": i} for i in range(len(body["documents"]))]})
    chunks = [{"choices": [{"delta": {"content": "a"}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    chunks.append({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return httpx.Response(200, text=text + "data: [DONE]\n\n")


def against(handler: httpx.MockTransport) -> load.Target:
    return load.Target(httpx.AsyncClient(base_url="http://server", transport=handler))


def test_every_part_of_the_set_runs_and_the_table_shows_it() -> None:
    async def all_parts() -> dict[str, list[dict[str, object]]]:
        to = against(httpx.MockTransport(answer))
        return {name: [await part(to)] for name, part in compare.SET.items()}

    runs = asyncio.run(all_parts())
    host = {"cpu": "a processor", "cores": 2, "instructions": ["avx2"], "memory_gib": 24, "gpus": []}
    servers = [{"name": "one", "runs": runs, "start_s": 8.0}, {"name": "two", "runs": runs, "start_s": 16.0}]
    text = table.render({"date": "2026-01-31", "host": host, "note": "", "servers": servers})
    assert "| start until three models answer, s | 8.0 | 16.0 | 2.00 |" in text
    assert "2 cores of a processor (avx2), 24 GiB, no GPU" in text
    assert text.count("|") > 60, "every part that was measured has its row"


@pytest.mark.parametrize("part", [embed.batches, rerank.pairs, chat.streams])
def test_a_failed_request_ends_the_run(part: compare.Part) -> None:
    to = against(httpx.MockTransport(lambda request: httpx.Response(503, text="not now")))
    with pytest.raises(RuntimeError, match="503 not now"):
        asyncio.run(part(to))


def test_wrong_usage_is_counted() -> None:
    seen = []

    def whole_batch(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        count = 2 if len(seen) <= 16 else 99
        return httpx.Response(200, json={"data": [{"embedding": [1.0]}], "usage": {"total_tokens": count}})

    assert asyncio.run(embed.usage(against(httpx.MockTransport(whole_batch))))["wrong"] == 16
