"""How long a model needs to sleep and to wake to its first token, and what it gives back.

    python -m bench.gpu.sleep [--out FILE]

First an arena alone, with a captured graph over it; then a whole model of Qwen3-4B's shape with random weights in the
native engine. Memory is what NVML says of the card, before and after.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.gpu import part
from bench.gpu.card import used
from bench.gpu.folders import full_size
from lodger.budget import Budget
from lodger.catalogue.inspect import inspect_folder
from lodger.engines.base import LoadRequest
from lodger.engines.native import NativeEngine
from lodger.runtime.arena import for_cache
from lodger.spec import ModelSpec
from lodger.tasks import CompletionTask, SamplingParams, StopRules
from lodger.units import GIB, MIB

DEVICE = torch.device("cuda:0")
ROUNDS = 3
ARENA = 8 * GIB
KV_TOKENS = 16_384
PROMPT = tuple(range(5, 261))


def timed(function: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def arena(size: int) -> dict[str, Any]:
    """An arena of `size` bytes and a graph that reads some of it."""
    made = for_cache(DEVICE, size)
    whole = made.empty((size // 2 // 8192, 8192), torch.bfloat16)
    whole.normal_()
    x, address = torch.randn(8, 8192, device=DEVICE, dtype=torch.bfloat16), whole.data_ptr()
    x @ whole[:8192].T
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x @ whole[:8192].T
    graph.replay()
    before, total, held = y.clone(), whole.sum(dtype=torch.float64), used()
    rounds = []
    for _ in range(ROUNDS):
        asleep = timed(lambda: made.sleep(keep=True))
        freed = held - used()
        awake = timed(made.wake)
        y.zero_()
        graph.replay()
        same = torch.equal(y, before) and torch.equal(whole.sum(dtype=torch.float64), total)
        rounds.append({"sleep": asleep, "wake": awake, "freed": freed, "same": same})
    return {"size": size, "mapped": made.addresses_kept, "address kept": whole.data_ptr() == address, "rounds": rounds}


def model(folder: Path) -> dict[str, Any]:
    facts = inspect_folder(folder)
    start = used()
    engine = NativeEngine("cuda:0")
    kv = 2 * facts.layers * facts.kv_heads * facts.head_dim * 2 * KV_TOKENS
    budget = Budget(weights=2 * facts.parameters + MIB, kv_cache=kv, activations=2 * GIB, context_length=4096)
    request = LoadRequest(spec=ModelSpec(uid="m"), facts=facts, budget=budget, device="cuda:0", dtype="bfloat16")
    loading = time.perf_counter()
    served = engine.load(request, lambda _: None)
    loading = time.perf_counter() - loading
    expected = said(served, 16)
    held, rounds = used() - start, []
    for _ in range(ROUNDS):
        asleep = timed(lambda: served.sleep(keep=True))
        left = used() - start
        memory = served.memory()
        begun = time.perf_counter()
        served.wake()
        awake = time.perf_counter() - begun
        said(served, 1)
        first = time.perf_counter() - begun
        rounds.append({"sleep": asleep, "wake": awake, "first token": first, "left": left, "memory": memory})
    dropped = timed(lambda: served.sleep(keep=False))
    again = timed(served.wake)
    same = said(served, 16) == expected
    counted = engine.used()
    served.close()
    return {
        "load": loading, "held": held, "counted": counted, "memory": served.memory(), "same": same, "rounds": rounds,
        "dropped": dropped, "read again": again, "after close": used() - start,
    }  # fmt: skip


def said(served: Any, tokens: int) -> tuple[str, int]:
    """What it says greedily, and how many tokens that is."""
    greedy = SamplingParams(temperature=0, repetition_penalty=1.0)
    rules = StopRules(max_tokens=tokens, ignore_eos=True)
    task = CompletionTask(model="m", prompt=PROMPT, sampling=greedy, stopping=rules)

    async def collect() -> tuple[str, int]:
        deltas = [delta async for delta in served.generate(task)]
        usage = deltas[-1].usage
        return "".join(delta.text for delta in deltas), usage.completion_tokens if usage else 0

    return asyncio.run(collect())


def main() -> None:
    options = part.options(__doc__)
    torch.empty(1, device=DEVICE)
    found = {"arena": arena(ARENA)}
    print(json.dumps(found, indent=1), flush=True)
    torch.cuda.empty_cache()
    with full_size() as folders:
        found["model"] = model(folders["chat"])
    print(json.dumps(found["model"], indent=1), flush=True)
    part.write(options, found)


if __name__ == "__main__":
    main()
