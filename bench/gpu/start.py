"""Seconds from `lodger up` until three models have answered, and what the server holds then.

    python -m bench.gpu.start [--out FILE] [--budget GIB] [--quantization int8]

The three models of `bench.gpu.memory`, their files in RAM, named by a lodger.yaml as a user writes it, with a reserve
that leaves the budget. Twice: first with the kernels that this machine has compiled before, in Triton's own folder;
then by `lodger serve`, which asks nothing itself and finds what the first start left in its home. There each model's
first requests are timed one after the other; then long and many ones come over HTTP, and NVML says what the whole card
holds, beside what `lodger plan` had said.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from bench import servers
from bench.gpu.card import this_card, used
from bench.gpu.folders import full_size
from bench.gpu.part import options, write
from lodger.client import Client
from lodger.errors import NotRunning
from lodger.units import GIB, MIB

UIDS = {"chat": "chat", "emb": "emb", "rr": "rerank"}
CONTEXT = 8192
PORT = 19_997
CALLERS, CHATS = 64, 128
AGAIN = 10  # requests of each kind, one after the other
STEPS = re.compile(r"started the worker|serves at|: loading |ready in [\d.]+ s|-> ready")
Request = tuple[str, dict[str, Any]]


def wanted(place: Path, folders: dict[str, Path], budget: float, quantization: str | None) -> Path:
    card = this_card()
    lines = [f"reserve: {card.free - int(budget * GIB)}", "models:"]
    for name, uid in UIDS.items():
        lines += [f"  {uid}:", f"    path: {folders[name]}", f"    context_length: {CONTEXT}"]
        lines += [f"    quantization: {quantization}"] if quantization and name == "chat" else []
    file = place / "lodger.yaml"
    file.write_text("\n".join(lines) + "\n")
    return file


def lodger(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "lodger", *map(str, words)]


def planned(file: Path, home: Path) -> dict[str, Any]:
    said = subprocess.run(lodger("plan", "--json", "--file", file, "--home", home), check=True, capture_output=True)
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def questions() -> dict[str, Request]:
    message = [{"role": "user", "content": "What is the capital of France?"}]
    return {
        "chat": ("/v1/chat/completions", {"model": "chat", "messages": message, "max_tokens": 1}),
        "emb": ("/v1/embeddings", {"model": "emb", "input": "time and again " * 40}),
        "rerank": ("/v1/rerank", {"model": "rerank", "query": "time", "documents": ["time and again " * 20] * 8}),
    }


def limits() -> Iterator[Request]:
    """Requests as long, and as many, as they may be."""
    long = "word " * 7000
    for n in range(CHATS):
        message = [{"role": "user", "content": long if n % 64 == 0 else f"{n} " * (1 + n % 60)}]
        sampling = {"temperature": n % 2, "top_p": 0.9, "max_tokens": 32}
        yield "/v1/chat/completions", {"model": "chat", "messages": message, **sampling}
    for n in range(8):
        texts = [long] if n % 2 else ["some words " * 12] * 200
        yield "/v1/embeddings", {"model": "emb", "input": texts}
        yield "/v1/rerank", {"model": "rerank", "query": "words", "documents": texts[:64]}


def load(url: str) -> dict[str, int]:
    """How many of `limits` were answered with which status."""
    statuses: dict[str, int] = {}
    connections = httpx.Limits(max_connections=CALLERS)
    with httpx.Client(base_url=url, timeout=60, limits=connections) as client, ThreadPoolExecutor(CALLERS) as pool:
        for answer in pool.map(lambda one: client.post(one[0], json=one[1]), limits()):
            statuses[str(answer.status_code)] = statuses.get(str(answer.status_code), 0) + 1
    return statuses


def first_requests(url: str) -> dict[str, list[float]]:
    """Milliseconds of each model's first AGAIN requests, once all are ready."""
    client = Client(url)
    while not _ready(client):
        time.sleep(0.02)
    found = {}
    with httpx.Client(base_url=url, timeout=60) as http:
        http.get("/v1/models")
        for uid, (path, body) in questions().items():
            times = []
            for _ in range(AGAIN):
                begun = time.perf_counter()
                http.post(path, json=body).raise_for_status()
                times.append((time.perf_counter() - begun) * 1e3)
            found[uid] = times
    return found


def _ready(client: Client) -> bool:
    with suppress(NotRunning):
        models = client.models()
        return len(models) == len(UIDS) and all(model.serves for model in models)
    return False


@contextmanager
def started(command: list[str], home: Path) -> Iterator[dict[str, Any]]:
    """A server; when its three models answered, and what its logs say of the time until then."""
    found: dict[str, Any] = {}
    asking = "serve" in command
    begun = time.time()

    def ask(url: str) -> None:
        if asking:
            found["first_ms"] = first_requests(url)

    server = servers.Server(command, dict(os.environ), sys.executable, PORT, ask)
    log = home / "said.log"
    try:
        with servers.running(server, log) as start:
            found |= {"start_s": start["start_s"], "url": server.url}
            yield found
    finally:
        for line in _steps(home, begun):
            print("  " + line, flush=True)
        if "start_s" not in found:
            print(log.read_text()[-3000:], flush=True)


def _steps(home: Path, begun: float) -> Iterator[str]:
    """Seconds since `begun`, and what was logged then."""
    lines = [line for file in home.glob("logs/*.log") for line in file.read_text().splitlines() if STEPS.search(line)]
    for line in sorted(lines):
        with suppress(ValueError):
            at = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp() - begun
            if at > 0:
                yield f"{at:6.2f}  {line[24:]}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, default=11.9)
    parser.add_argument("--quantization", choices=["int8"])
    given = options(__doc__, parser)
    found: dict[str, Any] = {"budget": given.budget, "quantization": given.quantization, "starts": []}
    with full_size() as folders, tempfile.TemporaryDirectory() as place:
        home = Path(place)
        file = wanted(home, folders, given.budget, given.quantization)
        found["planned"] = plan = planned(file, home)
        before = used()
        compiled = Path.home() / ".triton" / "cache"
        found["compiled"] = compiled.exists()
        if compiled.exists():
            shutil.copytree(compiled, home / "cache" / "triton")
        for verb in ("up", "serve"):
            command = lodger(verb, "--file", file, "--home", home, "--port", str(PORT))
            with started(command, home) as row:
                row["held"] = row["after load"] = used() - before
                found["starts"].append(row)
                write(given, found)
                if verb == "serve":
                    row |= {"answers": load(row["url"]), "after load": used() - before}
                    write(given, found)
                held = f"planned {plan['needed'] / MIB:.0f} MiB, held {row['after load'] / MIB:.0f}"
                print(f"{verb}: {row['start_s']} s; {held}; {row.get('answers', '')}", flush=True)
            for uid, times in row.get("first_ms", {}).items():
                print(f"  {uid}: " + ", ".join(f"{ms:.1f}" for ms in times) + " ms", flush=True)


if __name__ == "__main__":
    main()
