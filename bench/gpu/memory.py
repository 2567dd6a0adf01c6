"""Planned and measured bytes of three models inside five budgets, part by part.

    python -m bench.gpu.memory [--out FILE]

A chat model of Qwen3-4B's shape, and an embedding and a rerank model of XLM-RoBERTa-large's, with random weights and a
context of 8,192 tokens. Each budget is planned as `lodger plan` does, loaded into the native engine as granted, and
used until every peak is reached: long prompts, as many chats as a step takes, drawn and penalised tokens, long and many
texts. What is held then is told by NVML for the whole card, by torch's allocator, and by the models.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from bench.gpu.card import this_card, used
from bench.gpu.folders import full_size
from bench.gpu.part import options, write
from lodger.budget import CAPTURED_STEP, SEGMENTS, decode_steps, workspaces, workspaces_beside
from lodger.catalogue.inspect import inspect_folder
from lodger.engines.base import LoadRequest
from lodger.engines.native import NativeEngine
from lodger.errors import DoesNotFit
from lodger.plan.planner import plan
from lodger.plan.values import Candidate, Plan
from lodger.runtime.virtual_memory import virtual_memory
from lodger.spec import ModelSpec
from lodger.tasks import CompletionTask, EmbedTask, RerankTask, SamplingParams, StopRules
from lodger.units import GIB, MIB

DEVICE = torch.device("cuda:0")
# The driver keeps kernels that were used, so what a process has of them only grows: first the models that use fewest.
BUDGETS: tuple[tuple[float, Literal["int8"] | None], ...] = (
    (8.5, "int8"),
    (10, "int8"),
    (11.9, None),
    (16, None),
    (24, None),
)
CONTEXT = 8192
PARTS = ("process", "weights", "kv_cache", "captured", "activations", "total")
KINDS = (
    SamplingParams(temperature=0, repetition_penalty=1.0),
    SamplingParams(temperature=0.8, top_p=0.9),
    SamplingParams(temperature=0.8, top_p=0.9, top_k=20),
    SamplingParams(temperature=0.8, presence_penalty=0.5),
)
Models = dict[str, Any]


def planned(
    folders: dict[str, Path], budget: float, quantization: Literal["int8"] | None
) -> tuple[Plan, list[Candidate]]:
    card = this_card()
    view = msgspec.structs.replace(card, free=int(budget * GIB), ours=0, neighbours=())
    wanted = []
    for uid, folder in folders.items():
        own = quantization if uid == "chat" else None
        spec = ModelSpec(uid=uid, path=str(folder), context_length=CONTEXT, quantization=own)
        wanted.append(Candidate(spec, inspect_folder(folder)))
    return plan(view, tuple(wanted), reserve=0), wanted


def load(engine: NativeEngine, made: Plan, wanted: list[Candidate], name: str) -> Models:
    """By uid. Weights that the engine has already are shared."""
    models = {}
    for grant, candidate in zip(made.models, wanted, strict=True):
        spec = ModelSpec(uid=f"{grant.uid}-{name}", quantization=candidate.spec.quantization)
        request = LoadRequest(spec=spec, facts=grant.facts, budget=grant.budget, device="cuda:0", dtype=grant.dtype)
        models[grant.uid] = engine.load(request, lambda _: None)
    return models


async def everything(models: Models, sequences: int) -> None:
    """Requests at all limits, at the same time."""
    asked: list[Coroutine[Any, Any, Any]] = [chat(models["chat"], 8000, 8, KINDS[n % 4]) for n in range(3)]
    asked += [chat(models["chat"], 40 + n % 50, 24, KINDS[n % 4], n) for n in range(2 * sequences)]
    long, short = tuple(range(5, 8197)), tuple(range(5, 150))
    asked += [models["emb"].embed(EmbedTask(model="emb", inputs=(long,))) for _ in range(3)]
    asked += [models["emb"].embed(EmbedTask(model="emb", inputs=(short,) * 200)) for _ in range(2)]
    text = "world " * 3000
    asked += [models["rr"].rerank(RerankTask(model="rr", query="time", documents=(text,) * 2)) for _ in range(2)]
    asked += [models["rr"].rerank(RerankTask(model="rr", query="time", documents=(text[:300],) * 100))]
    found = await asyncio.gather(*asked, return_exceptions=True)
    for failure in [one for one in found if isinstance(one, BaseException)][:3]:
        print("  failed:", failure, flush=True)


async def chat(model: Any, length: int, tokens: int, kind: SamplingParams, seed: int = 0) -> None:
    prompt = tuple((7 * seed + at) % 250 + 5 for at in range(length))
    rules = StopRules(max_tokens=tokens, ignore_eos=True)
    async for _ in model.generate(CompletionTask(model="chat", prompt=prompt, sampling=kind, stopping=rules)):
        pass


def measured(models: Models, before: int) -> dict[str, int]:
    """Bytes by part, with no step running. The parts add up to what NVML says of the card beyond `before`."""
    torch.cuda.synchronize()
    memory = virtual_memory(DEVICE)
    mapped = memory.mapped if memory else 0
    held = [model.memory() for model in models.values()]
    weights, kv_cache = (sum(one.get(part, 0) for one in held) for part in ("weights", "kv_cache"))
    captured = mapped - weights - kv_cache  # rows of logits
    steps = products = 0  # bytes of torch's allocator; those of cuBLAS are the process's
    for segment in torch.cuda.memory_snapshot():  # type: ignore[no-untyped-call]
        graphs = tuple(segment["segment_pool_id"]) != (0, 0)
        live = [block["size"] for block in segment["blocks"] if block["state"].startswith("active")]
        own = sum(size for size in live if size == workspaces(torch.cuda.get_device_capability()) // 3)
        products += own
        captured += segment["total_size"] if graphs else sum(live) - own
        steps += 0 if graphs else segment["total_size"] - sum(live)
    total = used() - before
    return {
        "process": total - torch.cuda.memory_reserved() - mapped + products,
        "weights": weights,
        "kv_cache": kv_cache,
        "captured": captured,
        "activations": steps,
        "total": total,
    }


def promised(made: Plan) -> dict[str, int]:
    """As `measured` cuts it: all of the driver's and of cuBLAS is the process's, ends of segments are activations'."""
    budgets = [model.budget for model in made.models]
    parts = {part: sum(getattr(budget, part) for budget in budgets) for part in PARTS[1:4]}
    graphs, beside = ({getattr(budget, what) for budget in budgets} for what in ("graphs", "beside"))
    products = workspaces_beside(made.device.compute_capability) if any(beside) else 0
    captured = sum(graphs) + sum(beside)
    driver = sum(len(decode_steps(budget.sequences)) * CAPTURED_STEP for budget in budgets if budget.kv_cache)
    return {
        "process": made.process - SEGMENTS + products + driver,
        **parts,
        "captured": parts["captured"] + captured - driver,
        "activations": made.steps - captured - products + SEGMENTS,
        "total": made.needed,
    }


def show(budget: float, row: dict[str, Any]) -> None:
    print(
        f"{budget} GiB {row['quantization'] or 'bf16'}, {row['kv_tokens']:,} tokens, {row['sequences']} chats in a step"
    )
    for part in PARTS:
        want, have = row["planned"][part], row["measured"][part]
        print(f"  {part:12} {want / MIB:10.1f} {have / MIB:10.1f} MiB {100 * (have / want - 1):+6.1f} %", flush=True)


def main() -> None:
    given = options(__doc__)
    before = used()
    torch.empty(1, device=DEVICE)
    found: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "budgets": {}}
    with full_size() as folders:
        engine = NativeEngine("cuda:0")
        older: Models = {}
        for budget, quantization in BUDGETS:
            try:
                made, wanted = planned(folders, budget, quantization)
            except DoesNotFit as refusal:
                print(f"{budget} GiB {quantization or 'bf16'}: {refusal.text}", flush=True)
                continue
            start = time.monotonic()
            models = load(engine, made, wanted, str(budget))
            loaded = time.monotonic() - start
            for model in older.values():
                model.close()
            torch.cuda.empty_cache()
            grant, older = made.models[0], models
            asyncio.run(everything(models, grant.budget.sequences))
            found["budgets"][str(budget)] = row = {
                "quantization": quantization,
                "kv_tokens": grant.kv_tokens,
                "sequences": grant.budget.sequences,
                "load_s": round(loaded, 2),
                "planned": promised(made),
                "measured": measured(models, before),
            }
            show(budget, row)
            write(given, found)


if __name__ == "__main__":
    main()
