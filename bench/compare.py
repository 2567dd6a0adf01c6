"""The same load against any servers, one after the other, and one table.

    python -m bench.compare --models FOLDER lodger lodger-float32 xinference=VENV
    python -m bench.compare first=http://127.0.0.1:9997 second=http://127.0.0.1:9998

A name alone is a server that is started, measured from its start and stopped. NAME=URL is one that runs already and
serves `chat`, `emb` and `rerank`. Raw numbers go to bench/results/DATE-MACHINE.json, to be shown by bench.table.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench import chat, embed, footprint, hardware, models, rerank, servers, table
from bench.load import Target, target

RESULTS = Path(__file__).parent / "results"
PORT = 9961

Part = Callable[[Target], Awaitable[dict[str, Any]]]

SET: dict[str, Part] = {
    "embed_batches": lambda to: embed.batches(to),
    "embed_mixed": lambda to: embed.batches(to, mixed=True),
    "embed_16_callers": lambda to: embed.singles(to, clients=16, requests=8),
    "embed_one": lambda to: embed.singles(to, clients=1, requests=40),
    "embed_usage": lambda to: embed.usage(to),
    "rerank": lambda to: rerank.pairs(to),
    "rerank_mixed": lambda to: rerank.pairs(to, mixed=True),
    "rerank_4_callers": lambda to: rerank.pairs(to, clients=4, requests=2),
    "chat_1": lambda to: chat.streams(to),
    "chat_8": lambda to: chat.streams(to, streams=8, rounds=2),
    "chat_long_prompt": lambda to: chat.streams(to, prompt_words=380, max_tokens=16),
}


async def _measure(url: str, parts: list[str], repeat: int) -> dict[str, list[dict[str, Any]]]:
    """Every part `repeat` times, the whole set in turn, so that a disturbance does not hit one part alone."""
    runs: dict[str, list[dict[str, Any]]] = {}
    async with target(url) as to:
        for turn in range(repeat):
            for name in parts:
                print(f"{url}  turn {turn + 1} of {repeat}  {name}", file=sys.stderr)
                runs.setdefault(name, []).append(await SET[name](to))
    return runs


def _own(name: str, place: str, folder: Path, home: Path) -> servers.Server:
    if name == "xinference":
        return servers.xinference(Path(place), folder, home, PORT)
    if name not in ("lodger", "lodger-float32", "lodger-bfloat16"):
        raise SystemExit(f"{name!r} cannot be started from here; give its address: {name}=http://HOST:PORT")
    _, _, dtype = name.partition("-")
    return servers.lodger(folder, home, PORT, dtype or None)


def measure(wanted: str, folder: Path, parts: list[str], repeat: int) -> dict[str, Any]:
    """Start `wanted` (or take its address), run the set, and return raw numbers."""
    name, _, place = wanted.partition("=")
    if place.startswith(("http://", "https://")):
        return {"name": name, "runs": asyncio.run(_measure(place, parts, repeat))}
    with tempfile.TemporaryDirectory() as home:
        server = _own(name, place, folder, Path(home))
        log = Path(tempfile.gettempdir()) / f"bench-{name}.log"
        print(f"{name}: starting; its log is {log}", file=sys.stderr)
        with servers.running(server, log) as seen:
            runs = asyncio.run(_measure(server.url, parts, repeat))
            after = footprint.memory(seen.pop("pid"))
    return {"name": name, **footprint.environment(server.python), **seen, "after": after, "runs": runs}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("servers", nargs="+", metavar="SERVER")
    options.add_argument("--models", type=Path, default=Path.home() / ".cache" / "lodger-bench", metavar="FOLDER")
    options.add_argument("--only", nargs="+", choices=SET, default=list(SET), metavar="PART", help=", ".join(SET))
    options.add_argument("--repeat", type=int, default=2, help="how often the whole set is run")
    options.add_argument("--note", default="", help="kept with the result, for example what else ran")
    given = options.parse_args()
    folder = given.models.absolute()
    models.make(folder)
    host = hardware.describe()
    measured = [measure(wanted, folder, given.only, given.repeat) for wanted in given.servers]
    result = {"date": datetime.date.today().isoformat(), "host": host, "note": given.note, "servers": measured}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{result['date']}-{hardware.kind(host)}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"raw numbers: {file}", file=sys.stderr)
    print(table.render(result))


if __name__ == "__main__":
    main()
