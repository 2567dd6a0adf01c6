"""Raw numbers of the parts as rows of the table: one reader for each part, targets and peers beside what they are of.

Targets are what was to be reached; peers are of `bench/results/gpu/peers.json`. A part that is younger than this file
may bring its rows itself, as `"table"`: a list of `sheet.Row`'s fields.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.bounds import QWEN3_4B, Rates, chats_s, decode_step_s
from bench.gpu.sheet import Row

PEERS = Path(__file__).parent.parent / "results" / "gpu" / "peers.json"
PROMPT, MADE = 256, 128  # tokens of one chat
BFLOAT16_TARGETS = {1: 310, 8: 2_200, 32: 7_500, 128: 14_000, 256: 17_500}
INT8_TARGETS = {1: 480}

Raw = dict[str, Any]


@dataclass(frozen=True)
class Beside:
    """What a reader needs beside its raw numbers."""

    rates: Rates | None  # of the same run
    peers: Raw


Reader = Callable[[Raw, Beside], Iterator[Row]]


def rows(parts: Raw) -> Iterator[Row]:
    """The rows of all parts that have a result."""
    beside = Beside(_rates(parts), json.loads(PEERS.read_text()))
    for name, part in parts.items():
        raw = part["result"]
        if not raw:
            continue
        if name in READERS:
            yield from READERS[name](raw, beside)
        yield from (Row(**row) for row in raw.get("table", ()))


def _rates(parts: Raw) -> Rates | None:
    for part in parts.values():
        raw = part["result"] or {}
        if "move_bytes_s" in raw:
            return Rates(raw["move_bytes_s"], raw["product_flop_s"])
    return None


def _limits(raw: Raw, beside: Beside) -> Iterator[Row]:
    yield Row("the card: a copy, read and written", raw["move_bytes_s"] / 1e9, "GB/s")
    yield Row("the card: a bfloat16 product of 8,192", raw["product_flop_s"] / 1e12, "TFLOP/s")
    yield Row("page-locked RAM to the card", raw["to_card_bytes_s"] / 1e9, "GB/s")
    yield Row("the card to page-locked RAM", raw["from_card_bytes_s"] / 1e9, "GB/s")


def _chats(label: str, weight_bytes: float, targets: dict[int, int], peers: Raw) -> Reader:
    """Chats that come at once. `weight_bytes`: of one weight of a layer."""

    def read(raw: Raw, beside: Beside) -> Iterator[Row]:
        for row in raw["rows"]:
            n, limit, step = row["streams"], None, None
            if beside.rates:
                limit = n * MADE / chats_s(beside.rates, QWEN3_4B, n, PROMPT, MADE, weight_bytes)
                step = decode_step_s(beside.rates, QWEN3_4B, n, PROMPT + MADE / 2, weight_bytes) * 1e3
            name = f"{label}, {n} x {PROMPT} + {MADE} tokens"
            yield Row(name, row["tok_s"], "tok/s", limit, peers.get(str(n)), targets.get(n))
            yield Row(f"{label}, {n}: one captured step", row["graph_ms"], "ms", step, less=True)
            yield Row(f"{label}, {n}: one step with the host", row["step_ms"], "ms", step, less=True)

    return read


def _decode(raw: Raw, beside: Beside) -> Iterator[Row]:
    peers = beside.peers["chat"]["streams_256_in_128_out_tok_s"]
    yield from _chats("chat, bfloat16", 2, BFLOAT16_TARGETS, peers)(raw, beside)


def _int8(raw: Raw, beside: Beside) -> Iterator[Row]:
    yield from _chats("chat, int8", 1, INT8_TARGETS, {})(raw, beside)


def _attention(raw: Raw, beside: Beside) -> Iterator[Row]:
    for row in raw["rows"]:
        limit = max(row.get("bytes", 0) / raw["move_bytes_s"], row.get("operations", 0) / raw["product_flop_s"])
        yield Row(f"attention: {row['case']}", row["seconds"] * 1e6, "us", limit * 1e6, less=True)


def _w8a16(raw: Raw, beside: Beside) -> Iterator[Row]:
    """A whole layer: its four products. The bound is bfloat16's time, which int8 must never exceed."""
    for tokens in sorted({row["tokens"] for row in raw["rows"]}):
        of = [row for row in raw["rows"] if row["tokens"] == tokens]
        int8, half, read = (sum(row[key] for row in of) * 1e6 for key in ("int8", "bfloat16", "read"))
        operations = sum(2 * tokens * _elements(row["product"]) for row in of)
        limit = max(read, operations / beside.rates.product * 1e6) if beside.rates else read
        yield Row(f"int8 products of a layer, {tokens:,} tokens", int8, "us", limit, target=half, less=True)


def _elements(product: str) -> int:
    rows, columns = {"qkv": (6144, 2560), "out": (2560, 4096), "gate_up": (19456, 2560), "down": (2560, 9728)}[product]
    return rows * columns


def _sleep(raw: Raw, beside: Beside) -> Iterator[Row]:
    rounds = raw["model"]["rounds"]
    yield Row("7.5 GiB asleep after", _median(rounds, "sleep"), "s", less=True)
    yield Row("wake to first token", _median(rounds, "first token"), "s", target=0.5, less=True)


def _median(rounds: list[Raw], key: str) -> float:
    values = sorted(one[key] for one in rounds)
    return float(values[len(values) // 2])


READERS: dict[str, Reader] = {
    "limits": _limits,
    "decode": _decode,
    "decode-int8": _int8,
    "attention": _attention,
    "w8a16": _w8a16,
    "sleep": _sleep,
}
