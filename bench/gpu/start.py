"""Seconds from `lodger up` until three models have answered, and what the server holds then.

    python -m bench.gpu.start [--out FILE] [--budget GIB] [--quantization int8]

The three models of `bench.gpu.memory`, their files in RAM, named by a lodger.yaml as a user writes it, with a reserve
that leaves the budget. Both starts find the kernels compiled that this machine has compiled before, in Triton's own
folder; the second one finds Python's files in the page cache too. Then long and many requests come over HTTP, and NVML
says what the whole card holds, beside what `lodger plan` had said.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch

from bench import servers
from bench.gpu.memory import CONTEXT, write_folders
from bench.gpu.part import options, write
from bench.gpu.sleep import this_card, used
from lodger.units import GIB, MIB

UIDS = {"chat": "chat", "emb": "emb", "rr": "rerank"}
PORT = 19_997
CALLERS = 64


def wanted(place: Path, folders: dict[str, Path], budget: float, quantization: str | None) -> Path:
    card = this_card()
    lines = [f"reserve: {card.free - int(budget * GIB)}", "models:"]
    for name, folder in folders.items():
        lines += [f"  {UIDS[name]}:", f"    path: {folder}", f"    context_length: {CONTEXT}"]
    lines.insert(5, f"    quantization: {quantization}") if quantization else None
    file = place / "lodger.yaml"
    file.write_text("\n".join(lines) + "\n")
    return file


def lodger(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "lodger", *map(str, words)]


def planned(file: Path, home: Path) -> dict[str, Any]:
    said = subprocess.run(lodger("plan", "--json", "--file", file, "--home", home), check=True, capture_output=True)
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def load(url: str) -> dict[str, int]:
    """Requests at the limits; how many of them were answered with which status."""
    long = "word " * 7000
    asked: list[tuple[str, dict[str, Any]]] = []
    for n in range(3 * CALLERS):
        text = long if n % 64 == 0 else f"{n} " * (1 + n % 60)
        message = [{"role": "user", "content": text}]
        sampling = {"temperature": n % 2, "top_p": 0.9, "max_tokens": 32}
        asked.append(("/v1/chat/completions", {"model": "chat", "messages": message, **sampling}))
    for n in range(12):
        texts = [long] if n % 2 else ["some words " * 12] * 200
        asked.append(("/v1/embeddings", {"model": "emb", "input": texts}))
        asked.append(("/v1/rerank", {"model": "rerank", "query": "words", "documents": texts[:64]}))
    statuses: dict[str, int] = {}
    limits = httpx.Limits(max_connections=CALLERS)
    with httpx.Client(base_url=url, timeout=60, limits=limits) as client, ThreadPoolExecutor(CALLERS) as pool:
        for answer in pool.map(lambda one: client.post(one[0], json=one[1]), asked):
            statuses[str(answer.status_code)] = statuses.get(str(answer.status_code), 0) + 1
    return statuses


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, default=11.9)
    parser.add_argument("--quantization", choices=["int8"])
    given = options(__doc__, parser)
    found: dict[str, Any] = {"budget": given.budget, "quantization": given.quantization, "starts": []}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as ram, tempfile.TemporaryDirectory() as home:
        folders = write_folders(Path(ram))
        torch.cuda.empty_cache()
        before = used()
        file = wanted(Path(home), folders, given.budget, given.quantization)
        found["planned"] = plan = planned(file, Path(home))
        compiled = Path.home() / ".triton" / "cache"
        found["compiled"] = compiled.exists()
        if compiled.exists():
            shutil.copytree(compiled, Path(home) / "cache" / "triton")
        up = lodger("up", "--file", file, "--home", home, "--port", str(PORT))
        for number in range(2):
            server = servers.Server(up, dict(os.environ), sys.executable, PORT)
            log = Path(home) / f"start{number}.log"
            try:
                with servers.running(server, log) as start:
                    held = used() - before
                    statuses = load(server.url) if number else {}
                    row = {"start_s": start["start_s"], "held": held, "after load": used() - before, **statuses}
            finally:
                print(log.read_text()[-6000:], flush=True)
                for own in sorted(Path(home).glob("logs/*")):
                    print(f"== {own.name}\n{own.read_text()[-3000:]}", flush=True)
            found["starts"].append(row)
            print(row, f"planned {plan['needed'] / MIB:.0f} MiB, held {row['after load'] / MIB:.0f} MiB", flush=True)
            write(given, found)


if __name__ == "__main__":
    main()
