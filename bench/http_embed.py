"""Texts through `/v1/embeddings`, beside what the engine makes of the same texts alone.

    python -m bench.http_embed --model FOLDER [--device cuda:0] [--out FILE]

Callers that each send one batch after the other; answers as numbers and as base64.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from bench.http_client import Exchange, at_once, post, spread
from bench.http_load import PORT, Load, load, serving
from bench.load import text
from lodger.engines.base import Model
from lodger.tasks import EmbedTask

CALLERS, BATCHES, TEXTS, WORDS = 8, 12, 64, 150  # 6,144 texts of about 200 tokens
CLIENTS = 2  # processes


def batch(caller: int, number: int, words: int) -> list[str]:
    return [text(words, (caller * BATCHES + number) * TEXTS + n) for n in range(TEXTS)]


async def _ask(model: Model, batches: list[list[str]]) -> None:
    for texts in batches:
        await model.embed(EmbedTask(model="embedding", inputs=tuple(texts)))


async def _ask_all(model: Model, batches: list[list[list[str]]]) -> float:
    start = time.perf_counter()
    await asyncio.gather(*(_ask(model, own) for own in batches))
    return time.perf_counter() - start


def _alone(what: Load, batches: list[list[list[str]]], out: Connection) -> None:
    model = load(what)
    seconds = [uvloop.run(_ask_all(model, batches)) for _ in range(what.rounds + 1)]
    out.send(min(seconds[1:]))
    os._exit(0)


def alone(what: Load, batches: list[list[list[str]]]) -> float:
    """Texts/s of the best round, in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_alone, args=(what, batches, theirs))
    process.start()
    theirs.close()
    seconds: float = ours.recv()
    process.join()
    return _texts(batches) / seconds


def _texts(batches: list[list[list[str]]]) -> int:
    return sum(len(texts) for own in batches for texts in own)


def through_http(pid: int, batches: list[list[list[str]]], form: str) -> dict[str, Any]:
    """One round of all callers."""
    bodies = [
        [post("/v1/embeddings", {"model": "embedding", "input": texts, "encoding_format": form}) for texts in own]
        for own in batches
    ]
    parts = [bodies[n::CLIENTS] for n in range(CLIENTS)]
    talks, more = at_once(PORT, pid, [lambda part=part: list(map(Exchange, part)) for part in parts])  # type: ignore[misc]
    return {
        "texts_s": round(_texts(batches) / more["wall_s"], 1),
        "batch_ms": spread([seconds for talk in talks for seconds in talk["times"]]),
        "mb_s": round(sum(talk["bytes"] for talk in talks) / more["wall_s"] / 1e6, 1),
        **more,
    }


def measure(what: Load, batches: int = BATCHES, words: int = WORDS) -> Iterator[dict[str, Any]]:
    """For both forms of an answer what comes through HTTP, and the share of the engine's own rate."""
    asked = [[batch(caller, number, words) for number in range(batches)] for caller in range(CALLERS)]
    own = alone(what, asked)
    print(f"engine alone: {own:,.0f} texts/s", flush=True)
    with tempfile.TemporaryDirectory() as home, serving(what, Path(home)) as pid:
        for form in ("base64", "float"):
            rounds = [through_http(pid, asked, form) for _ in range(what.rounds + 1)]
            best = max(rounds[1:], key=lambda row: float(row["texts_s"]))
            print(f"{form}: {best['texts_s'] / own:.1%} through HTTP {json.dumps(best)}", flush=True)
            yield {"form": form, "alone_texts_s": round(own, 1), "share": round(best["texts_s"] / own, 3), "http": best}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, required=True, help="folder of an embedding model")
    options.add_argument("--device", default="cpu", help="of the engine alone")
    options.add_argument("--batches", type=int, default=BATCHES, help="of each caller")
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    rows = list(measure(Load(model=given.model, kind="embedding", device=given.device), given.batches))
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
