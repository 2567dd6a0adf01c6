"""Raw numbers of the parts as rows of the table: one reader for each part, targets and peers beside what they are of.

Targets are what was to be reached; peers are of `bench/results/gpu/peers.json`. A part that is younger than this file
may bring its rows itself, as `"table"`: a list of `sheet.Row`'s fields.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.bounds import QWEN3_4B, XLM_R_LARGE, Rates, chats_s, decode_step_s, encoded_tok_s, prefill_s
from bench.gpu.sheet import Row

PEERS = Path(__file__).parent.parent / "results" / "gpu" / "peers.json"
PROMPT, MADE = 256, 128  # tokens of one chat
BFLOAT16_TARGETS = {1: 310, 8: 2_200, 32: 7_500, 128: 14_000, 256: 17_500}
INT8_TARGETS = {1: 480}
ENCODER_TARGET = 750  # k tok/s
LANES_P99_MS, LANES_EMBEDDED = 7, 317  # k tok/s
HTTP_SHARE, HTTP_STREAMS = 0.9, 128
BUDGET_TARGET = 9_000
PLAN_PERCENT = 3
FIRST_TO_NEXT = 2  # times the median of the nine that follow it
GIB = 2**30

Raw = dict[str, Any]


@dataclass(frozen=True)
class Beside:
    """What a reader needs beside its raw numbers."""

    rates: Rates | None  # of the same run
    peers: Raw


Reader = Callable[[Raw, Beside], Iterator[Row]]


def rows(parts: Raw) -> Iterator[Row]:
    """The rows of all parts that have a result."""
    return (row for _, row in named_rows(parts))


def named_rows(parts: Raw) -> Iterator[tuple[str, Row]]:
    """(part, row)."""
    beside = Beside(rates(parts), json.loads(PEERS.read_text()))
    for name, part in sorted(parts.items(), key=lambda item: [*READERS, item[0]].index(item[0])):
        raw = part["result"]
        if not raw:
            continue
        if name in READERS:
            yield from ((name, row) for row in _read(name, raw, beside))
        yield from ((name, Row(**row)) for row in raw.get("table", ()))


def _read(name: str, raw: Raw, beside: Beside) -> list[Row]:
    """A part whose numbers have changed their shape costs its own rows only."""
    try:
        return list(READERS[name](raw, beside))
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        print(f"{name}: its reader does not understand its numbers: {error!r}", file=sys.stderr)
        return []


def rates(parts: Raw) -> Rates | None:
    """The card's own, of the first part that measured them."""
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
        for row in raw.get("drawn", ()):
            name = f"{label}, {row['streams']}, drawn with {row['rules']}"
            yield Row(f"{name}: in all", row["tok_s"], "tok/s")
            yield Row(f"{name}: one step with the host", row["step_ms"], "ms", less=True)
        if "prefill" in raw:
            tokens = raw["prefill"]["tokens"]
            limit = beside.rates and prefill_s(beside.rates, QWEN3_4B, tokens) * 1e3
            peer = peers.get("prefill") and peers["prefill"] * 1e3
            first = raw["prefill"]["first_ms"]
            yield Row(f"{label}: first token after {tokens:,} tokens", first, "ms", limit, peer, less=True)

    return read


def _decode(raw: Raw, beside: Beside) -> Iterator[Row]:
    chat = beside.peers["chat"]
    peers = chat["streams_256_in_128_out_tok_s"] | {"prefill": chat["prefill_8000_s"]}
    yield from _chats("chat, bfloat16", 2, BFLOAT16_TARGETS, peers)(raw, beside)


def _int8(raw: Raw, beside: Beside) -> Iterator[Row]:
    yield from _chats("chat, int8", 1, INT8_TARGETS, {})(raw, beside)


def _encode(raw: Raw, beside: Beside) -> Iterator[Row]:
    peer = beside.peers["encoder"]["tok_s"]
    rates = Rates(0, raw["operations_s"])
    for row in raw["rows"]:
        name = {"embed": "2,048 texts", "rerank": "2,048 pairs"}[row["lane"]]
        what = f"{name}, steps of {row['step_tokens']:,} tokens"
        yield Row(what, row["tok_s"] / 1e3, "k tok/s", row["limit_tok_s"] / 1e3, peer / 1e3, ENCODER_TARGET)
    for row in raw.get("long", ()):
        name = f"{row['documents']} documents of {row['tokens']:,} tokens at once"
        limit = encoded_tok_s(rates, XLM_R_LARGE, [row["tokens"]])
        yield Row(name, row["tok_s"] / 1e3, "k tok/s", limit / 1e3)
        yield Row(f"{name}: held beside the weights", row["held_mib"], "MiB", less=True)


def _lanes(raw: Raw, beside: Beside) -> Iterator[Row]:
    peer = beside.peers["side_by_side"]
    alone = raw["together"]["chats alone"]["between_tokens_ms"]
    for quantile in ("p50", "p99"):
        name = f"8 chats alone: between tokens, {quantile}"
        yield Row(name, alone[quantile], "ms", peer=peer["chats_alone_ms"][quantile], less=True)
    for how, label in (("together", "8 chats"), ("apart", "three processes: 8 chats")):
        for what, row in ((what, row) for what, row in raw.get(how, {}).items() if "embed_tok_s" in row):
            ours = how == "together" and what == "chats, a book"  # what the targets are of
            name = f"{label} beside {what.removeprefix('chats, ').replace(',', ' and')}"
            gaps, limits = row["between_tokens_ms"], {"p99": LANES_P99_MS} if ours else {}
            for quantile in ("p50", "p99"):
                theirs = peer["chats_beside_ms"][quantile] if ours else None
                target = limits.get(quantile)
                named = f"{name}: between tokens, {quantile}"
                yield Row(named, gaps[quantile], "ms", None, theirs, target, less=True)
            embedded = peer["embedded_beside_tok_s"] / 1e3
            yield Row(
                f"{name}: embedded meanwhile",
                row["embed_tok_s"] / 1e3,
                "k tok/s",
                peer=embedded if ours else None,
                target=LANES_EMBEDDED if ours else None,
            )
            if row.get("rerank_ms", {}).get("n"):
                yield Row(f"{name}: 64 documents reranked in", row["rerank_ms"]["p50"], "ms", less=True)


def _soak(raw: Raw, beside: Beside) -> Iterator[Row]:
    first, last = raw["held"][0], raw["held"][-1]
    grown = (last["card"] - first["card"]) / 2**20
    yield Row(
        f"{sum(raw['answers'].values()):,} mixed requests: the card's use grows by", grown, "MiB", None, None, 0, True
    )


def _budget(raw: Raw, beside: Beside) -> Iterator[Row]:
    name = f"{raw['chats']} chats, three models in {raw['budget']} GiB, int8"
    peer = beside.peers["chat"]["in_11.2_gib_tok_s"][str(raw["chats"])]
    yield Row(name, max(raw["rates"][1:]), "tok/s", peer=peer, target=BUDGET_TARGET)
    yield Row(f"{name}: held", raw["held"] / GIB, "GiB", target=raw["budget"], less=True)


def _http(raw: Raw, beside: Beside) -> Iterator[Row]:
    """The limit is what the engine makes of the same requests in a process without HTTP."""
    cached = ", prompts cached" * raw.get("prompts_cached", False)
    for row in raw["rows"]:
        alone = row["alone"]["tok_s"]
        target = HTTP_SHARE * alone if row["streams"] == HTTP_STREAMS else None
        yield Row(f"{row['streams']} chats through HTTP{cached}", row["http"]["tok_s"], "tok/s", alone, target=target)
    for row in raw.get("texts", ()):
        yield Row(f"texts through HTTP, {row['form']}", row["http"]["texts_s"], "texts/s", row["alone_texts_s"])


def _memory(raw: Raw, beside: Beside) -> Iterator[Row]:
    """How far what is held is from what was planned, of all of it and of the part that is furthest off."""
    for budget, row in raw["budgets"].items():
        name = f"three models in {budget} GiB, {row['quantization'] or 'bfloat16'}"
        off = {part: abs(row["measured"][part] / planned - 1) * 100 for part, planned in row["planned"].items()}
        worst = max((part for part in off if part != "total"), key=lambda part: off[part])
        yield Row(f"{name}: held", row["measured"]["total"] / GIB, "GiB", target=float(budget), less=True)
        yield Row(f"{name}: off the plan", off["total"], "%", target=PLAN_PERCENT, less=True)
        yield Row(f"{name}: off the plan, {worst}", off[worst], "%", target=PLAN_PERCENT, less=True)


def _start(raw: Raw, beside: Beside) -> Iterator[Row]:
    cold, *warm = raw["starts"]
    peer = beside.peers["chat"]["start_s"]
    how = "kernels compiled before" if raw.get("compiled") else "nothing compiled"
    yield Row(f"start to three models that answered, {how}", cold["start_s"], "s", None, peer, 20, less=True)
    for start in warm:
        yield Row("start to three models that answered", start["start_s"], "s", None, peer, 20, less=True)
        held = start["after load"] / GIB
        named = f"three models behind HTTP in {raw['budget']} GiB, {raw['quantization'] or 'bfloat16'}: held"
        yield Row(named, held, "GiB", target=raw["budget"], less=True)
        for uid, (first, *next_ones) in start.get("first_ms", {}).items():
            usual = sorted(next_ones)[len(next_ones) // 2]
            yield Row(
                f"{uid}: the first request once it is ready", first, "ms", target=FIRST_TO_NEXT * usual, less=True
            )


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


def _checks(raw: Raw, beside: Beside) -> Iterator[Row]:
    failed = raw["outcomes"].get("failed", 0)
    passed = raw["outcomes"].get("passed", 0)
    yield Row(f"kernels against float32: failures beside {passed} passes", failed, "", target=0, less=True)


def _sleep(raw: Raw, beside: Beside) -> Iterator[Row]:
    rounds = raw["model"]["rounds"]
    yield Row("7.5 GiB asleep after", _median(rounds, "sleep"), "s", less=True)
    yield Row("wake to first token", _median(rounds, "first token"), "s", target=0.5, less=True)


def _median(rounds: list[Raw], key: str) -> float:
    values = sorted(one[key] for one in rounds)
    return float(values[len(values) // 2])


# In the order in which they are shown.
READERS: dict[str, Reader] = {
    "limits": _limits,
    "decode": _decode,
    "decode-int8": _int8,
    "budget": _budget,
    "encode": _encode,
    "lanes": _lanes,
    "http": _http,
    "memory": _memory,
    "soak": _soak,
    "start": _start,
    "sleep": _sleep,
    "attention": _attention,
    "w8a16": _w8a16,
    "checks": _checks,
}
