"""What the plan grants is enough: every model loads and answers inside its own grant."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import torch

from lodger.catalogue.inspect import inspect_folder
from lodger.device.view import DeviceView
from lodger.engines.base import LoadRequest
from lodger.engines.native import NativeEngine
from lodger.plan.planner import plan
from lodger.plan.values import Candidate
from lodger.spec import ModelSpec
from lodger.tasks import CompletionTask, EmbedTask, RerankTask, StopRules
from lodger.units import GIB


def view(device: torch.device) -> DeviceView:
    kind = "cuda" if device.type == "cuda" else "cpu"
    return DeviceView(id=str(device), kind=kind, name="card", total=80 * GIB, free=14 * GIB, compute_capability=(9, 0))


def test_three_models_load_and_answer_inside_what_was_planned(device: torch.device, tiny: Callable[..., Path]) -> None:
    folders = {"chat": tiny("qwen3"), "emb": tiny("bge-m3"), "rr": tiny("bge-reranker")}
    wanted = tuple(Candidate(ModelSpec(uid=uid, path=str(path)), inspect_folder(path)) for uid, path in folders.items())
    granted = {model.uid: model for model in plan(view(device), wanted).models}
    engine = NativeEngine(str(device))
    models = {}
    for candidate in wanted:
        grant = granted[candidate.spec.uid]
        request = LoadRequest(
            spec=candidate.spec,
            facts=candidate.facts,
            budget=grant.budget,
            device=str(device),
            dtype=grant.dtype if device.type == "cuda" else None,
        )
        models[candidate.spec.uid] = engine.load(request, lambda _: None)

    async def ask() -> None:
        text = "你好，Xinference " * 20
        stopping = StopRules(max_tokens=4, ignore_eos=True)
        deltas = [
            d async for d in models["chat"].generate(CompletionTask(model="chat", prompt=text, stopping=stopping))
        ]
        assert deltas[-1].usage is not None
        assert deltas[-1].usage.completion_tokens == 4
        assert (await models["emb"].embed(EmbedTask(model="emb", inputs=(text,) * 32))).count == 32
        scores = (await models["rr"].rerank(RerankTask(model="rr", query="你好", documents=(text,) * 32))).scores
        assert len(scores) == 32

    asyncio.run(ask())
    for model in models.values():
        model.close()
    engine.close()
