"""20,000 mixed requests of random lengths up to the limits, and what the card holds before and after.

    python -m bench.gpu.soak [--out FILE] [--requests 20000] [--layers 2]

The models of `bench.gpu.memory`, as wide as they are and with few layers, so that all of it takes about a minute: the
memory of a step does not depend on how many layers it goes through. The KV cache is too small for all chats at once.
Lengths are spread evenly over their orders of magnitude; every kind of sampling and abandoned requests are among them.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import tiny
import torch

from bench.gpu.memory import CONTEXT, DEVICE, KINDS, Models, everything, load, planned
from bench.gpu.part import options, write
from bench.gpu.sleep import used, write_weights
from lodger.engines.native import NativeEngine
from lodger.tasks import CompletionTask, EmbedTask, RerankTask, StopRules
from lodger.units import MIB

CALLERS = 256
BUDGET = 3.7  # GiB: for two layers each


def length(random: random.Random, most: int) -> int:
    return int(most ** random.random())


async def request(models: Models, chance: random.Random) -> str:
    kind = chance.choice(("chat", "chat", "embed", "embed", "rerank"))
    if kind == "embed":
        texts = tuple((7,) * length(chance, CONTEXT) for _ in range(length(chance, 32)))
        await models["emb"].embed(EmbedTask(model="emb", inputs=texts))
    elif kind == "rerank":
        texts = tuple("word " * length(chance, CONTEXT // 2) for _ in range(length(chance, 32)))
        await models["rr"].rerank(RerankTask(model="rr", query="word " * length(chance, 60), documents=texts))
    else:
        prompt = tuple(chance.randbytes(length(chance, CONTEXT - 1)))
        rules = StopRules(max_tokens=length(chance, 64), ignore_eos=True)
        task = CompletionTask(model="chat", prompt=prompt, sampling=chance.choice(KINDS), stopping=rules)
        deltas = models["chat"].generate(task)
        most = chance.choice((1, 1000))  # one in two is abandoned after its first words
        async for _ in deltas:
            most -= 1
            if not most:
                break
        await deltas.aclose()
    return kind


async def many(models: Models, count: int, seed: int) -> Counter[str]:
    """CALLERS at a time. How many of each kind, and of each error, there were."""
    chance, found = random.Random(seed), Counter[str]()
    left = iter(range(count))

    async def caller() -> None:
        for _ in left:
            try:
                found[await request(models, chance)] += 1
            except Exception as error:  # counted, and shown in the end
                found[f"{type(error).__name__}: {error}"[:120]] += 1

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return found


def held(before: int) -> dict[str, int]:
    torch.cuda.synchronize()
    return {
        "card": used() - before,
        "reserved": torch.cuda.memory_reserved(DEVICE),
        "allocated": torch.cuda.memory_allocated(DEVICE),
        "ram": psutil.Process().memory_info().rss,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--layers", type=int, default=2)
    given = options(__doc__, parser)
    before = used()
    torch.empty(1, device=DEVICE)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        shapes: dict[str, dict[str, Any]] = {
            "chat": {**tiny.QWEN3_4B, "num_hidden_layers": given.layers},
            "emb": {**tiny.XLM_R_LARGE, "num_hidden_layers": given.layers},
        }
        folders = {
            "chat": tiny.write_fake_folder(Path(place) / "chat", "qwen3", "BF16", **shapes["chat"]),
            "emb": tiny.write_fake_folder(Path(place) / "emb", "bge-m3", "F16", **shapes["emb"]),
            "rr": tiny.write_fake_folder(Path(place) / "rr", "bge-reranker", "F16", **shapes["emb"]),
        }
        for folder in folders.values():
            write_weights(folder)
        torch.cuda.empty_cache()
        made, wanted = planned(folders, BUDGET, None)
        models = load(NativeEngine("cuda:0"), made, wanted, "soak")
    asyncio.run(everything(models, made.models[0].budget.sequences))
    asyncio.run(many(models, 500, 0))
    rows, start = [held(before)], time.monotonic()
    answers: Counter[str] = Counter()
    for part in range(4):
        answers += asyncio.run(many(models, given.requests // 4, 1 + part))
        rows.append(held(before))
        grown = {name: (size - rows[0][name]) / MIB for name, size in rows[-1].items()}
        seconds = time.monotonic() - start
        print(f"{seconds:5.1f} s, {(part + 1) * given.requests // 4:,} requests: grown by {grown} MiB", flush=True)
        write(given, {"planned": made.needed, "held": rows, "answers": answers, "seconds": seconds})
    print(f"{dict(answers)}; held {rows[-1]['card'] / MIB:.0f} MiB, planned {made.needed / MIB:.0f}", flush=True)


if __name__ == "__main__":
    main()
