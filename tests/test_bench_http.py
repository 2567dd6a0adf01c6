"""The clients that measure streams count what the server says it made, and stop at an error."""

from __future__ import annotations

import asyncio

import pytest

from bench.http_client import Exchange, Stream, summary

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
EVENT = b'data: {"id":"a","choices":[{"delta":{"content":"data: {"}}]}\n\n'
END = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\ndata: [DONE]\n\n'


def test_a_stream_ends_with_the_tokens_of_its_usage_however_its_end_is_cut() -> None:
    async def main() -> None:
        for cut in range(1, len(END)):
            stream = Stream(b"")
            for data in (HEAD, EVENT + EVENT, EVENT, END[:cut], END[cut:]):
                assert not stream.done.done()
                stream.data_received(data)
            assert stream.done.done()
            found = stream.result()
            assert found["tokens"] == 2
            assert found["events"] >= 3
            assert len(found["arrivals"]) >= 2

    asyncio.run(main())


def test_a_refusal_is_an_error_with_what_was_said() -> None:
    async def main() -> None:
        for talk in (Stream(b""), Exchange([])):
            talk.data_received(b"HTTP/1.1 503 Service Unavailable\r\n\r\nno room")
            with pytest.raises(RuntimeError, match="no room"):
                await talk.done

    asyncio.run(main())


def test_rates_are_of_all_streams_from_the_first_request_to_the_last_token() -> None:
    streams = [
        {"sent": 0.0, "arrivals": [0.5, 1.0, 1.5, 2.0], "events": 5, "tokens": 4},
        {"sent": 0.0, "arrivals": [1.0, 2.0, 3.0, 4.0], "events": 5, "tokens": 4},
    ]
    row = summary(streams)
    assert row["tok_s"] == 8 / 4
    assert row["decode_tok_s"] == pytest.approx((2 + 3) / 3, abs=0.1)
    assert row["gap_ms"] == {"p50": 750.0, "p99": 1000.0}
    assert row["first_ms"]["p99"] == 1000.0
