"""The table of a comparison. `python -m bench.table [FILE]` writes it into README.md and README.zh-CN.md.

Without FILE it takes the newest of bench/results. What it writes stands between two marks:
`<!-- bench -->` and `<!-- /bench -->`.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import hardware

ROOT = Path(__file__).parent.parent
MARKED = (ROOT / "README.md", ROOT / "README.zh-CN.md")

Number = float | None


@dataclass(frozen=True)
class Row:
    """One line of the table: what is measured, how to read it from a server's raw numbers, and how to print it."""

    label: str
    read: Callable[[dict[str, Any]], Number]
    digits: int = 0
    unit: str = ""


def _median(part: str, *path: str) -> Callable[[dict[str, Any]], Number]:
    """The median over the repeated runs of `part`."""

    def read(server: dict[str, Any]) -> Number:
        values = []
        for run in server["runs"].get(part, ()):
            for name in path:
                run = run.get(name, {})  # what a run did not have, such as gaps in a stream of one piece
            if run != {}:
                values.append(float(run))
        return statistics.median(values) if values else None

    return read


def _once(*path: str) -> Callable[[dict[str, Any]], Number]:
    def read(server: dict[str, Any]) -> Number:
        value: Any = server
        for name in path:
            value = value.get(name) if value else None
        return value if value is None else float(value)

    return read


ROWS = (
    Row("start until three models answer", _once("start_s"), 1, "s"),
    Row("processes", _once("loaded", "processes")),
    Row("memory of all processes after loading (PSS)", _once("loaded", "pss_mib"), 0, "MiB"),
    Row("the same after this load", _once("after", "pss_mib"), 0, "MiB"),
    Row("Python environment on disk", _once("environment_mib"), 0, "MiB"),
    Row("embed: batches of 32", _median("embed_batches", "texts_per_s"), 1, "texts/s"),
    Row("embed: batches of 32, mixed lengths", _median("embed_mixed", "texts_per_s"), 1, "texts/s"),
    Row("embed: 16 callers, one text each", _median("embed_16_callers", "texts_per_s"), 1, "texts/s"),
    Row("embed: one text, one caller", _median("embed_one", "latency_s", "p50"), 3, "s"),
    Row("embed: requests of 16 at once whose usage is wrong", _median("embed_usage", "wrong")),
    Row("rerank: 32 documents", _median("rerank", "pairs_per_s"), 1, "pairs/s"),
    Row("rerank: 32 documents, mixed lengths", _median("rerank_mixed", "pairs_per_s"), 1, "pairs/s"),
    Row("rerank: 4 callers", _median("rerank_4_callers", "pairs_per_s"), 1, "pairs/s"),
    Row("chat, 1 stream: tokens after the first", _median("chat_1", "decode_per_s", "mean"), 1, "tokens/s"),
    Row("chat, 1 stream: first token", _median("chat_1", "first_token_s", "p50"), 3, "s"),
    Row("chat, 1 stream: longest gap between pieces", _median("chat_1", "gap_s", "max"), 3, "s"),
    Row("chat, 8 streams: all tokens", _median("chat_8", "generated_per_s"), 1, "tokens/s"),
    Row("chat, 8 streams: first token", _median("chat_8", "first_token_s", "p50"), 3, "s"),
    Row("chat, 450-token prompt: first token", _median("chat_long_prompt", "first_token_s", "p50"), 3, "s"),
)


def render(result: dict[str, Any]) -> str:
    """Markdown. Each further server has the ratio to the first beside its number."""
    first, *others = result["servers"]
    heads = [
        "",
        first["name"],
        *(part for other in others for part in (other["name"], f"{other['name']} / {first['name']}")),
    ]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *_cells(first, others)]
    versions = "; ".join(f"{server['name']}: {_versions(server)}" for server in result["servers"])
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    note = f" {result['note']}" if result["note"] else ""
    return f"{text}\n\n{result['date']}, {hardware.line(result['host'])}. {versions}.{note}"


def _cells(first: dict[str, Any], others: list[dict[str, Any]]) -> Iterator[list[str]]:
    for row in ROWS:
        own = row.read(first)
        cells = [f"{row.label}{', ' if row.unit else ''}{row.unit}", _show(own, row.digits)]
        for other in others:
            value = row.read(other)
            ratio = "" if own is None or value is None or own == 0 else f"{value / own:.2f}"
            cells += [_show(value, row.digits), ratio]
        if any(cells[1:]):
            yield cells


def _show(value: Number, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _versions(server: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in server.get("versions", {}).items()) or "not asked"


def write(block: str) -> None:
    """Put `block` between the marks of every README that has them."""
    for file in MARKED:
        text = file.read_text()
        changed, found = re.subn(
            r"(<!-- bench -->\n).*?(<!-- /bench -->)", lambda m: m[1] + block + "\n" + m[2], text, flags=re.S
        )
        if not found:
            raise SystemExit(f"{file} has no marks <!-- bench --> and <!-- /bench -->")
        file.write_text(changed)


def main() -> None:
    results = sorted((ROOT / "bench" / "results").glob("*.json"))
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else results[-1]
    block = render(json.loads(file.read_text()))
    write(f"{block}\n\nRaw numbers: [{file.name}](bench/results/{file.name}).")
    print(block)


if __name__ == "__main__":
    main()
