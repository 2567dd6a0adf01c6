"""20,000 mixed requests of random lengths up to the limits, and what the card holds before and after.

    python -m bench.gpu.soak [--out FILE] [--requests 20000] [--layers 2]

The models of `bench.gpu.memory`, as wide as they are and with few layers, so that all of it takes about a minute: the
memory of a step does not depend on how many layers it goes through. The KV cache is too small for all chats at once.
Lengths are spread evenly over their orders of magnitude. One prompt in eight may be as long as the context, the others
have up to 512 tokens; one in 256 requests of texts has as many as it may, each as long as it may be. Every kind of
sampling and abandoned requests are among them.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import torch

from bench.gpu.card import used
from bench.gpu.folders import write_folders
from bench.gpu.memory import CONTEXT, DEVICE, KINDS, Models, everything, load, planned
from bench.gpu.part import options, write
from lodger.engines.native import NativeEngine
from lodger.tasks import CompletionTask, EmbedTask, RerankTask, StopRules
from lodger.units import MIB

CALLERS, PARTS = 256, 10
WARM = 250  # requests before memory is counted
TEXTS = 32  # of one request
BUDGET = 3.7  # GiB: for two layers each


def length(random: random.Random, most: int) -> int:
    return int(most ** random.random())


def texts(chance: random.Random, longest: int) -> list[int]:
    """Lengths of the texts of one request."""
    count = length(chance, TEXTS)
    if not chance.randrange(256):
        return [longest] * TEXTS
    return [max(length(chance, longest) // count, 1)] * count


async def request(models: Models, chance: random.Random) -> str:
    kind = chance.choice(("chat", "chat", "embed", "embed", "rerank"))
    if kind == "embed":
        inputs = tuple((7,) * size for size in texts(chance, CONTEXT))
        await models["emb"].embed(EmbedTask(model="emb", inputs=inputs))
    elif kind == "rerank":
        documents = tuple("word " * size for size in texts(chance, CONTEXT // 2))
        await models["rr"].rerank(RerankTask(model="rr", query="word " * length(chance, 60), documents=documents))
    else:
        longest = 512 if chance.randrange(8) else CONTEXT - 1
        prompt = tuple(chance.randbytes(length(chance, longest)))
        rules = StopRules(max_tokens=length(chance, 48), ignore_eos=True)
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
    before, start = used(), time.monotonic()
    torch.empty(1, device=DEVICE)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        folders = write_folders(Path(place), num_hidden_layers=given.layers)
        made, wanted = planned(folders, BUDGET, None)
        models = load(NativeEngine("cuda:0"), made, wanted, "soak")
    print(f"{time.monotonic() - start:5.1f} s, loaded: {held(before)['card'] / MIB:.0f} MiB", flush=True)
    asyncio.run(everything(models, made.models[0].budget.sequences))
    asyncio.run(many(models, WARM, 0))
    rows, start = [held(before)], time.monotonic()
    answers: Counter[str] = Counter()
    for part in range(PARTS):
        answers += asyncio.run(many(models, given.requests // PARTS, 1 + part))
        rows.append(held(before))
        grown = ", ".join(f"{name} {(size - rows[0][name]) / MIB:+.1f}" for name, size in rows[-1].items())
        seconds = time.monotonic() - start
        print(f"{seconds:5.1f} s, {sum(answers.values()):,} requests: {grown} MiB", flush=True)
        write(given, {"planned": made.needed, "held": rows, "answers": answers, "seconds": seconds})
    print(f"{dict(answers)}; held {rows[-1]['card'] / MIB:.0f} MiB, planned {made.needed / MIB:.0f}", flush=True)


if __name__ == "__main__":
    main()
